"""U-Flow beside nearest neighbours and anomalib's PatchCore, on the same frozen features, images and metrics.

python benchmarks/rivals.py data/magnetic_tile data/cookie data/hazelnut_toy

Every method gets all images of ``train/good`` (U-Flow keeps a part of them out of training) and the test images, and is
measured at 256 x 256 by `uflow.metrics` as `Detector.evaluate` does; figures are means over the seeds. PatchCore needs
``pip install anomalib``. See docs/accuracy.md.
"""

import argparse
import logging
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

import uflow
from uflow import data, datasets, metrics, report, training
from uflow.backbones import Backbone, create_backbone

SIZE = 256  # of the maps and masks compared
BACKBONE = "efficientnet_lite0"
STRIDES = (8, 16)
VECTORS = 20_000  # nearest neighbours: normal vectors kept, drawn at random
SMOOTHING = 4.0  # nearest neighbours: pixels of the map of SIZE
CANDIDATES = 100_000  # PatchCore: vectors that the coreset is chosen from, drawn at random where there are more
CORESET = 0.1  # PatchCore: share of them kept, anomalib's default


@dataclass
class Result:
    """Figures of one method on one category with one seed; seconds to learn, milliseconds for a test image."""

    category: str
    method: str
    seed: int
    pixel_auroc: float
    aupro: float
    image_auroc: float
    fit_s: float
    predict_ms: float


class Rival(Protocol):
    """What is measured: made from good images, (N, 3, H, W) float in [0, 1]; scores others."""

    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly maps (B, SIZE, SIZE) and image scores (B,) of images (B, 3, H, W)."""


class NearestNeighbours:
    """Distance of each cell's features to the nearest of `VECTORS` ones of good images.

    Strides 8 and 16 resized to the finer grid and joined, 3 x 3 mean with zeros beyond the border, as PatchCore has it
    (without the zeros it is much worse); the map of distances resized bilinearly and smoothed; the image's score is
    its maximum.
    """

    def __init__(self, images: Tensor, backbone: Backbone, seed: int) -> None:
        self.backbone = backbone
        cells = len(images) * int(np.prod(backbone.sizes[0]))
        kept = np.random.default_rng(seed).permutation(cells)[:VECTORS]
        self.vectors = _vectors(self.embed, images, np.sort(kept))
        self.norms = self.vectors.square().sum(1)

    def embed(self, images: Tensor) -> Tensor:
        fine, coarse = self.backbone(images)
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
        return F.avg_pool2d(torch.cat([fine, coarse], 1), 3, stride=1, padding=1)

    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(images)
        nearest = [  # |x|^2 is the same for all vectors and joins after the minimum
            (cells.square().sum(1) + torch.addmm(self.norms, cells, self.vectors.T, alpha=-2).amin(1)).clamp(min=0)
            for cells in x.flatten(2).transpose(1, 2)
        ]
        distance = torch.stack(nearest).sqrt().view(len(x), 1, *x.shape[2:])
        maps = F.interpolate(distance, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0].numpy()
        smooth = torch.from_numpy(gaussian_filter(maps, (0, SMOOTHING, SMOOTHING)))
        return smooth, smooth.amax((1, 2))


class PatchCore:
    """anomalib's PatchCore as it comes (layers of stride 8 and 16, coreset 10 %, 9 neighbours), with these weights.

    The coreset is chosen by `greedy_coreset`: anomalib's own takes hours for 100,000 vectors on a CPU.
    """

    def __init__(self, images: Tensor, backbone: Backbone, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from anomalib.models.image.patchcore.torch_model import PatchcoreModel

            net: Any = backbone.extractor.nets[0]
            layers = net.feature_info.module_name()
            self.model = PatchcoreModel(layers, "tf_efficientnet_lite0", pre_trained=False)
        self.model.feature_extractor = _Maps(net, layers)  # the same net with its weights, before the LayerNorm
        self.backbone = backbone
        self.model.train()
        net.eval()
        torch.manual_seed(seed)
        for batch in images.split(16):
            self.model(self.normalise(batch))
        everything = torch.vstack(self.model.embedding_store)
        self.model.embedding_store.clear()
        candidates = everything[np.random.default_rng(seed).permutation(len(everything))[:CANDIDATES]]
        self.model.memory_bank = candidates[greedy_coreset(candidates, int(CORESET * len(candidates)))]
        self.model.eval()

    def normalise(self, images: Tensor) -> Tensor:
        return (images - self.backbone.mean) / self.backbone.std

    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.model(self.normalise(images))
        maps = F.interpolate(answer.anomaly_map, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return maps[:, 0], answer.pred_score


class _Maps(nn.Module):
    """Maps of a timm net by layer, as anomalib's feature extractor gives them."""

    def __init__(self, net: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.net, self.layers = net, layers

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.layers, self.net(images), strict=True))


