"""What the published protocol costs on MVTec AD: operations counted on a dry run without values, memory by its shapes.

    python benchmarks/paper_cost.py --tflops 0.1,20

Operations are those of torch.utils.flop_counter: a multiplication and an addition are two. Features are computed once
an image; each epoch passes forward and back through the flow for each training image, and forward for each test image,
by which the published epochs are chosen. Epochs are the most there can be: patience ends most trainings before.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from uflow.backbones import _KNOWN, _MultiScaleCait
from uflow.evaluate.published import IMAGES
from uflow.flow import UFlow
from uflow.recipe import PAPER_TRAINING

SIZE = (448, 448)
SHAPES = ((768, 28, 28), (384, 14, 14))


def count_backbone() -> tuple[float, int]:
    """Operations of MS-CaiT an image, and how many parameters it holds."""
    entry = _KNOWN["mcait"]
    net = _MultiScaleCait(entry.archs, entry.blocks or (), SIZE).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, 3, *SIZE, device="meta"))
    return float(counter.get_total_flops()), sum(p.numel() for p in net.parameters())


def count_flow() -> tuple[float, float, int]:
    """Operations of the flow an image, forward, and forward and back; and how many parameters are trained."""
    flow = UFlow([c for c, *_ in SHAPES], [(h, w) for _, h, w in SHAPES], steps=4).to("meta")
    features = [torch.empty(1, *shape, device="meta") for shape in SHAPES]
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        flow(features)
    with FlopCounterMode(display=False) as both:
        latents, log_det = flow(features)
        flow.nll(latents, log_det).sum().backward()
    parameters = sum(p.numel() for p in flow.parameters())
    return float(forward.get_total_flops()), float(both.get_total_flops()), parameters


def print_costs(speeds: Sequence[float]) -> None:
    """The table of docs/guide/paper.md."""
    backbone, weights = count_backbone()
    forward, both, trained = count_flow()
    images = sum(train + test for train, test in IMAGES.values())
    shown = sum(PAPER_TRAINING[name][0] * train for name, (train, _) in IMAGES.items())
    judged = sum(PAPER_TRAINING[name][0] * test for name, (_, test) in IMAGES.items())
    print(f"MS-CaiT {backbone / 1e9:.0f} GFLOP an image, {weights / 1e6:.0f} million parameters")
    print(f"flow {forward / 1e9:.0f} GFLOP forward, {both / 1e9:.0f} and back, {trained / 1e6:.0f} million parameters")
    # Features are computed for training, for choosing by the test set, and for the evaluation of both sets.
    parts = {"features": 2 * images * backbone, "training": shown * both, "choosing the epoch": judged * forward}
    print("| part | PFLOP | " + " | ".join(f"hours at {speed:g} TFLOP/s" for speed in speeds) + " |")
    print("| --- |" + " ---: |" * (1 + len(speeds)))
    for name, operations in {**parts, "all": sum(parts.values())}.items():
        hours = " | ".join(f"{operations / speed / 1e12 / 3600:.1f}" for speed in speeds)
        print(f"| {name} | {operations / 1e15:.1f} | {hours} |")
    largest = max(train + test for train, test in IMAGES.values())
    values = sum(c * h * w for c, h, w in SHAPES)
    print(f"memory: weights {4 * weights / 1e9:.1f} GB; flow, gradients and Adam {16 * trained / 1e9:.2f} GB;")
    print(f"features of the largest category {4 * values * largest / 1e9:.1f} GB in float32")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", default="0.1,20", help="sustained speeds, such as of a CPU and of a GPU")
    print_costs([float(speed) for speed in parser.parse_args().tflops.split(",")])
