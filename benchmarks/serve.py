"""What does the service cost beside `predict` alone? Prints the tables of docs/guide/service.md.

    python benchmarks/serve.py MODEL IMAGES [--width 2448] [--parts 200] [--senders 4] [--long 20000] [--many 1000000]

A service on loopback, in a process of its own, and `predict` alone in this process, in turns, image by image: the same
threads of the network. Sent one after another (what a part waits), then by several senders at once (parts a second).
`--width` enlarges the images first, to those of a larger camera, as JPEG files.
`--long` sends so many parts and prints how much memory the service holds; `--many` fills a store with so many rows, and
times what a page asks of it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

import uflow
from uflow.images import list_images
from uflow.serve.parts import Filter
from uflow.serve.store import Store

START_S = 120
PAGE_S = 10_000  # seconds that the parts of --many are apart, all together a thousandth


@contextmanager
def service(model: Path, folder: Path) -> Iterator[tuple[httpx2.Client, int]]:
    """A service of one product, and its process."""
    products = folder / "products"
    products.mkdir()
    (products / "part.toml").write_text(f'name = "part"\nmodel = "{model.resolve().as_posix()}"\n')
    log = folder / "log"
    command = [sys.executable, "-m", "uflow", "serve", str(products), "--data", str(folder / "data"), "--port", "0"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_S
        while "Serving" not in log.read_text() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        if "Serving" not in log.read_text():
            raise RuntimeError(f"the service did not start: {log.read_text()}")
        address = log.read_text().partition(" on ")[2].partition(";")[0]
        time.sleep(1)
        with httpx2.Client(base_url=address, timeout=START_S) as client:
            yield client, process.pid
    finally:
        process.terminate()
        process.wait()


def content_of(path: Path, width: int) -> bytes:
    """The content of an image's file, enlarged to so many pixels unless that is 0."""
    if not width:
        return path.read_bytes()
    file = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").resize((width, width * image.height // image.width)).save(file, "jpeg", quality=92)
    return file.getvalue()


def send(client: httpx2.Client, content: bytes) -> None:
    answer = client.post("/v1/products/part/predict", content=content)
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text}")


def seconds_each(work: Callable[[bytes], object], images: Sequence[bytes]) -> list[float]:
    """How long each image takes, one after another."""
    found = []
    for image in images:
        began = time.perf_counter()
        work(image)
        found.append(time.perf_counter() - began)
    return found


def rate(client: httpx2.Client, images: Sequence[bytes], senders: int) -> float:
    """Parts a second of several senders at once."""
    began = time.perf_counter()
    with ThreadPoolExecutor(senders) as pool:
        list(pool.map(lambda image: send(client, image), images))
    return len(images) / (time.perf_counter() - began)


