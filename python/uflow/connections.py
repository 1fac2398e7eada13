"""How a product is connected to its line: a watched folder, webhooks, MQTT, as `product.toml` says. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import urlsplit

from .files import one_line
from .schema import write_json

__all__ = [
    "Entries",
    "Mqtt",
    "Only",
    "Secret",
    "SinkSettings",
    "WatchedFolder",
    "Webhook",
    "check_secrets",
    "read_sinks",
    "read_watched_folder",
    "write_connections",
]

Only = Literal["all", "flagged"]

MAX_SECRET_BYTES = 10_000
MAX_TOPIC_BYTES = 65_535
MQTT_PORT, MQTT_TLS_PORT = 1883, 8883
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# Headers that say what the message is: they are ours.
OWN_HEADERS = {"content-type", "content-length", "host", "transfer-encoding", "connection", "uflow-message"}


@dataclass(frozen=True)
class WatchedFolder:
    """A folder whose images are judged as they appear.

    Attributes:
        folder: where they appear, in it or below it.
        move_to: where they go when they are judged; None leaves them.
        failed_to: where those go that cannot be judged; None is ``failed`` in `move_to`, or leaves them.
        settle_s: seconds for which a file must not have changed: then it is whole.
        results: whether the JSON line of an image is written beside it, as ``NAME.png.json``.

    Raises:
        ValueError: no time, or images that would move to where they are.
    """

    folder: Path
    move_to: Path | None = None
    failed_to: Path | None = None
    settle_s: float = 1.0
    results: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.settle_s <= 3600:
            raise ValueError(f"settle_s is a number of seconds up to 3600, got {self.settle_s}")
        if self.move_to is not None and self.failed_to is None:
            object.__setattr__(self, "failed_to", self.move_to / "failed")
        for target in (self.move_to, self.failed_to):
            if target is not None and _absolute(target) == _absolute(self.folder):
                raise ValueError(f"images in {self.folder} cannot move to where they are: name another folder")


@dataclass(frozen=True)
class Secret:
    """Where a password is: it stands in no product file, and is shown nowhere.

    Attributes:
        env: environment variable that holds it.
        file: file that holds it, on its first line.

    Raises:
        ValueError: neither of them, or both.
    """

    env: str | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if (self.env is None) == (self.file is None) or self.env == "":
            raise ValueError('a secret is { env = "VARIABLE" } or { file = "path" }')

    def read(self) -> str:
        """What it is now.

        Raises:
            ValueError: it is not there, or is no line of text.
        """
        where = f"the environment variable {self.env}" if self.env is not None else str(self.file)
        try:
            if self.file is None:
                text = os.environ[str(self.env)]
            else:
                with self.file.open("rb") as file:
                    text = file.read(MAX_SECRET_BYTES).decode().partition("\n")[0].rstrip("\r")
        except KeyError:
            raise ValueError(f"a secret cannot be read: {where} is not set") from None
        except UnicodeDecodeError:
            raise ValueError(f"a secret cannot be read: {where} is no text") from None
        except OSError as error:
            raise ValueError(f"a secret cannot be read: {where}: {one_line(error)}") from None
        if not text or not text.isprintable():
            raise ValueError(f"a secret cannot be read: {where} holds no line of text")
        return text


@dataclass(frozen=True)
class Webhook:
    """An address that is sent each message by HTTP POST.

    Attributes:
        url: http or https.
        name: of the sink, which tells it from others of the product.
        only: "flagged" leaves out parts that are good.
        headers: more of them.
        token: is sent as ``Authorization: Bearer``.
        ca: file of the certificate authorities to trust, in place of the machine's.
        timeout_s: seconds that the receiver may be silent.

    Raises:
        ValueError: no address, or one with a password in it; headers that are none.
    """

    url: str = field(repr=False)
    name: str = "webhook"
    only: Only = "all"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    token: Secret | None = None
    ca: Path | None = None
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        _check_sink(self.name, self.timeout_s)
        _check_url(self.url)
        if wrong := [name for name in self.headers if not HEADER.fullmatch(name) or name.lower() in OWN_HEADERS]:
            raise ValueError(f"headers cannot have {wrong[0]!r:.60}")
        if wrong := [name for name, text in self.headers.items() if not text.isascii() or not text.isprintable()]:
            raise ValueError(f"the header {wrong[0]!r:.60} is not one line of ASCII")


@dataclass(frozen=True)
class Mqtt:
    """An MQTT broker to which each message is published.

    Attributes:
        host: of the broker.
        topic: without wildcards.
        name: of the sink, which tells it from others of the product.
        only: "flagged" leaves out parts that are good.
        port: None is 1883, or 8883 with TLS.
        qos: 1 or 2 until the broker has it, at least or exactly once; 0 does not ask.
        tls: whether the connection is encrypted, and the broker's certificate verified.
        ca: file of the certificate authorities to trust, in place of the machine's.
        user, password: None where the broker asks for none.
        timeout_s: seconds that the broker may be silent.

    Raises:
        ValueError: no host, a port, topic or quality that is none, or a password without a user.
    """

    host: str
    topic: str
    name: str = "mqtt"
    only: Only = "all"
    port: int | None = None
    qos: Literal[0, 1, 2] = 1
    tls: bool = False
    ca: Path | None = None
    user: str | None = None
    password: Secret | None = None
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        _check_sink(self.name, self.timeout_s)
        if not self.host or not self.host.isprintable() or set("/@ ") & set(self.host):
            raise ValueError(f"host is a name or an address, got {self.host!r:.60}")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port is a number from 1 to 65535, got {self.port}")
        size = len(self.topic.encode("utf-8", "replace"))
        if not self.topic.isprintable() or set("+#") & set(self.topic) or not 0 < size <= MAX_TOPIC_BYTES:
            raise ValueError(f"topic is a text without + and #, got {self.topic!r:.60}")
        if self.ca is not None and not self.tls:
            raise ValueError("ca is of use with tls = true only")
        if self.password is not None and self.user is None:
            raise ValueError("a password needs a user")

    @property
    def port_number(self) -> int:
        """The port, also where none was named."""
        return self.port or (MQTT_TLS_PORT if self.tls else MQTT_PORT)


SinkSettings = Webhook | Mqtt


def check_secrets(content: Mapping[str, Any], where: str) -> None:
    """ValueError, which does not show it, for a password that stands in a product's file itself."""
    for table in ("webhook", "mqtt"):
        sinks = content.get(table)
        for entries in sinks if isinstance(sinks, list) else [sinks]:
            for name in ("token", "password"):
                if isinstance(entries, dict) and not isinstance(entries.get(name, {}), dict):
                    raise ValueError(
                        f"{where}: the {name} of [[{table}]] stands in no product file: write "
                        f'{name} = {{ env = "VARIABLE" }}, or {{ file = "path" }}'
                    )


