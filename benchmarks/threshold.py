"""Reprints docs/threshold.md's tables and plots: which statistic of the energies keeps its promise and finds most.

python benchmarks/threshold.py data/magnetic_tile data/cookie data/hazelnut_toy --cache /tmp/uflow-threshold

Trains each category for each seed (magnetic_tile about 3 minutes each on 2 cores), keeps latents and energies in the
cache, so that a second call starts from there, and compares statistics: each is fitted and shifted on the images held
out of training alone (conformal risk control, `uflow.calibration.conformal_shift`) and measured on the test images.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from scipy import ndimage, stats

import uflow
from uflow import scoring, segmentation, training
from uflow import threshold as calibration
from uflow.backbones import create_backbone
from uflow.detector import Detector, hold_out
from uflow.evaluate import datasets, metrics
from uflow.evaluate import tables as report
from uflow.flow import UFlow
from uflow.segmentation import Background

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from uflow.features import compute_features, image_tensor
from uflow.images import batches, image_size, list_images, read_image, resize_image, resize_mask

ALPHA = 0.05
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
SMALL = 100  # training images below which a category's flows for all folds are trained


# Training, and what is kept of it -------------------------------------------------------------------------------------


@dataclass
class Images:
    """Energies, and where they are kept latents, of some images: per scale (N, h, w) and (N, C, h, w)."""

    energies: list[np.ndarray]
    latents: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.energies[0])


@dataclass
class Run:
    """One trained flow: the images held out from it, the test images and their truth."""

    held_out: Images
    test: Images
    kinds: np.ndarray  # "good" or the defect
    truth: np.ndarray  # (N, 256, 256) bool
    folder: Path
    seed: int

    @property
    def good(self) -> np.ndarray:
        return np.asarray(self.kinds == "good")


def train(root: Path, seed: int, fold: int, epochs: int | None) -> Detector:
    """The flow that `Detector.fit` trains (fold 0), or one with other images held out."""
    sources = list_images(root / "train/good")
    held = hold_out(len(sources), 0.15, 1e-6, seed)[fold]
    settings = training.TrainingSettings(seed=seed, **({} if epochs is None else {"epochs": epochs}))
    net = create_backbone("efficientnet_lite0")
    flow = UFlow(net.channels, net.sizes, affine=net.layer_norm, seed=seed)
    inputs = (resize_image(read_image(path), net.image_size) for path in sources)
    with compute_features(net.eval(), inputs, len(sources)) as features:
        training.train(flow, features, sorted(set(range(len(sources))) - set(held)), held, settings)
    return Detector(net, flow, device="cpu")


def run(root: Path, kept: Path, seed: int, fold: int = 0, epochs: int | None = None) -> Run:
    """Train, or take from the cache."""
    folder = kept / f"{root.name}-{seed}-fold{fold}{'' if epochs is None else f'-epochs{epochs}'}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.uflow").exists():
        print(f"training {folder.name}", flush=True)
        train(root, seed, fold, epochs).save(folder / "model.uflow")
    sources = list_images(root / "train/good")
    held = [sources[i] for i in hold_out(len(sources), 0.15, 1e-6, seed)[fold]]
    paths, kinds, truth = test_set(root)
    return Run(images(folder, "cal", held), images(folder, "test", paths), kinds, truth, folder, seed)


@cache
def test_set(root: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Files of the test images, what they show, and the truth at 256 x 256."""
    samples = datasets.read_mvtec(root).test
    truth = np.zeros((len(samples), 256, 256), bool)
    for i, sample in enumerate(samples):
        if sample.is_anomalous:
            truth[i] = resize_mask(sample.truth(image_size(sample.path)), (256, 256))
    return [sample.path for sample in samples], np.array([sample.defect for sample in samples]), truth


