"""How fast this machine segments latents of given shapes, and how fast a model predicts, phase by phase."""

from __future__ import annotations

import importlib.util
import itertools
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import __version__, segmentation
from .arrays import output_size
from .images import ImageLike, batches
from .predictor import Predictor
from .scoring import Evidence
from .threshold import CalibratedThreshold, DecisionRule, PaperThreshold
from .tiling import evidence_of_tiles

if TYPE_CHECKING:
    from .detector import Detector

__all__ = ["Measurement", "Step", "cores", "end_to_end", "machine", "measure", "steps", "table"]


@dataclass(frozen=True)
class Step:
    """One thing to time: `function` does the work of `images` images."""

    phase: str
    threads: int
    images: int
    function: Callable[[], object]
    pixels: int | None = None  # of one image, where the time per pixel says something


@dataclass(frozen=True)
class Measurement:
    """Times of a step: median and 99th percentile over its repeats, in milliseconds an image.

    `threads` is None where the network's library decides; `ms_median` of a stream is the mean over it.
    """

    phase: str
    threads: int | None
    ms_median: float
    ms_p99: float
    images_per_second: float
    ns_per_pixel: float | None


def steps(
    shapes: Sequence[tuple[int, int, int]],
    size: int | tuple[int, int] = 256,
    batch: int = 16,
    threads: Sequence[int] = (1,),
    threshold: DecisionRule | None = None,
) -> list[Step]:
    """List what there is to time for a batch of standard normal latents.

    Args:
        shapes: (C, H, W) of the latents, per scale.
        size: of the log NFA maps: a side or (H, W).
        batch: images a call.
        threads: numbers of worker threads to compare.
        threshold: a detector's; None is the paper's. A calibrated one takes a thread a core, whatever `threads` says.

    Returns:
        "max-tree HxW" of every scale; and, per number of threads, "energy" (latents to energies), "segmentation"
        (energies to log NFA) and "log_nfa" (both).

    Raises:
        ValueError: no shapes, or anything not positive; latents that do not fit into memory.

    >>> [step.phase for step in steps([(8, 6, 6)], size=12, batch=2)]
    ['max-tree 6x6', 'energy', 'segmentation', 'log_nfa']
    """
    _check(shapes, batch, threads)
    size, threshold = output_size(size), threshold or PaperThreshold()
    latents, dof = _normal_latents(shapes, batch), [shape[0] for shape in shapes]
    distances = _normal_distances(threshold, shapes, batch)
    evidence = Evidence(segmentation.energies(latents), distances)

    def tree(image: Any) -> Callable[[], object]:
        return lambda: segmentation.max_tree(image)

    def energy(count: int) -> Callable[[], object]:
        return lambda: segmentation.energies(latents, count)

    def from_energies(count: int) -> Callable[[], object]:
        return lambda: _log_nfa(threshold, evidence, dof, size, count)

    def whole(count: int) -> Callable[[], object]:
        return lambda: _log_nfa(threshold, Evidence(segmentation.energies(latents, count), distances), dof, size, count)

    found = [Step(f"max-tree {_times(e.shape[1:])}", 1, 1, tree(e[0]), e[0].size) for e in evidence.energies]
    found += [Step("energy", count, batch, energy(count)) for count in threads]
    counts = threads if isinstance(threshold, PaperThreshold) else [cores()]
    found += [Step("segmentation", count, batch, from_energies(count)) for count in counts]
    found += [Step("log_nfa", count, batch, whole(count)) for count in counts]
    return found


def _check(shapes: Sequence[tuple[int, int, int]], batch: int, threads: Sequence[int]) -> None:
    if not shapes:
        raise ValueError("at least one shape of latents is needed, such as 816x28x28")
    for shape in shapes:
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a shape of latents is CHANNELSxHEIGHTxWIDTH, all positive; got {_times(shape)}")
    if batch < 1:
        raise ValueError(f"the batch must have at least 1 image, got {batch}")
    if not threads or min(threads) < 1:
        raise ValueError(f"the number of threads must be at least 1, got {list(threads)}")


