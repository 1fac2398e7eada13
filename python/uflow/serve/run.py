"""A web server for the service: one process, which ends on SIGTERM when all that was accepted is stored."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from .security import is_loopback

__all__ = ["is_local", "listen", "make_server", "run"]

MAX_CONNECTIONS = 500
HEAD_S = 10  # for the head of a request, from its first byte or from when the connection was made
KEEP_ALIVE_S = 30  # between an answer and the next request


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, and not yet listened on; port 0 takes one that is free.

    Raises:
        OSError: the address is taken, or none of this machine.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return bound


def run(app: ASGIApp, bound: socket.socket, request_s: float) -> None:
    """Serve until SIGTERM or Ctrl-C; then no more is accepted, and what was accepted is answered and stored.

    Args:
        app: see `app.make_app`.
        bound: see `listen`.
        request_s: seconds that a request may take.

    Raises:
        RuntimeError: the service did not start; the log says why.
    """
    server = make_server(app, request_s)
    with _signals_end_nothing(), bound:
        server.run(sockets=[bound])
    if not server.started:
        raise RuntimeError("the service did not start, and the log says why")


def make_server(app: ASGIApp, request_s: float) -> uvicorn.Server:
    """What `run` runs, to be run elsewhere."""
    connections = _count_connections()
    config = uvicorn.Config(
        app,
        http=_BoundedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody else says from where a request comes
        ws="none",
        limit_concurrency=connections,
        backlog=max(8, connections // 8),  # asyncio accepts so many at once, before any of them can be closed
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(request_s) + 1,
    )
    return uvicorn.Server(config)


def _count_connections() -> int:
    """Connections that may be open at once: half of the files that the process may open, and 500 at most."""
    try:
        import resource
    except ImportError:  # Windows
        return MAX_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)


class _BoundedProtocol(H11Protocol):
    """uvicorn's connection, which waits for a head for `HEAD_S` only; beyond `limit_concurrency` it is closed at once.

    uvicorn itself waits for ever for the rest of a head, and for the rest of a body that is answered already.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self.config.limit_concurrency
        if limit is not None and len(self.connections) > limit:
            transport.abort()
        else:
            self._set_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._clear_deadline()

    def _set_deadline(self) -> None:
        """From the first byte that belongs to no request that is being answered; the bytes after it change nothing."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._clear_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self.transport.abort)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


@contextmanager
def _signals_end_nothing() -> Iterator[None]:
    """uvicorn raises a signal again when it has stopped by it: then all is done, and the program ends as it should."""
    names = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(name, _do_nothing) for name in names]
    try:
        yield
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


def _do_nothing(number: int, frame: object) -> None:
    pass


def is_local(bound: socket.socket) -> bool:
    """Whether a socket can be reached from this machine only."""
    host = str(bound.getsockname()[0])
    return is_loopback(f"[{host}]" if ":" in host else host)