def images(folder: Path, part: str, paths: Sequence[Path], gain: float = 1.0) -> Images:
    """Energies and latents (float16) of images, as a camera of some gain sees them."""
    file = folder / f"{part}.npz"
    if not file.exists():
        detector = uflow.load(folder / "model.uflow", device="cpu")
        scales = [np.concatenate(scale) for scale in zip(*_latents(detector, paths, gain), strict=True)]
        if gain == 1:
            for i, z in enumerate(scales):
                np.save(folder / f"{part}-{i}.npy", z.astype(np.float16))
        np.savez(file, **{f"e{i}": np.square(z).sum(1) for i, z in enumerate(scales)})
    with np.load(file) as energies:
        kept = sorted(folder.glob(f"{part}-?.npy"))
        return Images([energies[name] for name in energies], [np.load(path, mmap_mode="r") for path in kept])


@torch.inference_mode()
def _latents(detector: Detector, paths: Sequence[Path], gain: float) -> Iterator[list[np.ndarray]]:
    for batch in batches(paths, 16):
        pictures = [(read_image(path) * gain).clip(0, 255).round().astype(np.uint8) for path in batch]
        inputs = np.stack([resize_image(picture, detector.backbone.image_size) for picture in pictures])
        yield [z.numpy() for z in detector.flow(detector.backbone(image_tensor(inputs)))[0]]


# Statistics: (images to calibrate on, images) -> log NFA without shift of both; the first may be its minima -----------

Statistic = Callable[[Images, Images, tuple[int, ...]], tuple[np.ndarray, np.ndarray]]
Energies = Callable[[Images, Images], list[np.ndarray]]  # (images to calibrate on, images) -> energies


def by_moments(energies: np.ndarray, correlation_area: float = 1.0) -> Background:
    """The scaled chi-square of all energies' mean and variance, not of the median image's."""
    e = np.asarray(energies, np.float64)
    return Background(e.var() / (2 * e.mean()), 2 * e.mean() ** 2 / e.var(), correlation_area)


def log_nfa(energies: list[np.ndarray], background: list[Background]) -> np.ndarray:
    return segmentation.log_nfa_from_energies(
        energies, [1] * len(energies), tail="exact", n_tests="by-area", background=background
    )


def plain(tail: Any, n_tests: Any, quantile: float = 0.9) -> Statistic:
    """A test of independent standard normals, the paper's among them."""

    def one(images: Images, channels: tuple[int, ...]) -> np.ndarray:
        counts = None
        if tail == "binomial":
            tau = stats.chi2.ppf(quantile, 1)
            counts = [np.stack([(np.square(i, dtype=np.float32) >= tau).sum(0) for i in z]) for z in images.latents]
        return segmentation.log_nfa_from_energies(
            images.energies, channels, 256, tail, n_tests, quantile, exceedances=counts
        )

    return lambda held_out, test, channels: (one(held_out, channels), one(test, channels))