def _normal_latents(shapes: Sequence[tuple[int, int, int]], batch: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    try:
        return [rng.standard_normal((batch, *shape), np.float32) for shape in shapes]
    except (MemoryError, ValueError):  # ValueError: more bytes than a pointer can count
        gigabytes = sum(4 * batch * np.prod(shape, dtype=float) for shape in shapes) / 1e9
        raise ValueError(
            f"{batch} images of latents {', '.join(map(_times, shapes))} need {gigabytes:.3g} GB, more than there is"
        ) from None


def _normal_distances(threshold: DecisionRule, shapes: Sequence[tuple[int, int, int]], batch: int) -> list[Any]:
    """As many distances to good images as a threshold asks for."""
    count = len(threshold.weights.distances) if isinstance(threshold, CalibratedThreshold) else 0
    rng = np.random.default_rng(1)
    return [np.square(rng.standard_normal((batch, height, width), np.float32)) for _, height, width in shapes[:count]]


def _log_nfa(
    threshold: DecisionRule, evidence: Evidence, dof: Sequence[int], size: tuple[int, int], threads: int
) -> Any:
    """What the threshold gives; the paper's on so many threads."""
    if not isinstance(threshold, PaperThreshold):
        return threshold.log_nfa(evidence, dof, size)
    tests = threshold.tail, threshold.n_tests
    return segmentation.log_nfa_from_energies(evidence.energies, dof, size, *tests, threads=threads)


def measure(step: Step, repeats: int = 100) -> Measurement:
    """Time a step: one call to warm up, then `repeats` calls one by one.

    >>> measure(Step("nothing", 1, 4, lambda: None), repeats=3).phase
    'nothing'
    """
    if repeats < 1:
        raise ValueError(f"the number of repeats must be at least 1, got {repeats}")
    step.function()
    seconds = np.empty(repeats)
    for i in range(repeats):
        start = time.perf_counter()
        step.function()
        seconds[i] = time.perf_counter() - start
    return _measurement(step.phase, step.threads, seconds / step.images, step.pixels)


def end_to_end(
    predictor: Predictor | Detector, images: Sequence[ImageLike], batch: int = 8, repeats: int = 100
) -> Iterator[Measurement]:
    """Measure predictions from image to regions: the latency of one image, by phase, and the throughput of a stream.

    Args:
        predictor: a detector or an exported model.
        images: at least one; they are taken in turn.
        batch: images, or tiles, that pass through the network together in the stream.
        repeats: images to predict one by one, after one to warm up; the stream has as many.

    Yields:
        "read", "resize", the network's phases, "segmentation" (energies to maps, mask and regions), "one image" (their
        sum: the latency), and "stream, batch N", whose times are those between two predictions.

    Raises:
        ValueError: no images, or a batch or number of repeats below 1.
    """
    if not images:
        raise ValueError("at least one image is needed")
    if min(batch, repeats) < 1:
        raise ValueError(f"the batch and the number of repeats must be at least 1, got {batch} and {repeats}")
    own = predictor if isinstance(predictor, Predictor) else predictor.predictor
    source = itertools.cycle(images)
    runs = [_phases(own, next(source), batch) for _ in range(repeats + 1)][1:]
    for phase in runs[0]:
        yield _measurement(phase, None, np.array([run[phase] for run in runs]))
    yield _measurement("one image", None, np.array([sum(run.values()) for run in runs]))
    times = [time.perf_counter()]
    for _ in predictor.stream(itertools.islice(source, batch + repeats), batch):
        times.append(time.perf_counter())
    steady = np.array(times[batch:])  # without the time until the first are through
    measurement = _measurement(f"stream, batch {batch}", None, np.diff(steady))
    rate = (len(steady) - 1) / (steady[-1] - steady[0])
    yield replace(measurement, ms_median=1e3 / rate, images_per_second=rate)


def _phases(predictor: Predictor, source: ImageLike, batch: int) -> dict[str, float]:
    """Seconds of each phase of one image's prediction."""
    laps = _Laps()
    image = predictor.read(source)
    laps.end("read")
    tiling = predictor.tiling(image)
    found = []
    for tiles in batches(tiling.cut(image), batch):
        value: Any = np.stack(tiles)
        laps.end("resize")
        for phase, function in predictor.network.phases():
            value = function(value)
            laps.end(phase)
        found.append(value)
    (evidence,) = evidence_of_tiles([tiling], found)
    predictor.judge(source, image, evidence)
    laps.end("segmentation")
    return laps.seconds


class _Laps:
    """Seconds of phases that follow one another, each perhaps several times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def end(self, phase: str) -> None:
        """The phase that began where the last one ended is over."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
        self.last = now


def _measurement(
    phase: str, threads: int | None, seconds: NDArray[np.float64], pixels: int | None = None
) -> Measurement:
    median = float(np.median(seconds))
    return Measurement(
        phase=phase,
        threads=threads,
        ms_median=1e3 * median,
        ms_p99=1e3 * float(np.percentile(seconds, 99)),
        images_per_second=1 / median,
        ns_per_pixel=None if pixels is None else 1e9 * median / pixels,
    )


def table(measurements: Sequence[Measurement]) -> list[list[str]]:
    """Header, and a row a measurement.

    >>> table([Measurement("energy", 1, 0.5, 0.75, 2000.0, None)])[1]
    ['energy', '1', '0.5', '0.75', '2,000', '']
    """
    rows = [["phase", "threads", "ms/image", "p99", "images/s", "ns/pixel"]]
    for m in measurements:
        pixel = "" if m.ns_per_pixel is None else f"{m.ns_per_pixel:.3g}"
        rate = f"{float(f'{m.images_per_second:.3g}'):,.10g}"
        threads = "" if m.threads is None else str(m.threads)
        rows.append([m.phase, threads, f"{m.ms_median:.3g}", f"{m.ms_p99:.3g}", rate, pixel])
    return rows


def machine() -> dict[str, Any]:
    """Say what figures depend on: processor, its cores and caches, system, compiler of the core, versions."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "caches": _caches(),
        "system": platform.platform(),
        "compiler": _compiler(),
        "versions": {
            "python": platform.python_version(),
            "uflow": __version__,
            "numpy": np.__version__,
        },
    }


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """{"L1d": "32K", ...} of core 0; empty where the system does not tell."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        found[f"L{level}{ {'Data': 'd', 'Instruction': 'i'}.get(kind, '') }"] = size
    return found


def _compiler() -> str:
    """As the compiler wrote it into the extension; "unknown" where it did not."""
    spec = importlib.util.find_spec("uflow._core")
    binary = Path(spec.origin).read_bytes() if spec and spec.origin else b""
    match = re.search(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", binary)
    return match[0].decode() if match else "unknown"
