"""U-Flow beside other methods: the same split, input size, frozen features and figures, each in a process of its own.

A method is a function of the good images' files, the settings and a seed; it learns, and returns the (height, width) of
the images it takes and what scores them. There are those named here, and any other as ``module:function``. The methods
of anomalib come with its own training steps and optimizers, on our frozen backbone.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import math
import pickle
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from .. import __version__
from ..backbones import create_backbone
from ..detector import Detector
from ..features import image_tensor
from ..files import atomic_write
from ..images import batches, read_image, resize_image
from ..memory import greedy_coreset
from ..training import TrainingSettings
from . import evaluation, published
from . import tables as report
from .datasets import Dataset
from .evaluation import Judged

__all__ = ["METHODS", "Method", "Result", "Settings", "compare", "markdown"]

PUBLISHED = "Tailanian et al., JMIV 2024"
SIZE = 256  # of the maps and masks compared
BATCH = 16  # images a training step
STEPS = 200  # training steps of a trained rival, unless epochs are given
VECTORS = 20_000  # neighbours: normal vectors kept, drawn at random
SMOOTHING = 4.0  # neighbours: pixels of the map of SIZE
CANDIDATES = 100_000  # patchcore: vectors that the coreset is chosen from, drawn at random where there are more

Scorer = Callable[[Tensor], tuple[Tensor, Tensor]]  # images (B, 3, H, W) in [0, 1] -> maps (B, h, w), scores (B,)
Size = tuple[int, int]
Method = Callable[[Sequence[Path], "Settings", int], tuple[Size, Scorer]]


@dataclass(frozen=True)
class Settings:
    """What all methods have in common.

    Attributes:
        backbone: name of the frozen features, see `backbones.create_backbone`.
        image_size: side of the network's input; None is the backbone's own.
        epochs: passes over the good images of the trained rivals; None is as many as make `STEPS` steps.

    Raises:
        ValueError: below 1.
    """

    backbone: str = "efficientnet_lite0"
    image_size: int | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Result:
    """One method on one category with one seed: figures, cost, or why there are none.

    Attributes:
        epochs: passes over the good images; None for a method that learns in one.
        pixel_auroc, aupro, image_auroc, miou, miou_fair, miou_best: as in `evaluation.Evaluation`.
        fit_s, fit_cpu_s: seconds to learn, by the clock and of processors (which other programs do not lengthen).
        predict_ms, predict_cpu_ms: milliseconds for a test image from its file, also by the clock and of processors.
        memory_mb: the most memory that the process held, libraries included; None where the system does not say.
        failure: why it failed, one line.
    """

    category: str
    method: str
    seed: int
    epochs: int | None = None
    pixel_auroc: float | None = None
    aupro: float | None = None
    image_auroc: float | None = None
    miou: float | None = None
    miou_fair: float | None = None
    miou_best: float | None = None
    fit_s: float | None = None
    fit_cpu_s: float | None = None
    predict_ms: float | None = None
    predict_cpu_ms: float | None = None
    memory_mb: float | None = None
    failure: str | None = None


# ---- running


def compare(
    categories: Sequence[Dataset],
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    settings: Settings | None = None,
    on_start: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Measure every method on every category with every seed, and write the table after each.

    `output` gets ``comparison.md``, ``.csv`` and ``.json``, and what each process printed in ``logs``. Results that the
    folder holds already are not measured again, unless they are failures; those of other settings are an error.

    Args:
        categories: what to learn from and to test on.
        methods: names of `METHODS`, or ``module:function`` for a `Method` of one's own.
        seeds: of all that is random in a method.
        output: folder.
        settings: common to all; None is the defaults.
        on_start: called with what is measured next.

    Returns:
        All results of the folder that were asked for, in the order asked for.

    Raises:
        ValueError: no such method, or the folder holds results of other settings.
        ImportError: a method needs anomalib and it is not installed.
    """
    settings = settings or Settings()
    check_methods(methods)
    output.mkdir(parents=True, exist_ok=True)
    results = _read(output / "comparison.json", settings)
    wanted: list[Result] = []
    total = len(categories) * len(methods) * len(seeds)
    for category in categories:
        for method in methods:
            epochs = _epochs(method, len(category.train), settings)
            for seed in seeds:
                key = (category.name, method, seed, epochs)
                found = next((r for r in results if _key(r) == key), None)
                if found is None or found.failure is not None:
                    on_start(f"{len(wanted) + 1}/{total} {category.name}, {method}, seed {seed}")
                    results = [r for r in results if r is not found]
                    found = _in_own_process(category, method, seed, epochs, settings, output / "logs")
                    results = sorted([*results, found], key=_place)
                    _write(results, settings, output)
                wanted.append(found)
    _write(results, settings, output)
    return wanted


