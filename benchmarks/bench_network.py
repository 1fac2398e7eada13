"""The networks beside FrEIA, timm, a matrix product and a straightforward pipeline; what each part of `fast/` gains."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import skimage
import torch
from PIL import Image
from race import CORES, Contest, Function, at_least, at_most
from straightforward import Straightforward, freia_graph, timm_lite0
from timm.models.cait import TalkingHeadAttn
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from uflow import backbones
from uflow.detector import Detector
from uflow.fast.cait import TalkingHeads
from uflow.fast.folded_flow import FoldedFlow
from uflow.features import FeatureSource, FeatureStream, compute_features
from uflow.flow import UFlow
from uflow.images import batches, read_image, resize_image
from uflow.network import TorchNetwork
from uflow.prediction import Prediction
from uflow.predictor import Predictor
from uflow.threshold import PaperThreshold
from uflow.training import TrainingSettings

Geometry = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]  # channels and sizes
MSCAIT: Geometry = (768, 384), ((28, 28), (14, 14))
LITE0: Geometry = (40, 112, 320), ((32, 32), (16, 16), (8, 8))
TINY: Geometry = (40, 112), ((8, 8), (4, 4))


def contests(quick: bool) -> Iterator[Contest]:
    """Flow, backbones, image to mask, a training epoch."""
    mscait, lite0 = (TINY, TINY) if quick else (MSCAIT, LITE0)
    for batch in (1, 8):
        yield flow_forward(f"MS-CaiT, batch {batch}", mscait, batch)
    yield training_step("MS-CaiT, batch 4", mscait, 4)
    yield training_step("Lite0, batch 16", lite0, 16)
    yield cait(quick)
    yield folded_net()
    yield from folded_flows("MS-CaiT, batch 1", mscait)
    yield from folded_flows("Lite0, batch 1", lite0)
    yield from prediction(quick)
    yield from epochs(quick)


def assert_equal(first: Sequence[Tensor], *others: Sequence[Tensor]) -> None:
    """Maps of all scales, to rounding."""
    for other in others:
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def assert_equal_losses(first: Tensor, other: Tensor) -> None:
    """One number each; features that are kept have half precision."""
    torch.testing.assert_close(first, other, rtol=1e-3, atol=0)


# The flow -------------------------------------------------------------------------------------------------------------


def features_of(geometry: Geometry, batch: int) -> list[Tensor]:
    """Standard normal features."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip(*geometry, strict=True)]


@torch.inference_mode()
def without_gradients(function: Callable[..., Any], *arguments: Any) -> Any:
    """As a prediction calls it."""
    return function(*arguments)


def flow_forward(case: str, geometry: Geometry, batch: int) -> Contest:
    """The same weights on both sides: a random start."""
    flow, features = UFlow(*geometry).eval(), features_of(geometry, batch)
    folded, graph = FoldedFlow(flow), freia_graph(flow)
    claim = at_least(1.5, "flow to latents: times faster than FrEIA 0.2")
    contestants = {
        "uflow": partial(without_gradients, folded, features),
        "FrEIA's graph": partial(without_gradients, lambda: graph(features)[0]),
    }
    return Contest("flow, features to latents", case, contestants, assert_equal, [claim])


def training_step(case: str, geometry: Geometry, batch: int) -> Contest:
    """Forwards and backwards."""
    flow = UFlow(*geometry)
    graph, features = freia_graph(flow), features_of(geometry, batch)
    claim = at_most(1, "flow, a training step: time over FrEIA's")
    contestants = {
        "uflow": partial(step, flow, features),
        "FrEIA's graph": partial(step, graph, features),
    }
    return Contest("flow, a training step", case, contestants, assert_equal_losses, [claim])


def step(flow: nn.Module, features: list[Tensor]) -> Tensor:
    """The loss and its gradients."""
    flow.zero_grad()
    latents, log_det = flow(features)
    loss = (sum(0.5 * z.square().sum((1, 2, 3)) for z in latents) - log_det).mean()
    loss.backward()
    return loss.detach()


def folded_flows(case: str, geometry: Geometry) -> Iterator[Contest]:
    """What folding and Winograd's convolutions gain."""
    flow, features = UFlow(*geometry).eval(), features_of(geometry, 1)
    contestants = {
        "uflow": partial(without_gradients, FoldedFlow(flow), features),
        "without Winograd": partial(without_gradients, FoldedFlow(flow, winograd=False), features),
        "as it is trained": partial(without_gradients, lambda: flow(features)[0]),
    }
    yield Contest("fast/: flow folded, Winograd", case, contestants, assert_equal)


