"""Times the networks beside FrEIA, timm, a matrix product and a straightforward pipeline; redraws docs/inference.md.

python benchmarks/network.py                    all of it, about 6 minutes; writes results/network.json too
python benchmarks/network.py --redraw           the table again, from the JSON that is there
python benchmarks/network.py --only predict     one part; prints, writes nothing

Each part asserts first that both sides give the same answer. Then they run in turns; a round is some calls of each, a
ratio that of two neighbouring rounds, and the median of the ratios counts. One thread on one core, in processor time,
but where a row says 2 threads: those by the clock, which needs an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import skimage
import timm
import torch
import torch._inductor.config
import torch.nn.functional as F
from PIL import Image
from timm.models.cait import TalkingHeadAttn
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import normalize, to_tensor

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from bench_log_nfa import scikit_log_nfa
from FrEIA.modules import AllInOneBlock
from run import _version, machine_line, markdown, number, replace

from conftest import spread
from test_flow import freia_uflow
from uflow import backbones, benchmark, segmentation, training, weights
from uflow.detector import Detector
from uflow.fast.cait import TalkingHeads
from uflow.fast.folded_flow import FoldedFlow
from uflow.features import compute_features, image_tensor
from uflow.flow import UFlow
from uflow.images import batches, read_image, resize_image
from uflow.interop.freia import convert_freia

HERE = Path(__file__).parent
Geometry = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]  # channels and sizes
MSCAIT: Geometry = (768, 384), ((28, 28), (14, 14))
LITE0: Geometry = (40, 112, 320), ((32, 32), (16, 16), (8, 8))
Function = Callable[[], object]
Row = dict[str, Any]
clock = time.process_time
CORES: set[int] = getattr(os, "sched_getaffinity", lambda _: set())(0)


def use(threads: int) -> None:
    """One thread is pinned to a core and timed by its processor time, which other processes do not stretch."""
    global clock
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    if CORES:
        os.sched_setaffinity(0, {min(CORES)} if threads == 1 else CORES)


def race(ours: Function, other: Function, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds a call of both, in turns: a round is as many calls as take about 0.15 s."""
    calls = []
    for function in (ours, other):
        for _ in range(2):  # the second call is warm, but for slow ones that is no matter
            start = clock()
            function()
            seconds = clock() - start
            if seconds > 1:
                break
        calls.append(max(1, round(0.15 / seconds)))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, count, kept in zip((ours, other), calls, times, strict=True):
            start = clock()
            for _ in range(count):
                function()
            kept.append((clock() - start) / count)
    return times


def row(target: str, where: str, sense: str, bound: float, ratios: Sequence[float], **info: object) -> Row:
    ratio = spread(ratios)
    met = ratio["median"] >= bound if sense == ">=" else ratio["median"] <= bound
    return {"target": target, "where": where, "sense": sense, "bound": bound, "ratio": ratio, "met": met, **info}


def compare(target: str, where: str, sense: str, bound: float, ours: Function, other: Function, rounds: int) -> Row:
    """ ">=": how many times as long the other takes; "<=": our time over the other's."""
    own, others = race(ours, other, rounds)
    ratios = [b / a if sense == ">=" else a / b for a, b in zip(own, others, strict=True)]
    times = {"ours_ms": 1e3 * float(np.median(own)), "other_ms": 1e3 * float(np.median(others))}
    return row(target, where, sense, bound, ratios, **times)


# The flow -------------------------------------------------------------------------------------------------------------


def both_flows(channels: Sequence[int], sizes: Sequence[tuple[int, int]]) -> tuple[UFlow, nn.Module]:
    """Ours and FrEIA 0.2's with the same weights: PyTorch's random start, scales and offsets moved."""
    graph = freia_uflow(channels, sizes, 4).float().eval()
    with torch.no_grad():
        for name, weight in graph.named_parameters():
            if "subnet" in name:
                weight.div_(4)  # which the tests multiply by 4
    flow = UFlow(channels, sizes)
    flow.load_state_dict(convert_freia({f"flow.{k}": v for k, v in graph.state_dict().items()}))
    return flow.eval(), graph