def check_methods(methods: Sequence[str]) -> None:
    """ValueError for a method that is not known, ImportError where one needs anomalib and it is not installed."""
    unknown = [name for name in methods if name not in METHODS and ":" not in name]
    if unknown:
        known = ", ".join(METHODS)
        raise ValueError(f"unknown method {unknown[0]!r}; known: {known}, and module:function for one of your own")
    rivals = [name for name in methods if name in _ANOMALIB]
    if rivals and importlib.util.find_spec("anomalib") is None:
        raise ImportError(f'{", ".join(rivals)} need anomalib: pip install "uflow[compare]"')


def _key(result: Result) -> tuple[str, str, int, int | None]:
    return result.category, result.method, result.seed, result.epochs


def _place(result: Result) -> tuple[Any, ...]:
    """The order of the tables: by category, then as the methods are listed, whatever was measured first."""
    known = [*METHODS].index(result.method) if result.method in METHODS else len(METHODS)
    return result.category, known, result.method, result.epochs or 0, result.seed


def _epochs(method: str, images: int, settings: Settings) -> int | None:
    """Passes over the images, or None for a method that is not trained by them."""
    if method not in _ANOMALIB or not _ANOMALIB[method].trained:
        return None
    return settings.epochs or math.ceil(STEPS / max(images // BATCH, 1))


def _in_own_process(
    category: Dataset, method: str, seed: int, epochs: int | None, settings: Settings, logs: Path
) -> Result:
    """A crash ends that process only, and the memory is the method's own."""
    logs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="uflow-compare-") as folder:
        job, answer = Path(folder, "job"), Path(folder, "answer.json")
        own = Settings(settings.backbone, settings.image_size, epochs)
        job.write_bytes(pickle.dumps((category, method, seed, own, str(answer))))
        name = f"{category.name}-{method.replace(':', '.')}-{seed}.log"
        with (logs / name).open("w") as log:
            command = [
                sys.executable,
                "-c",
                "import sys; from uflow.evaluate.rivals import _work; _work(sys.argv[1])",
                str(job),
            ]
            code = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False).returncode
        figures: dict[str, Any] = {"failure": _ending(code)}
        if answer.is_file():
            figures = json.loads(answer.read_text())
    if figures.get("failure"):
        figures["failure"] += f" (logs/{name})"
    return Result(category.name, method, seed, epochs, **figures)


def _ending(code: int) -> str:
    if code < 0:
        hint = ": out of memory?" if -code == signal.SIGKILL else ""
        return f"its process was ended by signal {signal.Signals(-code).name}{hint}"
    return f"its process ended with exit code {code}"


