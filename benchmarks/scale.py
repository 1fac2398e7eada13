"""Batch prediction by Ray: how long actors take to start, and how many images a second one and two of them judge.

python benchmarks/scale.py data/hazelnut_toy --images 240

A model of one epoch at 256 x 256, which takes the same time as one of many; copies of the test images. The rate is
that between the first and the last part of the output: what comes before is the start. Processor time is of one
process on one thread, by itself: of a start with one image, and of each image after it.
"""

from __future__ import annotations

import io
import itertools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow
import ray
import tables
import torch
import trained
from pyarrow import parquet

from uflow.detector import Detector
from uflow.interop import ray as by_ray
from uflow.interop.tables import TablePredictor
from uflow.training import TrainingSettings

SIZE = 256  # of the network's input


def copies(sources: list[Path], count: int, folder: Path) -> int:
    """Fill a folder with copies of images; gives their bytes."""
    folder.mkdir()
    for number, source in zip(range(count), itertools.cycle(sources), strict=False):
        shutil.copy(source, folder / f"{number:06}{source.suffix}")
    return sum(path.stat().st_size for path in folder.iterdir())


def measure(source: Path, output: Path, model: Path, actors: int, rows_a_part: int) -> dict[str, float]:
    """One run: seconds to the first part, images a second after it, bytes of results an image."""
    done: list[tuple[float, int]] = []
    started = time.perf_counter()
    predictor = TablePredictor(str(model), device="cpu")
    by_ray.predict(
        str(source),
        str(output),
        predictor,
        actors,
        rows_a_part=rows_a_part,
        on_images=lambda count: done.append((time.perf_counter(), count)),
    )
    (first, at_first), (last, _) = done[0], done[-1]
    images = sum(count for _, count in done)
    written = sum(path.stat().st_size for path in output.glob("*.parquet"))
    rate = (images - at_first) / max(last - first, 1e-9)
    return {"start": first - started - at_first * actors / rate, "rate": rate, "bytes": written / images}


def path_table(folder: Path) -> pyarrow.Table:
    """The images of a folder, as a table."""
    return pyarrow.table({"path": [str(path) for path in sorted(folder.iterdir())]})


def processor_time(source: Path, model: Path) -> dict[str, float]:
    """Seconds of a process that starts and judges one image; of each image after it."""
    images = [str(path) for path in sorted(source.iterdir())]
    code = "import sys; from uflow.interop.tables import TablePredictor as T; T(sys.argv[1], device='cpu')"
    first, more = (
        _seconds("-c", f"{code}.predict_rows(sys.argv[2:])", str(model), *images[:count]) for count in (1, len(images))
    )
    return {"start": first, "image": (more - first) / (len(images) - 1)}


def _seconds(*arguments: str) -> float:
    """Processor time of a Python process on one thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Train, predict with one and two actors, print, write."""
    parser = trained.options(__doc__, "scale.json")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--without-ray", action="store_true", help="processor time alone, which others do not stretch")
    arguments = parser.parse_args()
    dataset = trained.category(arguments.roots[0])
    torch.set_num_threads(1)
    settings = TrainingSettings(epochs=1, augment=False)
    size, count = (64, 24) if arguments.quick else (SIZE, arguments.images)
    detector = Detector.fit(dataset.train, image_size=size, settings=settings, alpha=0.2, device="cpu", progress=False)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="uflow-scale-") as home:
        model, source = Path(home, "model.uflow"), Path(home, "images")
        detector.save(model)
        read = copies([sample.path for sample in dataset.test], count, source)
        alone = processor_time(source, model)
        if not arguments.without_ray:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
            for actors in (1,) if arguments.quick else (1, 2):
                found[str(actors)] = measure(source, Path(home, str(actors)), model, actors, max(count // 24, 2))
            ray.shutdown()
        results = TablePredictor(str(model), device="cpu").predict_arrow(path_table(source))
    sink = io.BytesIO()
    parquet.write_table(results, sink, compression="zstd")
    written = len(sink.getvalue()) / count
    rows = [["actors of one thread", "start, s", "images/s after it", "bytes of results an image"]]
    rows += [[n, f"{f['start']:.1f}", f"{f['rate']:.1f}", f"{f['bytes']:.0f}"] for n, f in found.items()]
    print(f"{count} images of {read / count / 1e3:.0f} kB, a model of {size} x {size}\n")
    if found:
        print(tables.markdown(rows) + "\n")
    print(f"results: {written:.0f} bytes an image")
    print(f"processor time: {alone['start']:.1f} s of a start, {1e3 * alone['image']:.0f} ms an image")
    trained.write(
        arguments,
        [],
        ("torch", "ray"),
        actors=found,
        processor_time=alone,
        images=count,
        bytes_an_image=read / count,
        bytes_of_results=written,
    )


if __name__ == "__main__":
    main()