def random_features(channels: Sequence[int], sizes: Sequence[tuple[int, int]], batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip(channels, sizes, strict=True)]


def flow_forward() -> Iterator[Row]:
    yield forward("MS-CaiT", MSCAIT, 1, 9)
    yield forward("MS-CaiT", MSCAIT, 8, 5)


def forward(name: str, geometry: Geometry, batch: int, rounds: int) -> Row:
    flow, graph = both_flows(*geometry)
    folded, features = FoldedFlow(flow), random_features(*geometry, batch)
    with torch.inference_mode():
        for a, b in zip(folded(features), graph(features)[0], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        target = "flow, features to latents: times faster than FrEIA 0.2's graph"
        where = f"{name}, batch {batch}"
        return compare(target, where, ">=", 1.5, lambda: folded(features), lambda: graph(features), rounds)


def training_step() -> Iterator[Row]:
    yield from step("MS-CaiT", MSCAIT, 4, 3)
    yield from step("Lite0", LITE0, 16, 7)


def step(name: str, geometry: Geometry, batch: int, rounds: int) -> Iterator[Row]:
    flow, graph = both_flows(*geometry)
    features = random_features(*geometry, batch)

    def ours(bfloat16: bool = False) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            latents, log_det = flow(features)
        flow.zero_grad()
        loss = flow.nll(latents, log_det).mean()
        loss.backward()
        return loss

    def other() -> Tensor:
        graph.zero_grad()
        latents, log_det = graph(features)
        loss = (sum(0.5 * z.square().sum((1, 2, 3)) for z in latents) - log_det).mean()
        loss.backward()
        return loss

    torch.testing.assert_close(ours(), other(), rtol=1e-5, atol=0)
    target = "flow, a training step: time over that of FrEIA 0.2's graph"
    yield compare(target, f"{name}, batch {batch}", "<=", 1, ours, other, rounds)
    yield gain("precision='bfloat16'", f"{name}'s training step, batch {batch}", partial(ours, True), ours, rounds)


# CaiT -----------------------------------------------------------------------------------------------------------------


def mcait() -> backbones.Backbone:
    """MS-CaiT as the paper has it, with random weights: its own cannot be had everywhere."""
    entry = backbones._KNOWN["mcait"]
    extractor = backbones._MultiScaleCait(entry.archs, entry.blocks or (), (448, 448))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in extractor.named_parameters():
            if name.endswith("norm.weight") or "norm1.weight" in name or "norm2.weight" in name:
                weight.fill_(1)
            elif "gamma" in name:
                weight.fill_(0.1)
            else:
                weight.normal_(0, 0.05 if ".proj_" in name else 0.02, generator=generator)
    return backbones.Backbone("mcait", extractor, (448, 448), entry.strides, extractor.channels, "random", "")


def cait() -> Iterator[Row]:
    backbone = mcait()
    # PyTorch's own count, of timm's attention: two for each multiplication of convolutions and matrix products.
    # LayerNorm, softmax, GELU, biases and residuals count nothing.
    meta = copy.deepcopy(backbone.extractor).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(torch.zeros(1, 3, 448, 448, device="meta"))
    flops = counter.get_total_flops()
    image = torch.rand(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    matrix = torch.randn(4096, 4096)
    with torch.inference_mode():
        maps = backbone(image)
        with mock.patch.object(TalkingHeads, "forward", TalkingHeadAttn.forward):
            start = clock()
            for a, b in zip(maps, backbone(image), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
            timm_ms = 1e3 * (clock() - start)
        own, product = race(lambda: backbone(image), lambda: matrix @ matrix, 5)
    share = [flops / a / (2 * 4096**3 / b) for a, b in zip(own, product, strict=True)]
    parameters = sum(p.numel() for p in backbone.parameters())
    yield row(
        "MS-CaiT features: FLOP/s over those of a 4096 x 4096 float32 matrix product",
        f"one image, {flops / 1e9:.1f} GFLOP, {parameters / 1e6:.0f} million weights",
        ">=",
        0.7,
        share,
        ours_ms=1e3 * float(np.median(own)),
        product_gflops=2 * 4096**3 / float(np.median(product)) / 1e9,
    )
    gains = [timm_ms / (1e3 * a) for a in own]
    target = "attention for some queries at a time"
    yield row(target, "MS-CaiT's features", ">=", 0, gains, ours_ms=1e3 * float(np.median(own)), other_ms=timm_ms)


# Image to mask --------------------------------------------------------------------------------------------------------


def crops(count: int, size: int) -> list[np.ndarray]:
    """Crops of a photograph of gravel, (size, size, 3) uint8."""
    photograph = skimage.data.gravel()
    rng = np.random.default_rng(0)
    places = rng.integers(0, np.array(photograph.shape) - size + 1, (count, 2)).tolist()
    return [np.repeat(photograph[y : y + size, x : x + size, None], 3, axis=2) for y, x in places]


def timm_lite0() -> nn.Module:
    net = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4)).eval()
    path, _ = weights._find("efficientnet_lite0", "tf_efficientnet_lite0", ["tf_efficientnet_lite0"])
    whole = backbones._skeleton("tf_efficientnet_lite0").state_dict()
    weights.fill_net(net, "tf_efficientnet_lite0", whole, path, hashlib.sha256())
    return net.requires_grad_(False)


class Straightforward:
    """What one writes from the paper: torchvision, timm, FrEIA, scikit-image's tree, and Python for the rest."""

    def __init__(self, detector: Detector) -> None:
        self.net = timm_lite0()
        self.affines = detector.flow.affines
        self.graph = freia_uflow(detector.flow.channels, detector.flow.sizes, detector.flow.steps).float().eval()
        blocks = [block for block in self.graph.module_list if isinstance(block, AllInOneBlock)]
        steps = [step for stage in reversed(detector.flow.stages) for step in stage]
        with torch.no_grad():
            for block, step in zip(blocks, steps, strict=True):
                block.subnet.load_state_dict(step.subnet.state_dict())
                for name in ("global_scale", "global_offset"):
                    getattr(block, name).copy_(getattr(step, name).view(getattr(block, name).shape))
                block.w_perm.copy_(torch.eye(len(step.permutation))[step.permutation][..., None, None])

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, list[Any]]]:
        """Anomaly map, log NFA, mask and regions of (256, 256, 3) images."""
        x = torch.stack([to_tensor(image) for image in images])
        maps = self.net(normalize(x, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
        features = [F.layer_norm(f, f.shape[1:], a.weight, a.bias) for f, a in zip(maps, self.affines, strict=True)]
        latents, _ = self.graph(features)
        likely = [torch.exp(-0.5 * z.square().mean(dim=1, keepdim=True)) for z in latents]
        resized = [F.interpolate(p, (256, 256), mode="bilinear", align_corners=False) for p in likely]
        anomaly_maps = 1 - torch.cat(resized, dim=1).mean(dim=1).numpy()
        found = []
        for i, anomaly_map in enumerate(anomaly_maps):
            log_nfa = scikit_log_nfa([z[i : i + 1] for z in latents], 256)
            mask = log_nfa < 0
            labels = skimage.measure.label(mask, connectivity=1)
            properties = skimage.measure.regionprops(labels, np.stack([log_nfa, anomaly_map], axis=2))
            regions = [(r.area, r.bbox, r.centroid, r.intensity_min[0], r.intensity_max[1]) for r in properties]
            found.append((anomaly_map, log_nfa, mask, regions))
        return found


def predict() -> Iterator[Row]:
    settings = training.TrainingSettings(epochs=6, warm_up=0.0)
    detector = Detector.fit(crops(24, 256), settings=settings, alpha=None, device="cpu", progress=False)
    images = crops(32, 256)[24:]
    for image in images:
        image[80:144, 64:160] = skimage.data.grass()[:64, :96, None]  # a defect
    plain = Straightforward(detector)
    results = detector.predict(images)
    for result, (anomaly_map, log_nfa, mask, regions) in zip(results, plain.predict(images), strict=True):
        np.testing.assert_allclose(result.anomaly_map, anomaly_map, rtol=0, atol=1e-4)
        np.testing.assert_allclose(result.log_nfa, log_nfa, rtol=0, atol=1e-4 * np.abs(log_nfa).max())
        assert (result.mask == mask).mean() > 0.9999
        assert sorted(r.area for r in result.regions) == sorted(r[0] for r in regions)
    assert any(result.regions for result in results)
    target = "Lite0, image to map, mask and regions: times faster than timm + FrEIA + scikit-image"
    one = images[:1]
    for threads in (1, 2)[: max(len(CORES), 1)]:
        use(threads)
        where = "" if threads == 1 else ", 2 threads"
        yield compare(
            target, f"one image{where}", ">=", 2, lambda: detector.predict(one[0]), lambda: plain.predict(one), 15
        )
        yield compare(
            target, f"8 images{where}", ">=", 2, lambda: detector.predict(images), lambda: plain.predict(images), 7
        )
    use(1)
    energies = detector._energies([images[0]], 1)[0]

    def segment() -> None:
        log_nfa = detector._log_nfa(energies, (256, 256))
        mask = log_nfa < 0
        segmentation.regions(mask, log_nfa, results[0].anomaly_map)

    target = "the same: share of the segmentation in it"
    yield compare(target, "one image", "<=", 0.02, segment, lambda: detector.predict(images[0]), 15)


# Training -------------------------------------------------------------------------------------------------------------


def epoch() -> Iterator[Row]:
    yield cached_epoch("MS-CaiT", mcait(), 1, 1, 3)
    yield cached_epoch("Lite0", backbones.create_backbone(), 32, 16, 3)


def cached_epoch(name: str, backbone: backbones.Backbone, count: int, batch: int, rounds: int) -> Row:
    """Computing features means reading the images too: they are PNG files of 448 x 448."""
    flow = UFlow(backbone.channels, backbone.sizes, affine=backbone.layer_norm)
    start = {k: v.clone() for k, v in flow.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in range(count)]
        for path, image in zip(paths, crops(count, 448), strict=True):
            Image.fromarray(image).save(path)

        def read(index: int) -> np.ndarray:
            return resize_image(read_image(paths[index]), backbone.image_size)

        def compute(indices: Sequence[int]) -> list[Tensor]:
            with torch.no_grad():
                return backbone(image_tensor(np.stack([read(i) for i in indices]), "cpu"))

        def run(features_of: Callable[[Sequence[int]], list[Tensor]]) -> float:
            flow.load_state_dict(start)
            optimizer = torch.optim.Adam(flow.parameters(), lr=1e-4)
            total = 0.0
            for indices in batches(range(count), batch):
                loss = flow.nll(*flow(features_of(indices))).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            return total

        with compute_features(backbone, map(read, range(count)), count) as cache:
            assert abs(run(cache.batch) / run(compute) - 1) < 1e-5
            target = "a training epoch from cached features: times faster than one that computes them"
            return compare(target, name, ">=", 3, lambda: run(cache.batch), lambda: run(compute), rounds)


# What was tried -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def tried() -> Iterator[Row]:
    """One change at a time: how many times as long it takes without."""
    channels_last = torch.channels_last
    backbone = backbones.create_backbone()
    net, folded = timm_lite0(), backbone.extractor.nets[0]
    images = torch.rand(8, 3, 256, 256)
    one, one_last = images[:1], images[:1].contiguous(memory_format=channels_last)
    last = timm_lite0().to(memory_format=channels_last)
    where = "Lite0's net, one image"
    yield gain("channels_last instead of NCHW", where, lambda: last(one_last), lambda: net(one))
    yield gain("batch norms and padding folded", where, lambda: folded(one_last), lambda: last(one_last))
    whole = backbone.extractor
    target, of_8 = "two images at a time", "Lite0's features, 8 images"
    yield gain(target, of_8, lambda: whole(images), lambda: whole._maps(images), 7)
    half, half_image = copy.deepcopy(folded).bfloat16(), one_last.bfloat16()
    off = max(float((a - b).std() / b.std()) for a, b in zip(half(half_image), folded(one_last), strict=True))
    target = f"not kept: bfloat16, maps off by {off:.1%} of their deviation"
    yield gain(target, where, lambda: half(half_image), lambda: folded(one_last))
    with mock.patch.object(torch._inductor.config, "freezing", True):
        compiled = torch.compile(folded)
        torch.testing.assert_close(compiled(one_last), folded(one_last), rtol=0, atol=1e-3)
    yield gain("not kept: torch.compile, frozen", where, lambda: compiled(one_last), lambda: folded(one_last))

    for name, geometry in (("MS-CaiT", MSCAIT), ("Lite0", LITE0)):
        flow, _ = both_flows(*geometry)
        plain, fast, features = FoldedFlow(flow, winograd=False), FoldedFlow(flow), random_features(*geometry, 1)
        where = f"{name}'s flow, one image"
        yield gain("constants folded, no log_det", where, partial(plain, features), partial(flow, features))
        if geometry is MSCAIT:
            yield gain("Winograd, channels_last", where, partial(fast, features), partial(plain, features))
    r = torch.randn(784, 408)
    yield gain("sigmoid instead of tanh", "408 x 28 x 28 values", lambda: torch.sigmoid(r), lambda: torch.tanh(r))


def gain(change: str, where: str, ours: Function, other: Function, rounds: int = 9) -> Row:
    return compare(change, where, ">=", 0, ours, other, rounds)


# The command ----------------------------------------------------------------------------------------------------------

PARTS = {f.__name__: f for f in (flow_forward, training_step, cait, predict, epoch, tried)}


def tables(result: Row) -> list[str]:
    """The targets, and what was tried."""
    wanted = [["target", "where", "wanted", "measured (quartiles)", "met", "ours, ms", "the other, ms"]]
    others = [["one change at a time", "where", "times faster (quartiles)", "with it, ms", "without, ms"]]
    for r in result["rows"]:
        digits = percent if r["bound"] == 0.02 else number
        ratio = "{} ({} to {})".format(*(digits(r["ratio"][k]) for k in ("median", "low", "high")))
        times = [number(r["ours_ms"]), number(r["other_ms"]) if "other_ms" in r else ""]
        if r["bound"]:
            bound = f"{'≥' if r['sense'] == '>=' else '≤'} {r['bound']:g}"
            wanted.append([r["target"], r["where"], bound, ratio, "yes" if r["met"] else "**no**", *times])
        else:
            others.append([r["target"], r["where"], ratio, *times])
    return [markdown(wanted), markdown(others)]


def percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    file = HERE / "results/network.json"
    if arguments.redraw:
        result = json.loads(file.read_text())
    else:
        started, rows = time.time(), []
        warnings.simplefilter("ignore")
        for name, part in PARTS.items():
            if arguments.only in (None, name):
                use(1)
                for found in part():
                    rows.append(found)
                    print(f"{time.time() - started:4.0f} s  {found['target']}, {found['where']}", flush=True)
        use(len(CORES) or 1)
        machine = benchmark.machine()
        machine["versions"] |= {name: _version(name) for name in ("torch", "timm", "FrEIA", "scikit-image")}
        result = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "quick": False,
            "seconds": round(time.time() - started),
            "machine": machine,
            "rows": rows,
        }
    print(*tables(result), sep="\n\n")
    if arguments.only is None:
        file.write_text(json.dumps(result, indent=2) + "\n")
        versions = ", ".join(f"{k} {v}" for k, v in result["machine"]["versions"].items())
        replace(HERE.parent / "docs/inference.md", [*tables(result), f"{machine_line(result)}; {versions}."])


if __name__ == "__main__":
    main()