def _work(job: str) -> None:
    """The whole of a process: measure one method, write its figures, or why there are none, to a file."""
    category, method, seed, settings, answer = pickle.loads(Path(job).read_bytes())  # written by _in_own_process
    figures: dict[str, Any]
    try:
        figures = _measure(category, method, seed, settings)
    except Exception as error:  # whatever it is, it is this method's row, and the others go on
        traceback.print_exc()
        figures = {"failure": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    Path(answer).write_text(json.dumps(figures))


def _measure(category: Dataset, method: str, seed: int, settings: Settings) -> dict[str, float | None]:
    paths = [sample.path for sample in category.test]
    learn = _method(method)
    clock = _Clock()
    if learn is None:
        found, fit, predict = _measure_uflow(category, seed, settings, clock)
    else:
        size, score = learn(category.train, settings, seed)
        fit = clock.lap()
        judged = list(_judge(paths, size, score))
        predict = clock.lap()
        normal = (one.anomaly_map for one in _judge(category.train, size, score))
        found = evaluation.evaluate(category.test, judged, size=SIZE, normal_maps=normal)
    names = ("pixel_auroc", "aupro", "image_auroc", "miou", "miou_fair", "miou_best")
    return {
        **{name: getattr(found, name) for name in names},
        "fit_s": fit[0],
        "fit_cpu_s": fit[1],
        "predict_ms": 1e3 * predict[0] / len(paths),
        "predict_cpu_ms": 1e3 * predict[1] / len(paths),
        "memory_mb": _peak_memory(),
    }


class _Clock:
    def __init__(self) -> None:
        self.lap()

    def lap(self) -> tuple[float, float]:
        """Seconds since the last call: by the clock, of processors."""
        now = time.perf_counter(), time.process_time()
        last, self.last = getattr(self, "last", now), now
        return now[0] - last[0], now[1] - last[1]


def _peak_memory() -> float | None:
    """The most that this process held at once, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent process held when it started this one
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _read_images(paths: Sequence[Path], size: Size) -> Iterator[Tensor]:
    """The files in batches, (B, 3, height, width) float in [0, 1]."""
    for batch in batches(paths, 8):
        images = [resize_image(read_image(path), size) for path in batch]
        yield image_tensor(np.stack(images))


def _judge(paths: Sequence[Path], size: Size, score: Scorer) -> Iterator[Judged]:
    for images in _read_images(paths, size):
        with torch.inference_mode():
            maps, scores = score(images)
            if maps.shape[1:] != (SIZE, SIZE):
                maps = F.interpolate(maps[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
        for one_map, one_score in zip(maps.float().numpy(), scores.tolist(), strict=True):
            yield Judged(one_map, one_score)


# ---- files


def _read(path: Path, settings: Settings) -> list[Result]:
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != _common(settings):
        seen, wanted = (", ".join(f"{k} {v}" for k, v in s.items()) for s in (content["settings"], _common(settings)))
        raise ValueError(f"{path} holds results of other settings ({seen}; not {wanted}): choose another --output")
    return [Result(**result) for result in content["results"]]


def _common(settings: Settings) -> dict[str, Any]:
    return {"backbone": settings.backbone, "image_size": settings.image_size}  # epochs are each result's own


def _write(results: Sequence[Result], settings: Settings, output: Path) -> None:
    rows = io.StringIO()
    table = csv.DictWriter(rows, [field.name for field in fields(Result)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(result) for result in results)
    content = {
        "settings": _common(settings),
        "machine": _machine(),
        "results": [asdict(result) for result in results],
        "published": {"source": PUBLISHED, "means": published.METHODS},
    }
    files = {".json": json.dumps(content, indent=2) + "\n", ".csv": rows.getvalue(), ".md": markdown(results, settings)}
    for suffix, text in files.items():
        with atomic_write(output / f"comparison{suffix}") as temporary:
            temporary.write_text(text)


def _machine() -> dict[str, str]:
    versions = {name: version(name) for name in ("torch", "timm", "anomalib") if importlib.util.find_spec(name)}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "uflow": __version__,
        **versions,
    }


_FIGURES = {
    "pixel AUROC": "pixel_auroc",
    "AUPRO": "aupro",
    "image AUROC": "image_auroc",
    "mIoU auto": "miou",
    "mIoU fair": "miou_fair",
    "mIoU best": "miou_best",
}
_COSTS = {"learning": ("fit_cpu_s", "s"), "an image": ("predict_cpu_ms", "ms"), "memory": ("memory_mb", "MB")}


def markdown(results: Sequence[Result], settings: Settings) -> str:
    """Two tables: means over the seeds of what was measured here, and what the literature says of other methods."""
    size = f"{settings.image_size} pixels" if settings.image_size else "its own size"
    lines = [
        _measured(results),
        "",
        f"Means over the seeds, at {SIZE} x {SIZE}; frozen {settings.backbone} at {size}; bold: best of a category. "
        "mIoU auto: at the method's own threshold; fair: at one false pixel a training image; best: at the threshold "
        "that is best on the test set. Learning, and an image from its file: seconds and milliseconds of processors; "
        "memory: the most that the process held.",
        "",
        f"{', '.join(f'{name} {value}' for name, value in _machine().items())}.",
        "",
        f"Published, not measured here: means over the 15 categories of MVTec AD, other backbones ({PUBLISHED}).",
        "",
        _published(),
    ]
    return "\n".join(lines) + "\n"


def _measured(results: Sequence[Result]) -> str:
    header = ["category", "method", "epochs", "seeds", *_FIGURES, *_COSTS]
    rows = []
    groups: dict[tuple[str, str, int | None], list[Result]] = {}
    for result in results:
        groups.setdefault((result.category, result.method, result.epochs), []).append(result)
    for (category, method, epochs), group in groups.items():
        done = [result for result in group if result.failure is None]
        passes = "-" if epochs is None else str(epochs)
        if done:
            cells = [category, method, passes, " ".join(str(result.seed) for result in done)]
            for name in _FIGURES.values():
                rivals = [_mean(other, name) for (where, *_), other in groups.items() if where == category]
                cells.append(_figure(_mean(done, name), max(value for value in (*rivals, 0.0) if value is not None)))
            for name, unit in _COSTS.values():
                cost = _mean(done, name)
                cells.append("-" if cost is None else f"{cost:.0f} {unit}")
            rows.append(cells)
        for result in group:
            if result.failure is not None:
                cells = [category, method, passes, str(result.seed), f"failed: {result.failure}"]
                rows.append([*cells, *[""] * (len(header) - len(cells))])
    return report.markdown_table(header, rows, texts=2)


def _published() -> str:
    columns = {name: key for name, key in _FIGURES.items() if key != "image_auroc"}
    uflow = {key: float(np.mean([c[key] for c in published.MVTEC_AD.values()])) for key in published.METRICS}
    methods = {"U-Flow, MS-CaiT": uflow, **published.METHODS}
    rows = [[name, *(_figure(figures.get(key)) for key in columns.values())] for name, figures in methods.items()]
    return report.markdown_table(["method (published)", *columns], rows)


def _mean(group: Sequence[Result], name: str) -> float | None:
    values = [getattr(result, name) for result in group]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _figure(value: float | None, best: float = 2.0) -> str:
    """To three digits, bold where it is the best to three digits."""
    text = "-" if value is None else f"{value:.3f}"
    return f"**{text}**" if text == f"{best:.3f}" else text


# ---- methods


def _method(name: str) -> Method | None:
    """What learns, imported; None for U-Flow, whose detector does more than score."""
    if name in _ANOMALIB:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("anomalib.models")
    if name in METHODS:
        return METHODS[name]
    module, _, function = name.partition(":")
    method: Method = getattr(importlib.import_module(module), function)
    return method


def _measure_uflow(
    category: Dataset, seed: int, settings: Settings, clock: _Clock
) -> tuple[evaluation.Evaluation, tuple[float, float], tuple[float, float]]:
    """U-Flow with its defaults. Learning includes the threshold; an image includes mask and regions at its own size."""
    detector = Detector.fit(
        category.train,
        settings.backbone,
        image_size=settings.image_size,
        settings=TrainingSettings(seed=seed),
        device="cpu",
        progress=False,
    )
    fit = clock.lap()
    for _ in detector.stream([sample.path for sample in category.test]):
        pass
    predict = clock.lap()
    return detector.evaluate(category, size=SIZE, fair=True), fit, predict


def neighbours(images: Sequence[Path], settings: Settings, seed: int) -> tuple[Size, Scorer]:
    """Distance of each cell's features to the nearest of `VECTORS` ones of good images.

    Strides 8 and 16 resized to the finer grid and joined, 3 x 3 mean with zeros beyond the border, as PatchCore has it
    (without the zeros it is much worse); the map of distances resized bilinearly and smoothed; the image's score is
    its maximum.
    """
    backbone = create_backbone(settings.backbone, image_size=settings.image_size, strides=(8, 16))

    def embed(batch: Tensor) -> Tensor:
        fine, coarse = backbone(batch)
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
        return F.avg_pool2d(torch.cat([fine, coarse], 1), 3, stride=1, padding=1).flatten(2).transpose(1, 2)

    height, width = backbone.sizes[0]
    kept = np.sort(np.random.default_rng(seed).permutation(len(images) * height * width)[:VECTORS])
    parts, start = [], 0
    for batch in _read_images(images, backbone.image_size):
        cells = embed(batch).flatten(0, 1)
        first, last = np.searchsorted(kept, (start, start + len(cells)))
        parts.append(cells[torch.from_numpy(kept[first:last] - start)])
        start += len(cells)
    vectors = torch.cat(parts)
    norms = vectors.square().sum(1)

    def score(batch: Tensor) -> tuple[Tensor, Tensor]:
        nearest = [  # |x|^2 is the same for all vectors and joins after the minimum
            (cells.square().sum(1) + torch.addmm(norms, cells, vectors.T, alpha=-2).amin(1)).clamp(min=0)
            for cells in embed(batch)
        ]
        distance = torch.stack(nearest).sqrt().view(-1, 1, height, width)
        maps = F.interpolate(distance, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
        smooth = gaussian_blur(maps, 8 * round(SMOOTHING) + 1, SMOOTHING)
        return smooth, smooth.amax((1, 2))

    return backbone.image_size, score


# ---- anomalib's methods


@dataclass(frozen=True)
class _Net:
    """Our frozen net as anomalib's models are told of it: timm's name, its layers; (C, h, w) of each map."""

    arch: str
    layers: list[str]
    shapes: list[tuple[int, int, int]]
    image_size: Size
    batch: int  # images of a training step
    net: nn.Module


class _Contiguous(nn.Module):
    """The maps of our net, which come channels last, as anomalib's models can view them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> list[Tensor]:
        return [m.contiguous() for m in self.net(images)]


@dataclass(frozen=True)
class _Anomalib:
    """One of anomalib's methods, with its own defaults.

    Attributes:
        strides: of the maps it takes, those of its default backbone's default layers.
        make: its Lightning module, on a net of these strides.
        trained: by passes over the images, not in one.
    """

    strides: tuple[int, ...]
    make: Callable[[Any, _Net], Any]
    trained: bool = False

    def __call__(self, images: Sequence[Path], settings: Settings, seed: int) -> tuple[Size, Scorer]:
        """Train it, by its own steps, optimizer and schedule."""
        import lightning
        from anomalib.data import ImageBatch
        from anomalib.models import image as models
        from anomalib.models.components import TimmFeatureExtractor

        backbone = create_backbone(settings.backbone, image_size=settings.image_size, strides=self.strides)
        inner: Any = backbone.extractor
        if len(inner.nets) != 1 or not hasattr(inner.nets[0], "feature_info"):
            raise ValueError(f"anomalib's methods need one pyramid of feature maps, which {backbone.name} is not")
        shapes = [(c, *size) for c, size in zip(backbone.channels, backbone.sizes, strict=True)]
        frozen = _Contiguous(inner.nets[0])
        layers, batch_size = inner.nets[0].feature_info.module_name(), min(BATCH, len(images))
        net = _Net(inner.archs[0], layers, shapes, backbone.image_size, batch_size, frozen)
        lightning.seed_everything(seed, verbose=False)
        with _no_weights():
            module = self.make(models, net)
        for part in module.modules():
            if isinstance(part, TimmFeatureExtractor) and not part.requires_grad:
                part.feature_extractor = frozen

        def normalise(batch: Tensor) -> Tensor:
            return (batch - backbone.mean) / backbone.std

        def collate(batch: list[Tensor]) -> Any:
            good = torch.zeros(len(batch), dtype=torch.bool)
            pixels = normalise(torch.stack(batch).float() / 255)
            mask = torch.zeros(len(batch), *pixels.shape[2:], dtype=torch.bool)
            return ImageBatch(image=pixels, gt_label=good, gt_mask=mask)

        bytes_ = [(255 * batch).round().byte() for batch in _read_images(images, backbone.image_size)]
        everything: Any = list(torch.cat(bytes_))
        loader: Any = torch.utils.data.DataLoader(
            everything, batch_size, shuffle=True, drop_last=self.trained, collate_fn=collate
        )
        options = {"max_epochs": settings.epochs or 1, **module.trainer_arguments}
        for quiet in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"):
            options[quiet] = False
        lightning.Trainer(accelerator="cpu", **options).fit(module, loader)
        module.eval()

        def score(batch: Tensor) -> tuple[Tensor, Tensor]:
            answer = module.model(normalise(batch))
            return answer.anomaly_map.reshape(len(batch), *answer.anomaly_map.shape[-2:]), answer.pred_score.flatten()

        return backbone.image_size, score


@contextmanager
def _no_weights() -> Iterator[None]:
    """timm asks no hub for weights: anomalib does so for some models even where others are put in their place."""
    create = timm.create_model
    with mock.patch("timm.create_model", lambda *names, **options: create(*names, **{**options, "pretrained": False})):
        yield


_BARE = {"pre_processor": False, "post_processor": False, "evaluator": False, "visualizer": False}


def _patchcore(models: Any, net: _Net) -> Any:
    """Its coreset (10 %) chosen from at most `CANDIDATES` vectors: its own choice takes hours on a CPU.

    By the same rule, but without its random projection, which for so few channels has more columns than they are.
    """

    class Patchcore(models.Patchcore):  # type: ignore[misc]
        def fit(self) -> None:
            everything = torch.vstack(self.model.embedding_store)
            self.model.embedding_store.clear()
            candidates = everything[torch.randperm(len(everything))[:CANDIDATES]]
            first = int(torch.randint(len(candidates), ()))
            self.model.memory_bank = candidates[greedy_coreset(candidates, int(0.1 * len(candidates)), first)]

    return Patchcore(net.arch, net.layers, **_BARE)


def _cflow(models: Any, net: _Net) -> Any:
    """In steps of 256 cells, as far as a batch has them: its default of 64 takes several times as long."""
    _, height, width = net.shapes[-1]
    cells = min(256, net.batch * height * width)
    return models.Cflow(net.arch, net.layers, fiber_batch_size=cells, **_BARE)


def _fastflow(models: Any, net: _Net) -> Any:
    """Its list of backbones is short: built for one of them, then given our net, and norms and flows for its maps."""
    from anomalib.models.image.fastflow.torch_model import create_fast_flow_block

    class Fastflow(models.Fastflow):  # type: ignore[misc]
        input_size = net.image_size

    module = Fastflow("resnet18", **_BARE)
    model, steps, ratio = module.model, module.flow_steps, module.hidden_ratio
    model.feature_extractor = net.net
    model.norms = nn.ModuleList(nn.LayerNorm(shape) for shape in net.shapes)
    blocks = (create_fast_flow_block(list(shape), module.conv3x3_only, ratio, steps) for shape in net.shapes)
    model.fast_flow_blocks = nn.ModuleList(blocks)
    return module


def _fre(models: Any, net: _Net) -> Any:
    channels, height, width = net.shapes[0]
    return models.Fre(net.arch, net.layers[0], input_dim=channels * (height // 2) * (width // 2), **_BARE)


_ANOMALIB: dict[str, _Anomalib] = {
    "patchcore": _Anomalib((8, 16), _patchcore),
    "mh_patchcore": _Anomalib((8, 16), lambda models, net: models.MHPatchcore(net.arch, net.layers, **_BARE)),
    # 100 channels kept at random are its default for the 448 of ResNet-18
    "padim": _Anomalib((4, 8, 16), lambda models, net: models.Padim(net.arch, net.layers, n_features=100, **_BARE)),
    "dfm": _Anomalib((16,), lambda models, net: models.Dfm(net.arch, net.layers[0], **_BARE)),
    "fre": _Anomalib((16,), _fre, trained=True),
    "cflow": _Anomalib((8, 16, 32), _cflow, trained=True),
    "fastflow": _Anomalib((4, 8, 16), _fastflow, trained=True),
    "stfpm": _Anomalib((4, 8, 16), lambda models, net: models.Stfpm(net.arch, net.layers, **_BARE), trained=True),
    "supersimplenet": _Anomalib(
        (8, 16), lambda models, net: models.Supersimplenet(backbone=net.arch, layers=net.layers, **_BARE), trained=True
    ),
}

METHODS: dict[str, Method | None] = {"uflow": None, "neighbours": neighbours, **_ANOMALIB}
