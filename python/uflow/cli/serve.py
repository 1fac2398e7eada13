"""`uflow serve`."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..extras import require
from .app import app
from .common import check_output_folder, note, shows_bars
from .options import DeviceOption

if TYPE_CHECKING:
    from ..serve.service import Limits, Service

DEMO_EVERY_S = 1


@app.command(epilog="Example: uflow serve products/ --data line_1")
def serve(
    products: Annotated[Path | None, typer.Argument(help="folder of product.toml files")] = None,
    data: Annotated[Path, typer.Option(help="folder where parts, verdicts and pictures are kept")] = Path("uflow_data"),
    host: Annotated[
        str, typer.Option(help="address to listen on; beyond this machine only with --tokens")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes one that is free")] = 8000,
    tokens: Annotated[Path | None, typer.Option(help="TOML file of tokens and their roles")] = None,
    queue: Annotated[int, typer.Option(help="parts of a product that wait at most; others are answered 503")] = 32,
    time_limit: Annotated[float, typer.Option(help="seconds a request may take")] = 30,
    max_upload: Annotated[int, typer.Option(help="MB of an image file")] = 64,
    max_pixels: Annotated[int, typer.Option(help="refuse larger images")] = 50_000_000,
    max_pictures: Annotated[float, typer.Option(help="GB of pictures that are kept; the oldest go first")] = 20,
    device: DeviceOption = "auto",
    demo: Annotated[bool, typer.Option("--demo", help="two made products, and parts of them every second")] = False,
) -> None:
    """A service on the line: images come by HTTP, verdicts go back and are kept."""
    require("serve", "starlette", "uvicorn", "python_multipart", "prometheus_client", "filelock", "paho")
    from ..images import set_max_pixels
    from ..processes import only_one
    from ..serve.app import Web, make_app
    from ..serve.pages import page_routes
    from ..serve.run import is_local, listen, run
    from ..serve.security import Tokens
    from ..serve.service import Limits, Service

    upload, pictures = max_upload << 20, int(max_pictures * (1 << 30))
    limits = Limits(queue, time_limit, upload, pixels=max_pixels, pictures_bytes=pictures)
    set_max_pixels(limits.pixels)
    known = None if tokens is None else Tokens(tokens)
    _check_products(products, demo)
    with listen(host, port) as bound:
        if known is None and not is_local(bound):
            raise ValueError(f"--host {host} can be reached from other machines: name a file of tokens by --tokens")
        check_data(data)
        with only_one(data / "lock", f"uflow serve --data {data}"):
            if products is None:
                service = _make_demo(data, limits, device)
            else:
                service = Service(products, data, limits, device=device)
            _say_where(service, bound.getsockname())
            web = Web(service, known)
            run(make_app(web, page_routes(web)), bound, limits.request_s)
    note("Ended: all that was accepted is judged and stored", err=True)


def _check_products(products: Path | None, demo: bool) -> None:
    """Raise ValueError, or FileNotFoundError, where there is no product file; the demo makes its own."""
    from ..serve.service import find_products

    if demo == (products is not None):
        raise ValueError("name a folder of product files, or --demo, which makes its own")
    if products is not None:
        find_products(products)


def check_data(folder: Path) -> None:
    """OSError, one line, where nothing can be written into a folder; all is well where its disk only became full.

    Then the service judges and says so, as it does where the disk becomes full while it runs.
    """
    from ..serve.store import DATABASE

    try:
        check_output_folder(folder, "--data")
    except OSError as error:
        is_full = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOSPC
        if not (is_full and (folder / DATABASE).is_file()):
            raise


def _make_demo(data: Path, limits: Limits, device: str) -> Service:
    """A service of two made products, to which parts come by themselves."""
    require("demo", "torch", "skimage")
    from ..demo import make_line
    from ..serve.playback import Playback
    from ..serve.service import Service

    tests = make_line(data / "demo", device=device, progress=shows_bars())
    service = Service(data / "demo/products", data, limits, device=device)
    service.companions.append(Playback(service, tests, DEMO_EVERY_S))
    return service


def _say_where(service: Service, address: tuple[object, ...]) -> None:
    host, port = str(address[0]), address[1]
    shown = f"[{host}]" if ":" in host else host
    note(f"Serving {', '.join(service.judges)} on http://{shown}:{port}; Ctrl-C ends it", err=True)