# Backbones ------------------------------------------------------------------------------------------------------------


def cait(quick: bool) -> Contest:
    """The features of MS-CaiT, beside timm's attention and the rate of a matrix product."""
    backbone = random_cait(quick)
    side, rank = backbone.image_size[0], 64 if quick else 4096
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    # PyTorch's own count, of timm's attention: two for each multiplication of convolutions and matrix products.
    # LayerNorm, softmax, GELU, biases and residuals count nothing.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(backbone.extractor).to("meta")(torch.zeros(1, 3, side, side, device="meta"))
    flops, matrix = counter.get_total_flops(), torch.randn(rank, rank)
    text = "MS-CaiT features: rate over a matrix product's"
    contestants = {
        "uflow": partial(without_gradients, backbone, image),
        "timm's attention": partial(with_timm_attention, backbone, image),
        "matrix product": partial(without_gradients, torch.matmul, matrix, matrix),
    }
    return Contest(
        "MS-CaiT features",
        f"one image, {flops / 1e9:.0f} GFLOP",
        contestants,
        lambda maps, timm_maps, _: assert_equal(maps, timm_maps),
        [at_least(0.7, text, "matrix product")],
        work=(flops, flops, 2 * rank**3),
        unit="FLOP",
    )


def random_cait(quick: bool) -> backbones.Backbone:
    """MS-CaiT as the paper has it (quick: a small one), with random weights: its own cannot be had everywhere."""
    entry, size = backbones._KNOWN["mcait"], (448, 448)
    archs, blocks = entry.archs, entry.blocks or ()
    if quick:
        archs, blocks, size = ("cait_xxs24_224", "cait_xxs24_224"), (2, 2), (64, 64)
    extractor = backbones._MultiScaleCait(archs, blocks, size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in extractor.named_parameters():
            if name.endswith("norm.weight") or "norm1.weight" in name or "norm2.weight" in name:
                weight.fill_(1)
            elif "gamma" in name:
                weight.fill_(0.1)
            else:
                weight.normal_(0, 0.05 if ".proj_" in name else 0.02, generator=generator)
    return backbones.Backbone("mcait", extractor, size, entry.strides, extractor.channels, "random", "")


def with_timm_attention(backbone: nn.Module, image: Tensor) -> Any:
    """The same network, its attention by timm's own code."""
    with mock.patch.object(TalkingHeads, "forward", TalkingHeadAttn.forward):
        return without_gradients(backbone, image)


def folded_net() -> Contest:
    """Lite0's net with batch norms and padding folded, in channels_last, beside timm's."""
    net, folded = timm_lite0(), backbones.create_backbone().extractor.nets[0]
    last = timm_lite0().to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    image_last = image.contiguous(memory_format=torch.channels_last)
    contestants = {
        "uflow": partial(without_gradients, folded, image_last),
        "timm's, channels_last": partial(without_gradients, last, image_last),
        "timm's": partial(without_gradients, net, image),
    }
    return Contest("fast/: batch norms folded", "Lite0's net, one image", contestants, assert_near_maps)


def assert_near_maps(first: Sequence[Tensor], *others: Sequence[Tensor]) -> None:
    """To 1e-3 of the maps' deviation: they are not normalised yet."""
    for other in others:
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * float(b.std()))


# Image to mask --------------------------------------------------------------------------------------------------------


def crops(count: int, size: int) -> list[np.ndarray]:
    """Crops of a photograph of gravel, (size, size, 3) uint8."""
    photograph = skimage.data.gravel()
    rng = np.random.default_rng(0)
    places = rng.integers(0, np.array(photograph.shape) - size + 1, (count, 2)).tolist()
    return [np.repeat(photograph[y : y + size, x : x + size, None], 3, axis=2) for y, x in places]


