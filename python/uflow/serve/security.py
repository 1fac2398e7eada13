"""Who may do what: tokens and their roles, sessions of browsers, requests from other sites, headers."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ..files import read_toml
from ..schema import parse

__all__ = ["HEADERS", "Caller", "Role", "Sessions", "Tokens", "check_origin", "is_loopback", "may"]

Role = Literal["predict", "operate", "administer"]  # each may what those before it may
ROLES: tuple[Role, ...] = ("predict", "operate", "administer")

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MIN_TOKEN = 20  # characters: not to be guessed
SESSION_S = 12 * 3600
SAFE = ("GET", "HEAD", "OPTIONS")

HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the token, such as "plc" or "anna"; "local" where the service has no tokens.
        role: what it may do.
        by_cookie: whether a browser's session says so, which other sites might try to use.
    """

    name: str
    role: Role
    by_cookie: bool = False


def may(caller: Caller, role: Role) -> bool:
    """Whether a caller may do what a role may."""
    return ROLES.index(caller.role) >= ROLES.index(role)


@dataclass(frozen=True)
class _Entry:
    role: Role
    token: str

    def __post_init__(self) -> None:
        if len(self.token) < MIN_TOKEN:
            raise ValueError(f"a token has at least {MIN_TOKEN} characters; make one by: openssl rand -hex 32")


class Tokens:
    """The tokens of a file: TOML with a table for each caller, its role and its token.

    Raises:
        FileNotFoundError, ValueError: no such file, one that others may read, or no tokens in it.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file of tokens {path}")
        if sys.platform != "win32" and path.stat().st_mode & 0o077:
            raise ValueError(f"{path} can be read by others: chmod 600 {path}")
        entries = parse(dict[str, _Entry], _read_tokens(path), str(path))
        if not entries:
            raise ValueError(f"{path} holds no token")
        self._known = [(_digest(entry.token), Caller(name, entry.role)) for name, entry in entries.items()]

    def find(self, token: str) -> Caller | None:
        """The caller with a token, in the same time whichever it is and however much of it is right."""
        asked, found = _digest(token), None
        for digest, caller in self._known:
            if hmac.compare_digest(digest, asked):
                found = caller
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _read_tokens(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except ValueError:
        raise ValueError(f"{path} is not TOML") from None  # what it says of the line might hold a token


class Sessions:
    """Browsers that have logged in: a random key in a cookie, known until the service ends or the shift does."""

    COOKIE = "uflow_session"
    MOST = 1000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[Caller, float]] = {}

    def begin(self, caller: Caller) -> str:
        """A new session's key, for the cookie."""
        key = secrets.token_urlsafe(32)
        with self._lock:
            now = time.monotonic()
            self._known = {digest: kept for digest, kept in self._known.items() if kept[1] > now}
            while len(self._known) >= self.MOST:
                del self._known[next(iter(self._known))]
            self._known[_digest(key)] = (Caller(caller.name, caller.role, by_cookie=True), now + SESSION_S)
        return key

    def find(self, key: str) -> Caller | None:
        """Who has begun a session; None where it is unknown or over. Found by a digest: time tells nothing of a key."""
        with self._lock:
            caller, until = self._known.get(_digest(key), (None, 0.0))
        return caller if until > time.monotonic() else None

    def end(self, key: str) -> None:
        """Log out."""
        with self._lock:
            self._known.pop(_digest(key), None)


def is_loopback(host: str) -> bool:
    """Whether a host, perhaps with a port, is this machine itself."""
    try:
        return urlsplit(f"//{host}").hostname in LOOPBACK
    except ValueError:
        return False


def check_origin(method: str, headers: Mapping[str, str], caller: Caller) -> str | None:
    """Why a request that changes something is refused, where another site's page has sent it; None where it is not.

    A browser says by itself where a request comes from; a page cannot change that. Programs say nothing, which is taken
    from those that have sent a token, and never from a session's cookie.
    """
    if method in SAFE:
        return None
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return "this request comes from another site"
    if origin is not None and urlsplit(origin).netloc != headers.get("host", ""):
        return "this request comes from another site"
    if caller.by_cookie and site is None and origin is None:
        return "this request does not say from where it comes"
    return None
