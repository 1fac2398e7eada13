"""The older block test against the same definition in numpy, scipy and torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import scipy.ndimage
import scipy.stats
import torch
from bench_log_nfa import LARGE, MSCAIT, SIZE, latents_of
from numpy.typing import NDArray
from race import Contest, agree_within, at_least

from uflow.segmentation import log_nfa_block


def contests(quick: bool) -> Iterator[Contest]:
    """Small and large latents; one image is one thread."""
    for name, shapes in (("MS-CaiT", MSCAIT), ("112x112", LARGE)):
        yield block_test(latents_of(shapes, quick), name)


def block_test(latents: list[NDArray[np.float32]], name: str) -> Contest:
    """uflow resizes in float32, as other maps."""
    claim = at_least(20, "block test: times faster than numpy and scipy")
    contestants = {
        "uflow": lambda: log_nfa_block(latents, SIZE),
        "numpy, scipy, torch": lambda: scipy_block(latents, SIZE),
    }
    return Contest("block test", name, contestants, agree_within(1e-6), [claim])


def scipy_block(latents: list[NDArray[np.float32]], size: int, window: int = 5, q: float = 0.9) -> NDArray[np.float64]:
    """The definition, see `uflow.segmentation.log_nfa_block`."""
    tau = scipy.stats.chi2.ppf(q, 1)
    total = np.full((len(latents[0]), size, size), math.log10(sum(z.shape[2] * z.shape[3] for z in latents)))
    for scale, z in enumerate(latents):
        side = 2 * max(int((window / 2**scale) // 2), 1) + 1
        count = (z * z >= tau).sum(axis=1)
        mean = scipy.ndimage.uniform_filter(count.astype(float), (0, side, side), mode="mirror")  # of the window
        x = np.floor(np.rint(mean * side**2) / z.shape[1])
        log_tail = torch.from_numpy(scipy.stats.binom.logsf(x, side**2, 1 - q) / math.log(10))
        bicubic = {"mode": "bicubic", "align_corners": True}
        total += torch.nn.functional.interpolate(log_tail[:, None], (size, size), **bicubic)[:, 0].numpy()
    return total