def greedy_coreset(x: Tensor, count: int) -> Tensor:
    """Indices of `count` rows of x, each the farthest from those before it (k-center greedy), the first one at random.

    What anomalib selects, but without its random projection, which for so few channels has more columns than they are.
    """
    norms = x.square().sum(1)
    distance = torch.full_like(norms, torch.inf)
    chosen = [int(torch.randint(len(x), ()))]
    for _ in range(count - 1):
        centre = chosen[-1]
        torch.minimum(distance, torch.addmv(norms, x, x[centre], alpha=-2).add_(norms[centre]), out=distance)
        distance[centre] = -torch.inf
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)


def _vectors(embed: Callable[[Tensor], Tensor], images: Tensor, kept: np.ndarray) -> Tensor:
    """The cells `kept` (sorted, counted over all images) of the images' features: (n, C)."""
    parts, start = [], 0
    for batch in images.split(16):
        cells = embed(batch).flatten(2).transpose(1, 2).flatten(0, 1)
        first, last = np.searchsorted(kept, (start, start + len(cells)))
        parts.append(cells[torch.from_numpy(kept[first:last] - start)])
        start += len(cells)
    return torch.cat(parts)


def measure_rival(
    make: Callable[[Tensor, Backbone, int], Rival], root: Path, image_size: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Maps and scores of the test images, seconds to learn, milliseconds for a test image."""
    backbone = create_backbone(BACKBONE, image_size=image_size, strides=STRIDES)

    def read(paths: Sequence[Path]) -> Tensor:
        images = [data.resize_image(data.read_image(path), backbone.image_size) for path in paths]
        return training.image_tensor(np.stack(images), torch.device("cpu"))

    started = time.perf_counter()
    rival = make(read(data.list_images(root / "train/good")), backbone, seed)
    fitted = time.perf_counter()
    paths = [sample.path for sample in datasets.read_mvtec(root).test]
    maps, scores = zip(*(rival.score(read(paths[i : i + 8])) for i in range(0, len(paths), 8)), strict=True)
    done = time.perf_counter()
    return torch.cat(maps).numpy(), torch.cat(scores).numpy(), fitted - started, 1e3 * (done - fitted) / len(paths)


def truth(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Masks (N, SIZE, SIZE) and labels (N,) of the test images."""
    samples = datasets.read_mvtec(root).test
    masks = np.zeros((len(samples), SIZE, SIZE), bool)
    for mask, sample in zip(masks, samples, strict=True):
        if sample.is_anomalous:
            mask[:] = data.resize_mask(sample.truth(data.image_size(sample.path)), (SIZE, SIZE))
    return masks, np.array([sample.is_anomalous for sample in samples])


def measure(method: str, root: Path, image_size: int | None, seed: int) -> Result:
    if method == "uflow":
        started = time.perf_counter()
        # alpha=None: the figures need no threshold, and so no second flow to set it by
        settings = training.TrainingSettings(seed=seed)
        detector = uflow.Detector.fit(
            root / "train/good", BACKBONE, image_size=image_size, settings=settings, alpha=None, progress=False
        )
        fitted = time.perf_counter()
        e = detector.evaluate(root, size=SIZE)
        each = 1e3 * (time.perf_counter() - fitted) / len(datasets.read_mvtec(root).test)
        return Result(root.name, method, seed, e.pixel_auroc, e.aupro, e.image_auroc, fitted - started, each)
    with torch.inference_mode():
        maps, scores, fit_s, each = measure_rival(RIVALS[method], root, image_size, seed)
    masks, labels = truth(root)
    figures = metrics.auroc(maps, masks), metrics.aupro(maps, masks), metrics.auroc(scores, labels)
    return Result(root.name, method, seed, *figures, fit_s, each)


RIVALS: dict[str, Callable[[Tensor, Backbone, int], Rival]] = {"neighbours": NearestNeighbours, "patchcore": PatchCore}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path, help="folders in the MVTec layout")
    parser.add_argument("--methods", nargs="+", default=["uflow", *RIVALS], choices=["uflow", *RIVALS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--json", type=Path, help="write every seed's figures")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)

    results: list[Result] = []
    for root in arguments.roots:
        for method in arguments.methods:
            for seed in arguments.seeds:
                results.append(measure(method, root, arguments.image_size, seed))
                print(results[-1], flush=True)
                if arguments.json is not None:
                    report.write_json([asdict(r) for r in results], arguments.json)

    print("| category | method | pixel AUROC | AUPRO | image AUROC | learning | an image |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for root in arguments.roots:
        for method in arguments.methods:
            rows = [r for r in results if (r.category, r.method) == (root.name, method)]
            pixel, pro, image, fit_s, each = (
                float(np.mean([getattr(r, name) for r in rows]))
                for name in ("pixel_auroc", "aupro", "image_auroc", "fit_s", "predict_ms")
            )
            figures = f"{pixel:.3f} | {pro:.3f} | {image:.3f} | {fit_s:.0f} s | {each:.0f} ms"
            print(f"| {root.name} | {method} | {figures} |")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"uflow {uflow.__version__}, seeds {arguments.seeds}, image size {arguments.image_size or 256}, {machine}")


if __name__ == "__main__":
    main()
