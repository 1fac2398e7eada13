"""Draws docs/guide/service-page.png: the live view of `uflow serve`, as a browser shows it.

    python docs/make_service_page.py MODEL IMAGES [--output docs/guide/service-page.png]

Sends the images of a folder of test images, such as data/tile/test, to a service of its own; half a minute. Needs
playwright and a Chromium.
"""

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path

import httpx2
from playwright.sync_api import sync_playwright

from uflow.listing import list_images
from uflow.serve.app import Web, make_app
from uflow.serve.pages import page_routes
from uflow.serve.run import listen, make_server
from uflow.serve.service import Service

BROWSER = "/usr/bin/chromium"
SIZE = {"width": 1280, "height": 900}


def choose(folder: Path, count: int) -> list[Path]:
    """Some good images of a test set, and a defective one as the last but one."""
    rng = random.Random(4)
    paths = list_images(folder)
    good = [path for path in paths if path.parent.name == "good"]
    defective = [path for path in paths if path.parent.name != "good"]
    found = [rng.choice(good) for _ in range(count)]
    for place in (count // 3, count - 1):
        found[place] = rng.choice(defective)
    return found


def main() -> None:
    """Serve, send, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="a folder of test images, with good/ and others in it")
    parser.add_argument("--count", type=int, default=60, help="images sent")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("guide") / "service-page.png")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "product.toml"
        file.write_text(f'name = "{asked.model.stem}"\nmodel = "{asked.model.absolute().as_posix()}"\n')
        web = Web(Service([file], Path(scratch) / "data"))
        bound = listen("127.0.0.1", 0)
        server = make_server(make_app(web, page_routes(web)), web.service.limits.request_s)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            time.sleep(0.1)
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        for path in choose(asked.images, asked.count):
            where = f"{address}/v1/products/{asked.model.stem}/predict"
            httpx2.post(where, content=path.read_bytes(), params={"name": path.name}, timeout=60).raise_for_status()
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE, locale="en-GB")
            page.goto(f"{address}/products/{asked.model.stem}")
            page.wait_for_selector(".tile .photo")
            page.evaluate("Promise.all([...document.images].map((each) => each.decode()))")
            page.screenshot(path=asked.output)
            browser.close()
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
