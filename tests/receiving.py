"""What stands around a service on a line, for its tests: an HTTP server, an MQTT broker; and a service to kill."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from conftest import wait_for

START_S = 20


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost that is its own authority, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs certificates: apt-get install openssl")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command = ["openssl", "req", "-x509", *curve, "-nodes", "-days", "2", *names, "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


# HTTP -----------------------------------------------------------------------------------------------------------------


class Receiver:
    """An HTTP server that keeps what it is sent.

    Attributes:
        url: of it.
        received: what it has answered 2xx to: headers in lower case, and the content.
        tried: how many requests have come.
        answers: what the next requests are answered: a status, or seconds of silence before 200; then all 200.
        redirect: where it says that others are, with a status 3xx.
    """

    def __init__(self, scheme: str, port: int) -> None:
        self.url = f"{scheme}://localhost:{port}/parts"
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.tried = 0
        self.answers: list[int | float] = []
        self.redirect = ""

    @property
    def contents(self) -> list[dict[str, Any]]:
        return [content for _, content in self.received]

    @property
    def parts(self) -> list[str]:
        """The names of the parts that it was told of, each once: those that come twice have the same id."""
        return [content["name"] for content in once(self.contents)]


def once(contents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without those that came before."""
    return list({content["id"]: content for content in contents}.values())


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def do_POST(self) -> None:
        receiver = self.receiver
        receiver.tried += 1
        content = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = receiver.answers.pop(0) if receiver.answers else 200
        if isinstance(answer, float):
            time.sleep(answer)
            return  # and closes the connection without a word
        if answer < 300:
            receiver.received.append(({name.lower(): text for name, text in self.headers.items()}, content))
        self.send_response(answer)
        if receiver.redirect:
            self.send_header("location", receiver.redirect)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def receive(port: int = 0, certificate: tuple[Path, Path] | None = None) -> Iterator[Receiver]:
    """An HTTP server on this machine; with a certificate and its key an HTTPS server."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    receiver = Receiver("http" if certificate is None else "https", server.server_address[1])
    handler.receiver = receiver  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # senders that hang up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# MQTT -----------------------------------------------------------------------------------------------------------------


class Broker:
    """Debian's mosquitto on a port of its own; it can be killed and started again, and knows its sessions then."""

    def __init__(self, folder: Path, *settings: str) -> None:
        path = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if path is None:
            pytest.skip("needs an MQTT broker: apt-get install mosquitto")
        self.port = free_port()
        user = "root" if os.name == "posix" and os.geteuid() == 0 else ""
        lines = [f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {folder}/"]
        lines += ["autosave_interval 1", "autosave_on_changes true", *settings, *([f"user {user}"] if user else [])]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._command = [path, "-c", str(folder / "mosquitto.conf")]
        self._log = folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_for(self._answers, START_S)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


@contextmanager
def broker(folder: Path, *settings: str) -> Iterator[Broker]:
    folder.mkdir()
    found = Broker(folder, *settings)
    found.start()
    try:
        yield found
    finally:
        found.kill()


@contextmanager
def subscribe(
    port: int, topic: str, prepare: Callable[[paho.Client], None] = lambda client: None
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Listen to a topic in a session that outlives the connection: the quality and the content of each message."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False)
    client.reconnect_delay_set(0.05, 0.2)  # type: ignore[arg-type]
    received: list[tuple[int, dict[str, Any]]] = []
    ready = threading.Event()
    client.on_message = lambda _, __, message: received.append((message.qos, json.loads(message.payload)))
    client.on_connect = lambda *_: client.subscribe(topic, 2)
    client.on_subscribe = lambda *_: ready.set()
    prepare(client)
    client.connect("localhost", port)
    client.loop_start()
    try:
        assert ready.wait(START_S)
        yield received
    finally:
        client.disconnect()
        client.loop_stop()


# A service ------------------------------------------------------------------------------------------------------------


@contextmanager
def serve_brightness(data: Path, *products: Path) -> Iterator[subprocess.Popen[str]]:
    """A service in a process of its own, at work; it ends when its input is closed, and is killed at the end."""
    script = Path(__file__).with_name("serve_brightness.py")
    command = [sys.executable, str(script), str(data), *map(str, products)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "Started\n"
            yield process
        finally:
            process.kill()
