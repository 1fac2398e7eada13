"""A service in a process of its own, for tests that ask it as a client does."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from conftest import texture, wait_for
from uflow.serve.app import Web, make_app
from uflow.serve.pages import page_routes
from uflow.serve.run import listen, make_server
from uflow.serve.security import Tokens
from uflow.serve.service import Service

START_S = 60  # under which a service starts, on a machine that does much else


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def good_part(seed: int = 0) -> bytes:
    """A part of the data set of conftest.py, as a file."""
    return png(texture(np.random.default_rng(seed)))


def defective_part(seed: int = 0) -> bytes:
    """One with a pale square."""
    image = texture(np.random.default_rng(seed))
    image[20:50, 30:60] = image[20:50, 30:60] // 2 + 90
    return png(image)


def write_product(folder: Path, name: str, model: Path, more: str = "") -> Path:
    """A product file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(f'name = "{name}"\nmodel = "{model.as_posix()}"\n{more}')
    return path


class Served:
    """A service that runs: its process, and a client that asks it."""

    def __init__(self, process: subprocess.Popen[str], client: httpx2.Client, log: Path) -> None:
        self.process, self.client, self.log = process, client, log

    def predict(self, content: bytes, product: str = "tile", **query: str) -> httpx2.Response:
        return self.client.post(f"/v1/products/{product}/predict", content=content, params=query)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(START_S)


@contextmanager
def serve(products: Path, data: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Served]:
    """`uflow serve` on a free port of this machine, ready to be asked; it is killed at the end if it still runs."""
    data.parent.mkdir(parents=True, exist_ok=True)
    log = data.parent / f"{data.name}.log"
    command = [sys.executable, "-m", "uflow", "serve", str(products), "--data", str(data), "--port", "0", *options]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
        )
    try:
        wait_for(lambda: "Serving" in log.read_text() or process.poll() is not None, START_S)
        assert process.poll() is None, log.read_text()
        address = log.read_text().partition(" on http://")[2].partition(";")[0]
        with httpx2.Client(base_url=f"http://{address}", timeout=START_S) as client:
            wait_for(lambda: _answers(client), START_S)
            yield Served(process, client, log)
    finally:
        process.kill()
        process.wait()


@contextmanager
def serve_here(service: Service, tokens: Tokens | None = None) -> Iterator[httpx2.Client]:
    """A service in this process, asked over a real connection: for tests that make it fail from inside."""
    bound = listen("127.0.0.1", 0)
    web = Web(service, tokens)
    server = make_server(make_app(web, page_routes(web)), service.limits.request_s)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=START_S) as client:
            wait_for(lambda: server.started or not thread.is_alive(), START_S)
            yield client
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/version").is_success
    except httpx2.TransportError:
        return False


def result(response: httpx2.Response) -> dict[str, Any]:
    """The JSON of an answer that is no refusal."""
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


@contextmanager
def mount_small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 2 MB in a new folder; the test is skipped where none can be mounted."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_disk(disk: Path) -> None:
    """Leave no room on a disk: `ballast` in it takes all."""
    with (disk / "ballast").open("ab", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(512))