def memory_mb(pid: int) -> float:
    """What a process holds in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has taken, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def row(name: str, times: Sequence[float], cpu: float) -> str:
    median, high = np.median(times) * 1e3, np.quantile(times, 0.99) * 1e3
    each = cpu / len(times) * 1e3
    return f"| {name} | {len(times) / sum(times):.1f} | {median:.1f} ms | {high:.1f} ms | {each:.1f} ms |"


def compare(model: Path, images: Sequence[bytes], parts: int, senders: int, long: int) -> dict[str, object]:
    """Measure, print, and return the figures."""
    loaded = uflow.load(model)
    predictor = getattr(loaded, "predictor", loaded)
    chosen = [images[i % len(images)] for i in range(parts)]
    alone: list[float] = []
    served: list[float] = []
    with tempfile.TemporaryDirectory() as temporary, service(model, Path(temporary)) as (client, pid):
        for warm in chosen[:5]:
            predictor.predict(warm)
            send(client, warm)
        cpu, before = [0.0, 0.0], cpu_s(pid)
        for image in chosen:  # in turns, so that both find the processor's caches as a part now and then does
            began = time.process_time()
            alone += seconds_each(predictor.predict, [image])
            cpu[0] += time.process_time() - began
            served += seconds_each(lambda image: send(client, image), [image])
        cpu[1] = cpu_s(pid) - before
        together = rate(client, chosen, senders)
        print("| | parts a second | median | 99th percentile | processor |\n| --- | ---: | ---: | ---: | ---: |")
        print(row("`predict` alone", alone, cpu[0]))
        print(row("the service, one sender", served, cpu[1]))
        print(f"| the service, {senders} senders | {together:.1f} | | | |")
        overhead = float(np.median(served) - np.median(alone))
        print(f"\nOverhead: {overhead * 1e3:.1f} ms, {overhead / np.median(alone):.1%} of the median")
        memory = hold_on(client, pid, images, long, senders)
    return {"alone_s": alone, "served_s": served, "together_a_second": together, "memory_mb": memory}


def hold_on(client: httpx2.Client, pid: int, images: Sequence[bytes], long: int, senders: int) -> list[float]:
    """Memory of the service while many parts are sent: ten figures."""
    found: list[float] = []
    if long:
        print("\n| parts | memory |\n| ---: | ---: |")
    for tenth in range(10 if long else 0):
        rate(client, [images[i % len(images)] for i in range(long // 10)], senders)
        found.append(memory_mb(pid))
        print(f"| {(tenth + 1) * (long // 10)} | {found[-1]:.0f} MB |", flush=True)
    return found


def time_many(count: int) -> dict[str, float]:
    """Seconds that each question of a page takes, of a store with many parts; the slowest of five."""
    with tempfile.TemporaryDirectory() as temporary:
        store = Store(Path(temporary))
        now = time.time()
        rng = np.random.default_rng(0)
        p_values = rng.integers(1, 101, count) / 100
        line = json.dumps({"image": "part.png", "regions": []} | {f"entry_{i}": i / 7 for i in range(14)})
        rows = (
            (
                i + 1,
                f"{i}.png",
                "0" * 64,
                now - (count - i),
                ("reject", "look", "good")[(p > 0.02) + (p > 0.05)],
                p,
                line,
            )
            for i, p in enumerate(p_values.tolist())
        )
        with store._database.write() as database:
            database.executemany(
                "INSERT INTO parts (id, product, name, sha256, received, state, verdict, p_value, line) "
                "VALUES (?, 'part', ?, ?, ?, 'judged', ?, ?, ?)",
                rows,
            )
        middle, shift = now - count / 2, now - 8 * 3600
        questions: dict[str, Callable[[], object]] = {
            "the last 50 parts": lambda: store.parts("part"),
            "50 parts in the middle": lambda: store.parts("part", before=middle),
            "50 rejected parts in the middle": lambda: store.parts("part", Filter(verdict="reject"), before=middle),
            "a part by its name": lambda: store.parts("part", Filter(name=f"{count // 3}.png")),
            "counts of a shift of 8 hours": lambda: store.counts("part", shift),
            "the last 1000 p-values": lambda: store.p_values("part"),
            "what another alpha had flagged in 24 hours": lambda: store.flagged_at("part", 0.03, now - 24 * 3600),
            "size of the pictures": store.pictures_size,
        }
        found = {name: max(seconds_each(lambda _, ask=ask: ask(), [b""] * 5)) for name, ask in questions.items()}
        store.close()
    print(f"\n| of {count} parts, one a second | |\n| --- | ---: |")
    for name, seconds in found.items():
        print(f"| {name} | {seconds * 1e3:.1f} ms |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="model file or exported folder")
    parser.add_argument("images", nargs="?", help="folder of images")
    parser.add_argument("--width", type=int, default=0, help="pixels; the images as they are, if not said")
    parser.add_argument("--parts", type=int, default=200)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--long", type=int, default=0, help="parts sent to see the memory")
    parser.add_argument("--many", type=int, default=0, help="rows of a store")
    arguments = parser.parse_args()
    print(f"uflow {uflow.__version__}, {os.cpu_count()} processors")
    if arguments.model is not None:
        images = [content_of(path, arguments.width) for path in list_images(arguments.images)]
        compare(arguments.model, images, arguments.parts, arguments.senders, arguments.long)
    if arguments.many:
        time_many(arguments.many)


if __name__ == "__main__":
    main()