def scales(energies: Energies, correlation_area: Callable[[np.ndarray], float] = lambda e: 1.0) -> Statistic:
    """Each scale by itself, the minimum over scales."""

    def statistic(held_out: Images, test: Images, channels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        normal = energies(held_out, held_out)
        background = [by_moments(e, correlation_area(e)) for e in normal]
        return log_nfa(normal, background), log_nfa(energies(held_out, test), background)

    return statistic


def one_grid(
    combine: Callable[[np.ndarray, Background], np.ndarray],
    energies: Energies = lambda held_out, images: images.energies,
    smooth: int = 1,
    correlation_area: float = 1.0,
    finish: Callable[[np.ndarray], np.ndarray] = lambda joint: joint,
    all_nodes: bool = False,
) -> Statistic:
    """What `combine` makes of each scale's energies, resized to the finest grid and summed."""

    def statistic(held_out: Images, test: Images, channels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        normal = energies(held_out, held_out)
        each = [calibration.fit_background(e) for e in normal]

        def joint(scales: list[np.ndarray]) -> np.ndarray:
            parts = [combine(e, b).astype(np.float32)[:, None] for e, b in zip(scales, each, strict=True)]
            finest = parts[0].shape[2:]
            bilinear = {"mode": "bilinear", "align_corners": False}
            up = [torch.nn.functional.interpolate(torch.from_numpy(p), finest, **bilinear) for p in parts]
            total = finish(torch.stack(up).sum(0)[:, 0].numpy())
            return ndimage.uniform_filter(total, (0, smooth, smooth), mode="nearest")

        a, b = joint(normal), joint(energies(held_out, test))
        fitted = calibration.fit_background(a)
        background = Background(fitted.scale, fitted.dof, correlation_area)
        if all_nodes:
            return minimum_over_all_nodes(a, background), minimum_over_all_nodes(b, background)
        return log_nfa([a], [background]), log_nfa([b], [background])

    return statistic


def minimum_over_all_nodes(energies: np.ndarray, background: Background) -> np.ndarray:
    """Per image the lowest log NFA of any component, not only of those that prune and merge choose."""
    lowest = []
    for energy in energies:
        parent, order = (x.ravel() for x in segmentation.max_tree(energy))
        area = np.ones(energy.size)
        for pixel in order[:0:-1]:
            area[parent[pixel]] += area[pixel]
        level = energy.ravel()
        node = np.append(order[0], np.flatnonzero(level[parent] != level))
        a, sf = area[node], stats.chi2.logsf(level[node] / background.scale, background.dof) / np.log(10)
        tests = 2 * np.log10(energy.size) + np.log10(0.316915) + a * np.log10(4.062570) - np.log10(a)
        lowest.append((a * sf + tests).min())
    return np.array(lowest)


def raw(held_out: Images, images: Images) -> list[np.ndarray]:
    return images.energies


def autocorrelation_area(energies: np.ndarray) -> float:
    """Sum of the energy maps' spatial autocorrelation, where it is above 0.1, over lags of up to 8 cells."""
    x = np.asarray(energies, np.float64) - energies.mean()
    h, w = x.shape[1:]
    padded = (2 * h, 2 * w)
    power = np.fft.ifft2((np.abs(np.fft.fft2(x, padded)) ** 2).mean(0)).real
    pairs = np.fft.ifft2(np.abs(np.fft.fft2(np.ones((h, w)), padded)) ** 2).real
    lag = np.arange(-min(8, h // 2 - 1), min(8, h // 2 - 1) + 1)
    r = (power / pairs.clip(1))[np.ix_(lag, lag)]
    r /= r[len(lag) // 2, len(lag) // 2]
    return max(1.0, float(r[r > 0.1].sum()))


def whitened(full: bool) -> Energies:
    """Energies of latents made uncorrelated (or only of variance 1) on the images held out."""

    def energies(held_out: Images, images: Images) -> list[np.ndarray]:
        out = []
        for normal, z in zip(held_out.latents, images.latents, strict=True):
            cells = np.asarray(normal, np.float32).transpose(0, 2, 3, 1).reshape(-1, normal.shape[1])
            if full:
                covariance = np.cov(cells.T)
                covariance += 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
                matrix = np.linalg.inv(np.linalg.cholesky(covariance)).astype(np.float32)
            else:
                matrix = np.diag(1 / cells.std(0))
            mean = cells.mean(0)[:, None, None]
            out.append(np.stack([np.square(np.tensordot(matrix, i - mean, 1)).sum(0) for i in z]))
        return out

    return energies


def smoothed(held_out: Images, images: Images) -> list[np.ndarray]:
    return [ndimage.uniform_filter(e, (0, 3, 3), mode="nearest") for e in images.energies]


def by_position(held_out: Images, images: Images) -> list[np.ndarray]:
    """Energies relative to the median image held out, at the same place (smoothed a little)."""
    normal = [ndimage.gaussian_filter(np.median(e, axis=0), 1, mode="nearest") for e in held_out.energies]
    return [e * (m.mean() / m) for e, m in zip(images.energies, normal, strict=True)]


def by_image(held_out: Images, images: Images) -> list[np.ndarray]:
    """Energies relative to their median in the same image."""
    return [e / np.median(e, axis=(1, 2), keepdims=True) for e in images.energies]


def relative(energy: np.ndarray, normal: Background) -> np.ndarray:
    return energy / np.float32(normal.scale * normal.dof)


def fisher(energy: np.ndarray, normal: Background) -> np.ndarray:
    return np.minimum(-2 * stats.chi2.logsf(energy / normal.scale, normal.dof), 1e4)


def logarithm(energy: np.ndarray, normal: Background) -> np.ndarray:
    return np.log(relative(energy, normal))


def ours(held_out: Images, test: Images, channels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What `Detector.calibrate` computes."""
    background, joint, minima = calibration.fit(held_out.energies, [(256, 256)] * len(held_out))
    return np.array(minima), calibration.log_nfa(test.energies, background, joint, 256)


def anomaly_map(held_out: Images, test: Images, channels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    maps = [-scoring.anomaly_map_from_energies(part.energies, channels, 256) for part in (held_out, test)]
    return maps[0], maps[1]


PAPER = "paper's test: Chernoff, all tests"
FORMER = "each scale: scaled chi-square, by area"
OURS = "**one grid, sum of relative energies, 3 x 3 mean**"
STATISTICS: dict[str, Statistic] = {
    PAPER: plain("chernoff", "total"),
    "each scale: standard normal, exact tail, by area": plain("exact", "by-area"),
    "each scale: count of z^2 above its 0.9 quantile, by area": plain("binomial", "by-area", 0.9),
    "each scale: count of z^2 above its 0.99 quantile, by area": plain("binomial", "by-area", 0.99),
    FORMER: scales(raw),
    "each scale, correlation area 4": scales(raw, lambda e: 4.0),
    "each scale, correlation area from autocorrelation": scales(raw, autocorrelation_area),
    "each scale, channels scaled to variance 1": scales(whitened(full=False)),
    "each scale, channels whitened": scales(whitened(full=True)),
    "each scale, energies averaged over 3 x 3": scales(smoothed),
    "each scale, energies relative to the place's": scales(by_position),
    "each scale, energies relative to the image's": scales(by_image),
    "one grid, Fisher's sum of log p": one_grid(fisher),
    "one grid, product of energies": one_grid(logarithm, finish=lambda joint: np.exp(joint / 3)),
    "one grid, sum of relative energies": one_grid(relative),
    OURS: ours,
    "one grid, 5 x 5 mean": one_grid(relative, smooth=5),
    "one grid, 3 x 3 mean, correlation area 2": one_grid(relative, smooth=3, correlation_area=2.0),
    "one grid, 3 x 3 mean, relative to the place's": one_grid(relative, by_position, smooth=3),
    "one grid, 3 x 3 mean, minimum over all nodes": one_grid(relative, smooth=3, all_nodes=True),
    "maximum of the anomaly map": anomaly_map,
}


# Measuring ------------------------------------------------------------------------------------------------------------


def lowest(maps: np.ndarray) -> np.ndarray:
    return maps.reshape(len(maps), -1).min(1)


def measure(statistic: Statistic, run: Run, with_iou: bool = True) -> dict[str, Any]:
    """Figures of one statistic on one run; shares flagged are listed for each of ALPHAS."""
    channels = tuple(z.shape[1] for z in run.test.latents)
    held_out, maps = statistic(run.held_out, run.test, channels)
    held_out, test, good = lowest(held_out), lowest(maps), run.good
    flags = {alpha: test + calibration.conformal_shift(held_out, alpha) < 0 for alpha in ALPHAS}
    unseen = np.sort(np.concatenate([held_out, test[good]]))
    figures: dict[str, Any] = {
        "good": [float(f[good].mean()) for f in flags.values()],
        "defective": [float(f[~good].mean()) for f in flags.values()],
        "kinds": {str(kind): float(flags[ALPHA][run.kinds == kind].mean()) for kind in np.unique(run.kinds)},
        "equal": [float((test[~good] < unseen[int(alpha * len(unseen))]).mean()) for alpha in ALPHAS],
        "auroc": metrics.auroc(-test, ~good),
    }
    if with_iou and maps.ndim == 3:
        figures["miou"] = metrics.mean_iou(maps + calibration.conformal_shift(held_out, ALPHA) < 0, run.truth)
        figures["miou_best"] = metrics.best_iou(-maps, run.truth)[0]
    return figures


def mean(figures: Iterable[dict[str, Any]], name: str) -> Any:
    values = [f[name] for f in figures if name in f]
    return np.mean(values, axis=0).tolist() if values else None


def cell(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}"


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("\n|", " | ".join(header), "|\n|", " | ".join(["---"] * len(header)), "|")
    for row in rows:
        print("|", " | ".join(row), "|")
    print(flush=True)


def compare(runs: dict[str, list[Run]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """All statistics on all runs; the table's figures are per cent, means over seeds."""
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    first, at = next(iter(runs)), ALPHAS.index(ALPHA)
    for name, statistic in STATISTICS.items():
        results[name] = {group: [measure(statistic, r) for r in members] for group, members in runs.items()}
        print(
            name, *(f"{group} {cell(mean(f, 'equal')[at])}" for group, f in results[name].items()), sep="; ", flush=True
        )
    rows = []
    for name, groups in results.items():
        ious = [(mean(f, "miou"), mean(f, "miou_best")) for group, f in groups.items() if "epoch" not in group]
        rows.append(
            [
                name,
                *(cell(mean(figures, "equal")[at]) for figures in groups.values()),
                *(cell(mean(groups[first], share)[at]) for share in ("good", "defective")),
                *("" if iou is None else f"{iou:.3f} / {best:.3f}" for iou, best in ious),
            ]
        )
    columns = [f"{first}: {share} flagged" for share in ("good", "defective")]
    columns += [f"{group}: mIoU / best" for group in runs if "epoch" not in group]
    print_table(["statistic", *(f"{group}: equal" for group in runs), *columns], rows)
    return results


def standard_error(alpha: float, test: int, held_out: int, seeds: int) -> float:
    """Of a mean over seeds: the same test images for each seed, other calibration images."""
    return float(np.sqrt(alpha * (1 - alpha) * (1 / test + 1 / (held_out * seeds))))


def promise(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Share of good test images flagged, of our statistic, for each alpha."""
    results: dict[str, Any] = {}
    rows = []
    for group, members in runs.items():
        figures = [measure(ours, r, with_iou=False) for r in members]
        first = members[0]
        errors = [standard_error(a, int(first.good.sum()), len(first.held_out), len(members)) for a in ALPHAS]
        results[group] = {"good": mean(figures, "good"), "defective": mean(figures, "defective"), "errors": errors}
        shares = zip(results[group]["good"], errors, results[group]["defective"], strict=True)
        rows.append([group, *(f"{cell(g)} ± {cell(e)} / {cell(d)}" for g, e, d in shares)])
    print_table(["good ± standard error / defective flagged, per cent", *map(str, ALPHAS)], rows)
    return results


def with_gain(root: Path, member: Run, gain: float) -> Run:
    """The same flow and images, from a camera of another gain, calibrated anew."""
    sources = list_images(root / "train/good")
    held = [sources[i] for i in hold_out(len(sources), 0.15, 1e-6, member.seed)[0]]
    test = images(member.folder, f"test{gain}", test_set(root)[0], gain)
    held_out = images(member.folder, f"cal{gain}", held, gain)
    return replace(member, held_out=held_out, test=Images(test.energies, member.test.latents))  # for their channels


def small_set(folds: list[list[Run]]) -> dict[str, Any]:
    """Where few images are held out: calibrate on one fold, on as many as 0.05 needs, or on all."""
    results: dict[str, Any] = {}
    for alpha in (0.05, 0.1, 0.2):
        for count in sorted({1, 2, len(folds[0])}):
            good, defective = [], []
            for runs in folds:
                fitted = [calibration.fit(r.held_out.energies, [(256, 256)] * len(r.held_out)) for r in runs]
                for i, r in enumerate(runs):
                    background, joint, _ = fitted[i]
                    minima = [m for k in range(count) for m in fitted[(i + k) % len(runs)][2]]
                    test = lowest(calibration.log_nfa(r.test.energies, background, joint, 256))
                    flagged = test + calibration.conformal_shift(minima, alpha) < 0
                    good.append(float(flagged[r.good].mean()))
                    defective.append(float(flagged[~r.good].mean()))
            results[f"alpha {alpha}, folds {count}"] = {"images": len(minima), "good": good, "defective": defective}
    return results


def time_ratio(run_: Run, image: np.ndarray, repeats: int = 60) -> dict[str, float]:
    """Seconds of one prediction end to end, calibrated and by the paper's test, interleaved; medians."""
    paper = uflow.load(run_.folder / "model.uflow", device="cpu")
    paper.calibrate([])
    calibrated = Detector(paper.backbone, paper.flow, device="cpu")
    background, joint, minima = calibration.fit(run_.held_out.energies, [image.shape[:2]] * len(run_.held_out))
    calibrated.background, calibrated.joint = background, joint
    calibrated.shift = calibration.conformal_shift(minima, ALPHA)
    seconds: dict[str, list[float]] = {"calibrated": [], "paper": []}
    for _ in range(repeats):
        for name, detector in (("calibrated", calibrated), ("paper", paper)):
            started = time.perf_counter()
            detector.predict(image)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["calibrated"], seconds["paper"], strict=True))
    return {**medians, "ratio": ratio}


# Plots ----------------------------------------------------------------------------------------------------------------


def plot_promise(results: dict[str, Any], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
    errors = np.array(next(iter(results.values()))["errors"])
    alphas = np.array(ALPHAS)
    axes.fill_between(alphas, 0, alphas + 2 * errors, color="0.92", label="kept, within two standard errors")
    axes.plot(alphas, alphas, color="0.4", linewidth=1, linestyle="--", label="promised")
    for (group, r), marker in zip(results.items(), "osv^D", strict=False):
        axes.plot(alphas, r["good"], marker=marker, markersize=5, label=group)
    axes.set(xscale="log", yscale="log", xlim=(0.009, 0.55), ylim=(0.005, 0.7))
    axes.set_xlabel("promised: alpha, the chance that a good image is flagged")
    axes.set_ylabel("measured: share of good test images flagged")
    _percent_ticks(axes, both=True)
    axes.set_title("False alarms promised and measured (magnetic_tile, mean of seeds)", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def plot_detection(results: dict[str, Any], published: dict[str, float], file: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained", sharey=True)
    titles = {
        "defective": "alpha asked for (threshold from the calibration images)",
        "equal": "share of all unseen good images flagged",
    }
    labels = {OURS: "ours: one grid", FORMER: "each scale by itself", PAPER: "paper's test, with the same shift"}
    for axes, (share, title) in zip(panels, titles.items(), strict=True):
        for (name, label), marker in zip(labels.items(), "osv", strict=True):
            axes.plot(ALPHAS, mean(results[name], share), marker=marker, markersize=5, label=label)
        axes.plot(
            *(max(published["good"], ALPHAS[0]), published["defective"]),
            **{"marker": "*", "markersize": 12, "color": "0.2", "linestyle": "none"},
            label=f"paper's test as published: {100 * published['good']:.1f} % of the good flagged",
        )
        axes.set(xscale="log", xlim=(0.009, 0.55), ylim=(0, 1.02), xlabel=title)
        axes.set_yticks(np.linspace(0, 1, 6), [f"{20 * i} %" for i in range(6)])
        _percent_ticks(axes)
    panels[0].set_ylabel("share of defective test images flagged")
    panels[0].legend(fontsize=8, loc="lower right")
    figure.suptitle("Defects found against false alarms (magnetic_tile, mean of seeds)", fontsize=10)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _percent_ticks(axes: Any, both: bool = False) -> None:
    ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    axes.set_xticks(ticks, [f"{100 * t:.0f} %" for t in ticks])
    if both:
        axes.set_yticks(ticks, [f"{100 * t:.0f} %" for t in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


# All of it ------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path, help="folders in the MVTec layout, the largest first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, required=True, help="folder for models and latents (some GB)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/threshold.json"))
    parser.add_argument("--plots", type=Path, default=Path("docs"), help="folder for the two plots")
    arguments = parser.parse_args()
    largest, seeds, kept = arguments.roots[0], arguments.seeds, arguments.cache

    runs = {root.name: [run(root, kept, seed) for seed in seeds] for root in arguments.roots}
    early = f"{largest.name}, one epoch"
    runs[early] = [run(largest, kept, seed, epochs=1) for seed in seeds]

    comparison = compare(runs)
    unshifted = []
    for r in runs[largest.name]:
        channels = tuple(z.shape[1] for z in r.test.latents)
        flagged = lowest(STATISTICS[PAPER](r.test, r.test, channels)[1]) < 0
        unshifted.append({"good": float(flagged[r.good].mean()), "defective": float(flagged[~r.good].mean())})
    published = {share: mean(unshifted, share) for share in ("good", "defective")}
    print(
        f"paper's test without shift, {largest.name}: good {cell(published['good'])} %, "
        f"defective {cell(published['defective'])} % flagged"
    )
    kinds = {
        kind: mean([f["kinds"] for f in comparison[OURS][largest.name]], kind)
        for kind in sorted(comparison[OURS][largest.name][0]["kinds"])
    }
    print_table([f"{largest.name}, alpha {ALPHA}", *kinds], [["flagged, per cent", *map(cell, kinds.values())]])

    promised = promise(
        {
            "default": runs[largest.name],
            "flow stopped after one epoch": runs[early],
            **{
                f"camera gain {g}, calibrated anew": [with_gain(largest, r, g) for r in runs[largest.name]]
                for g in (0.8, 1.2)
            },
        }
    )
    small = {}
    for root in arguments.roots:
        folds = len(hold_out(len(list_images(root / "train/good")), 0.15, 1e-6, 0))
        if len(list_images(root / "train/good")) < SMALL:
            small[root.name] = small_set([[run(root, kept, seed, fold) for fold in range(folds)] for seed in seeds])
            rows = [
                [
                    key,
                    str(r["images"]),
                    f"{cell(np.mean(r['good']))} ({cell(max(r['good']))})",
                    cell(np.mean(r["defective"])),
                ]
                for key, r in small[root.name].items()
            ]
            print_table([root.name, "images", "good flagged (most of any flow)", "defective flagged"], rows)

    picture = read_image(datasets.read_mvtec(largest).test[0].path)
    speed = time_ratio(runs[largest.name][0], picture)
    print(
        f"one prediction: {1e3 * speed['calibrated']:.1f} ms calibrated, {1e3 * speed['paper']:.1f} ms by the paper's "
        f"test; ratio {speed['ratio']:.3f}"
    )

    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "uflow": uflow.__version__,
        "seeds": seeds,
        "alphas": ALPHAS,
        "statistics": comparison,
        "published": published,
        "promise": promised,
        "small": small,
        "seconds": speed,
    }
    report.write_json(content, arguments.json)
    of_largest = {name: groups[largest.name] for name, groups in comparison.items()}
    plot_promise(promised, arguments.plots / "threshold-promise.png")
    plot_detection(of_largest, published, arguments.plots / "threshold-detection.png")


if __name__ == "__main__":
    main()