def prediction(quick: bool) -> Iterator[Contest]:
    """The paper's method, which both do, and all that `fit` adds by default. Only the training is shorter."""
    size, count = (128, 12) if quick else (256, 24)  # scikit-image's tree needs maps of more than 2 x 2
    settings = TrainingSettings(epochs=1 if quick else 6, warm_up=0.0, augment=False)
    good = crops(count, size)
    detector = Detector.fit(good, image_size=size, settings=settings, alpha=0.2, device="cpu", progress=False)
    images = crops(count + 8, size)[count:]
    for image in images:
        image[size // 3 : 2 * size // 3, size // 4 : 5 * size // 8] = (200, 40, 40)  # a defect
    network = TorchNetwork(detector.network.backbone, detector.network.flow, device="cpu")
    paper, plain = Predictor(network, PaperThreshold()), Straightforward(network.flow)
    for threads in (1, 2)[: len(CORES)]:
        for some in (images[:1], images):
            contestants = {
                "uflow": partial(paper.predict, some),
                "timm, FrEIA, scikit-image": partial(plain.predict, some),
                "uflow, the default": partial(detector.predict, some),
            }
            yield image_to_mask(contestants, f"{len(some)} image{'s' * (len(some) > 1)}", threads)
    yield share_of_segmentation(detector, images[0])


def image_to_mask(contestants: dict[str, Function], case: str, threads: int) -> Contest:
    """The paper's method both ways: the same answers; and the default, whose answer is another."""
    text = "image to mask: times faster than others †"
    claims = [at_least(2, text, "timm")]
    case += ", 2 threads" if threads > 1 else ""
    return Contest("image to mask, Lite0", case, contestants, assert_same_predictions, claims, threads=threads)


def assert_same_predictions(results: list[Prediction], plain: list[Any], default: list[Prediction]) -> None:
    """Maps to rounding, regions of the same areas; something is found."""
    for result, (anomaly_map, log_nfa, mask, regions) in zip(results, plain, strict=True):
        np.testing.assert_allclose(result.anomaly_map, anomaly_map, rtol=0, atol=1e-4)
        np.testing.assert_allclose(result.log_nfa, log_nfa, rtol=0, atol=1e-4 * np.abs(log_nfa).max())
        assert (result.mask == mask).mean() > 0.9999
        assert sorted(region.area for region in result.regions) == sorted(region[0] for region in regions)
    assert any(result.regions for result in results)
    assert any(result.regions for result in default)


def share_of_segmentation(detector: Detector, image: np.ndarray) -> Contest:
    """Evidence to mask and regions, beside the whole."""
    (evidence,) = detector.predictor.evidence([image], 1)
    contestants = {
        "uflow, evidence to regions": lambda: detector.predictor.judge(image, image, evidence),
        "uflow, image to regions": lambda: detector.predict(image),
    }
    claim = at_most(0.02, "the same: share of the segmentation")
    return Contest("share of the segmentation, Lite0", "one image", contestants, None, [claim])


# A training epoch -----------------------------------------------------------------------------------------------------


def epochs(quick: bool) -> Iterator[Contest]:
    """Features computed once, beside features computed in each epoch."""
    yield from cached_epoch("MS-CaiT", random_cait(quick), 1, 1)
    yield from cached_epoch("Lite0", backbones.create_backbone(image_size=64 if quick else 256), 8 if quick else 32, 16)


def cached_epoch(case: str, backbone: backbones.Backbone, count: int, batch: int) -> Iterator[Contest]:
    """Computing features means reading the images too: they are PNG files of 448 x 448."""
    claim = at_least(3, "an epoch from cached features: times faster")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in range(count)]
        for path, image in zip(paths, crops(count, 448), strict=True):
            Image.fromarray(image).save(path)

        def read(number: int) -> np.ndarray:
            return resize_image(read_image(paths[number]), backbone.image_size)

        kept, anew = compute_features(backbone, map(read, range(count)), count), FeatureStream(backbone, count, read)
        flow = UFlow(backbone.channels, backbone.sizes, affine=backbone.layer_norm)
        start = copy.deepcopy(flow.state_dict())
        contestants = {
            "uflow": partial(epoch, flow, start, kept, batch),
            "uflow, features computed anew": partial(epoch, flow, start, anew, batch),
        }
        yield Contest("a training epoch", case, contestants, assert_equal_losses, [claim])
        kept.close()


def epoch(flow: UFlow, start: dict[str, Tensor], features: FeatureSource, batch: int) -> Tensor:
    """The sum of an epoch's losses, from the same start each time."""
    flow.load_state_dict(start)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-4)
    total = torch.zeros(())
    for indices in batches(range(len(features)), batch):
        loss = flow.nll(*flow(features.normalised(indices))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return total
