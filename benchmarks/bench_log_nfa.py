"""Latents to log NFA: against scikit-image, larger latents, and threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import skimage.morphology
import torch
from numpy.typing import NDArray
from race import CORES, Contest, Function, agree_within, at_least, at_most
from straightforward import paper_log_nfa

from uflow import segmentation

Shapes = tuple[tuple[int, int, int], ...]
MSCAIT: Shapes = ((816, 28, 28), (192, 14, 14))
LARGE: Shapes = ((112, 112, 112), (128, 56, 56), (128, 28, 28))
SIZE = 256
FORMS = ("float32 array", "CPU tensor")
# Sums of squares in float32, in another order, differ by some 1e-7, and so does log P.
agree = agree_within(1e-6)


def contests(quick: bool) -> Iterator[Contest]:
    """One image on one thread, then a batch on several."""
    for form in FORMS:
        yield beside_one_tree(latents_of(MSCAIT, quick), form)
    for name, shapes in (("MS-CaiT", MSCAIT), ("112x112", LARGE)):
        yield whole(latents_of(shapes, quick), name)
    for form in FORMS:
        yield larger_latents(quick, form)
    if len(CORES) > 1:
        for source, log_nfa in batch_functions(quick).items():
            yield from threads(source, log_nfa)
            yield from python_threads(source, log_nfa)


def latents_of(shapes: Shapes, quick: bool, batch: int = 1) -> list[NDArray[np.float32]]:
    """Standard normal latents with a defect: a ninth of the map, of twice the standard deviation."""
    rng, part = np.random.default_rng(0), 4 if quick else 1
    latents = [rng.standard_normal((batch, c, h // part, w // part), np.float32) for c, h, w in shapes]
    for z in latents:
        height, width = z.shape[2:]
        z[:, :, height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] *= 2
    return latents


def in_form(latents: list[NDArray[np.float32]], form: str) -> list[Any]:
    """Arrays as they are, or tensors."""
    return [torch.from_numpy(z) for z in latents] if form == "CPU tensor" else list(latents)


def log_nfa_of(latents: list[Any]) -> Function:
    """The whole public call on one thread."""
    return lambda: segmentation.log_nfa(latents, SIZE, threads=1)[0]


def beside_one_tree(latents: list[NDArray[np.float32]], form: str) -> Contest:
    """scikit-image computes nothing but the tree of the finest map."""
    energy = segmentation.energies(latents)[0][0]
    claim = at_least(6, "`log_nfa`, MS-CaiT: times faster than scikit-image")
    contestants = {
        "uflow": log_nfa_of(in_form(latents, form)),
        "scikit-image, tree of 28x28 only": lambda: skimage.morphology.max_tree(energy, connectivity=1),
    }
    return Contest("log NFA, MS-CaiT", form, contestants, None, [claim])


def whole(latents: list[NDArray[np.float32]], name: str) -> Contest:
    """All of it from scikit-image, Python and torch."""
    contestants = {"uflow": log_nfa_of(latents), "scikit-image and Python, whole": lambda: paper_log_nfa(latents, SIZE)}
    return Contest("log NFA", name, contestants, agree)


def larger_latents(quick: bool, form: str) -> Contest:
    """What larger maps cost."""
    large, small = (in_form(latents_of(shapes, quick), form) for shapes in (LARGE, MSCAIT))
    claim = at_most(6, "`log_nfa`, 112x112 and below: time over MS-CaiT's")
    contestants = {"uflow, 112x112": log_nfa_of(large), "uflow, MS-CaiT": log_nfa_of(small)}
    return Contest("log NFA, 112x112 over MS-CaiT", form, contestants, None, [claim])


class Batch:
    """A batch of images; its methods give log NFA of the images from `start` to `stop`."""

    def __init__(self, quick: bool) -> None:
        self.images = 16 if quick else 64
        self.latents = latents_of(MSCAIT, quick, self.images)
        self.energies = segmentation.energies(self.latents)
        self.dof = [z.shape[1] for z in self.latents]

    def from_latents(self, start: int, stop: int, threads: int) -> NDArray[np.float32]:
        """As a network leaves them."""
        return segmentation.log_nfa([z[start:stop] for z in self.latents], SIZE, threads=threads)

    def from_energies(self, start: int, stop: int, threads: int) -> NDArray[np.float32]:
        """As a network on a GPU leaves them."""
        energies = [e[start:stop] for e in self.energies]
        return segmentation.log_nfa_from_energies(energies, self.dof, SIZE, threads=threads)


def batch_functions(quick: bool) -> dict[str, Any]:
    """source -> a function (first image, last image, threads) of a batch, and how many images it has."""
    batch = Batch(quick)
    return {"latents": (batch.from_latents, batch.images), "energies": (batch.from_energies, batch.images)}


def same_bytes(several: NDArray[np.float32], alone: NDArray[np.float32]) -> None:
    """Results do not depend on the number of threads."""
    assert several.tobytes() == alone.tobytes()


def threads(source: str, log_nfa: tuple[Any, int]) -> Iterator[Contest]:
    """One call with several worker threads."""
    function, images = log_nfa
    for count in (2, 4, 8):
        claims = [at_least(1.8, f"64 images from {source}: 2 threads over 1")] if count == 2 else []
        several = {f"uflow, {count} threads": partial(function, 0, images, count)}
        yield over_one_thread("one call", source, log_nfa, count, several, claims)


def python_threads(source: str, log_nfa: tuple[Any, int]) -> Iterator[Contest]:
    """Python threads at once, each with its part of the batch on one thread: a held lock would make them wait."""
    function, images = log_nfa
    for count in (2, 4, 8):
        claims = [at_least(1.2, f"the same from {source}, 8 threads")] if count == 8 else []
        with ThreadPoolExecutor(count) as pool:
            several = {f"uflow, {count} Python threads": partial(in_parts, pool, function, images, count)}
            yield over_one_thread("Python threads", source, log_nfa, count, several, claims)


def over_one_thread(
    by: str,
    source: str,
    log_nfa: tuple[Any, int],
    count: int,
    several: dict[str, Any],
    claims: list[Any],
) -> Contest:
    """A batch by several threads beside the same by one."""
    function, images = log_nfa
    return Contest(
        f"64 images, {by}",
        f"from {source}, {count} threads",
        {**several, "uflow, 1 thread": partial(function, 0, images, 1)},
        same_bytes,
        claims,
        threads=count,
        details={"by": by, "source": source},
    )


def in_parts(pool: ThreadPoolExecutor, function: Any, images: int, count: int) -> NDArray[np.float32]:
    """All images, an equal part for each thread of the pool."""
    part = images // count
    return np.concatenate(list(pool.map(lambda i: function(i * part, (i + 1) * part, 1), range(count))))
