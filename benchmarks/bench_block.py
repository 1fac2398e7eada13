"""The older block test against the same definition in numpy, scipy and torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from bench_log_nfa import LARGE, MSCAIT, SIZE, Shapes, latents_of, shapes_of
from numpy.typing import NDArray

from conftest import Race, at_least
from uflow import segmentation


def scipy_block(latents: list[NDArray[np.float32]], size: int, window: int = 5, q: float = 0.9) -> NDArray[np.float64]:
    tau = scipy.stats.chi2.ppf(q, 1)
    total = np.full((len(latents[0]), size, size), math.log10(sum(z.shape[2] * z.shape[3] for z in latents)))
    for scale, z in enumerate(latents):
        side = 2 * max(int((window / 2**scale) // 2), 1) + 1
        count = (z * z >= tau).sum(axis=1)
        mean = scipy.ndimage.uniform_filter(count.astype(float), (0, side, side), mode="mirror")  # of the window
        x = np.floor(np.rint(mean * side**2) / z.shape[1])
        log_tail = scipy.stats.binom.logsf(x, side**2, 1 - q) / math.log(10)
        total += torch.nn.functional.interpolate(
            torch.from_numpy(log_tail)[:, None], size=(size, size), mode="bicubic", align_corners=True
        )[:, 0].numpy()
    return total


@pytest.mark.parametrize(("name", "shapes"), [("MS-CaiT", MSCAIT), ("112x112", LARGE)])
def test_block(race: Race, quick: bool, name: str, shapes: Shapes) -> None:
    latents = latents_of(shapes_of(shapes, quick))
    # The lead's public function takes no number of threads: one image is one thread.
    ours: Any = segmentation.log_nfa_block
    expected = scipy_block(latents, SIZE)  # ours is resized in float32, as other maps are
    np.testing.assert_allclose(ours(latents, SIZE), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    race(
        lambda: ours(latents, SIZE),
        lambda: scipy_block(latents, SIZE),
        at_least(20, "block test: times faster than numpy and scipy"),
        group=f"block test {name}",
        library="numpy, scipy, torch",
        kind=name,
    )