def _check_sink(name: str, timeout_s: float) -> None:
    if not name.strip() or not name.isprintable() or "/" in name:
        raise ValueError(f"name is a text of one line without /, got {name!r:.60}")
    if not 0 < timeout_s <= 300:
        raise ValueError(f"timeout_s is a number of seconds up to 300, got {timeout_s}")


def _check_url(url: str) -> None:
    """ValueError where this is no address of a web server; an address can hold a secret, and is not shown."""
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in ("http", "https") or not url.isascii() or not url.isprintable():
        raise ValueError("url is not one like https://host/path, in ASCII")
    if " " in url or parts.fragment or parts.username is not None or parts.password is not None:
        raise ValueError("url has a space, a # or a password in it: name the password as token or in headers")


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (takes out .., and does not ask the disk)


# In product.toml ------------------------------------------------------------------------------------------------------


class _SecretEntries(TypedDict, total=False):
    env: str
    file: str


class _FolderName(TypedDict):
    folder: str


class _WatchEntries(_FolderName, total=False):
    move_to: str
    failed_to: str
    settle_s: float
    results: bool


class _SinkEntries(TypedDict, total=False):
    name: str
    only: Only
    ca: str
    timeout_s: float


class _Url(TypedDict):
    url: str


class _WebhookEntries(_Url, _SinkEntries, total=False):
    headers: dict[str, str]
    token: _SecretEntries


class _HostAndTopic(TypedDict):
    host: str
    topic: str


class _MqttEntries(_HostAndTopic, _SinkEntries, total=False):
    port: int
    qos: Literal[0, 1, 2]
    tls: bool
    user: str
    password: _SecretEntries


class Entries(TypedDict, total=False):
    """The tables of a ``product.toml`` that are read here."""

    watch: _WatchEntries
    webhook: tuple[_WebhookEntries, ...]
    mqtt: tuple[_MqttEntries, ...]


def read_watched_folder(entries: Mapping[str, Any], folder: Path) -> WatchedFolder:
    """The table [watch] of a product file in a folder, which its paths are relative to; ValueError for a wrong one."""
    return WatchedFolder(**_with_paths(entries, folder, "folder", "move_to", "failed_to"))


def read_sinks(content: Mapping[str, Any], folder: Path) -> tuple[SinkSettings, ...]:
    """The tables [[webhook]] and [[mqtt]] of a product file; ValueError for a wrong one, or two of one name."""
    found: list[SinkSettings] = []
    for kind, table in ((Webhook, "webhook"), (Mqtt, "mqtt")):
        for entries in content.get(table, ()):
            values = _with_paths(entries, folder, "ca")
            for name in {"token", "password"} & values.keys():
                values[name] = Secret(**_with_paths(values[name], folder, "file"))
            found.append(kind(**values))
    names = [sink.name for sink in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two sinks are called {twice[0]!r}: give each [[webhook]] and [[mqtt]] a name of its own")
    return tuple(found)


def _with_paths(entries: Mapping[str, Any], folder: Path, *names: str) -> dict[str, Any]:
    """Entries whose values of these names are paths, relative to a folder."""
    if empty := [name for name in names if entries.get(name) == ""]:
        raise ValueError(f"{empty[0]} is a path, got ''")
    paths = {name: folder / Path(entries[name]).expanduser() for name in names if name in entries}
    return {**entries, **paths}


def write_connections(
    watch: WatchedFolder | None, sinks: tuple[SinkSettings, ...], folder: Path
) -> list[tuple[str, dict[str, Any]]]:
    """Tables of a product file in a folder: the heading of each, such as ``[[mqtt]]``, and its entries, if any."""
    tables = [] if watch is None else [("[watch]", _plain(watch, folder))]
    for sink in sinks:
        kind = "webhook" if isinstance(sink, Webhook) else "mqtt"
        entries = _plain(sink, folder)
        inner = [(f"[{kind}.{name}]", entries.pop(name)) for name in ("token", "password") if name in entries]
        headers = {write_json(name): text for name, text in entries.pop("headers", {}).items()}
        tables += [(f"[[{kind}]]", entries), *inner, (f"[{kind}.headers]", headers)]
    return tables


def _plain(settings: WatchedFolder | SinkSettings | Secret, folder: Path) -> dict[str, Any]:
    """Settings as TOML holds them; paths in a folder are relative to it."""
    found: dict[str, Any] = {}
    for name in settings.__dataclass_fields__:
        value = getattr(settings, name)
        if isinstance(value, Path):
            value = (value.relative_to(folder) if value.is_relative_to(folder) else value).as_posix()
        elif isinstance(value, Secret):
            value = _plain(value, folder)
        elif isinstance(value, Mapping):
            value = dict(value)
        if value is not None:
            found[name] = value
    return found
