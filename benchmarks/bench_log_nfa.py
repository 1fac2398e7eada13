"""Latents to log NFA: the whole test against scikit-image and the slow twin, larger latents, and threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import skimage.morphology
import torch
from numpy.typing import NDArray

import reference
from conftest import Race, at_least, at_most
from uflow import segmentation

Shapes = tuple[tuple[int, int, int], ...]
MSCAIT: Shapes = ((816, 28, 28), (192, 14, 14))
LARGE: Shapes = ((112, 112, 112), (128, 56, 56), (128, 28, 28))
SIZE = 256


def latents_of(shapes: Shapes, batch: int = 1) -> list[NDArray[np.float32]]:
    """Standard normal latents with a defect: a ninth of the map, of twice the standard deviation."""
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal((batch, *shape), np.float32) for shape in shapes]
    for z in latents:
        height, width = z.shape[2:]
        z[:, :, height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] *= 2
    return latents


def shapes_of(shapes: Shapes, quick: bool) -> Shapes:
    return tuple((c, h // 4, w // 4) for c, h, w in shapes) if quick else shapes


def scikit_log_pfa(energy: NDArray[np.float32], dof: int) -> NDArray[np.float64]:
    """log10 P of the final region of each cell: scikit-image's max-tree, the rest in plain Python (method.md)."""
    flat = energy.ravel()
    parent, order = skimage.morphology.max_tree(energy, connectivity=1)
    up, pixels = parent.ravel().tolist(), order.tolist()
    root = pixels[0]
    nodes = [p for p in pixels if p == root or flat[up[p]] != flat[p]]
    area = [1] * flat.size
    for p in reversed(pixels[1:]):
        area[up[p]] += area[p]
    t = flat.astype(float) / dof
    log_p = np.where(t > 1, -dof / 2 * (t - 1 - np.log(t)) / np.log(10), 0.0)
    value = {p: area[p] * float(log_p[p]) for p in nodes}
    children: dict[int, list[int]] = {p: [] for p in nodes}
    for p in nodes[1:]:
        children[up[p]].append(p)
    standing: dict[int, int | None] = {}  # the region that stands for a node so far
    for p in reversed(nodes):
        below = [standing[kid] for kid in children[p]]
        if not below:
            standing[p] = p
        elif None in below:
            standing[p] = None
        elif len(below) == 1:
            standing[p] = min(below[0], p, key=value.__getitem__)
        else:
            standing[p] = p if value[p] <= min(value[b] for b in below) else None
    final: set[int | None] = set()
    decided: dict[int, bool] = {}
    for p in nodes:
        decided[p] = p != root and decided[up[p]]
        if not decided[p] and standing[p] is not None:
            final.add(standing[p])
            decided[p] = True
    result = np.zeros(flat.size)
    region: dict[int, int | None] = {root: None}
    for p in pixels:
        region[p] = p if p in final else region[up[p]]
        if region[p] is not None:
            result[p] = value[region[p]]
    return result.reshape(energy.shape)


def scikit_log_nfa(latents: Sequence[Any], size: int) -> NDArray[np.float64]:
    """log NFA of one image, without the core: scikit-image, Python and torch."""
    maps = []
    for z in map(torch.as_tensor, latents):
        log_pfa = scikit_log_pfa(z[0].square().sum(0).numpy(), z.shape[1])
        maps.append(
            torch.nn.functional.interpolate(
                torch.from_numpy(log_pfa)[None, None], size=(size, size), mode="bilinear", align_corners=False
            )[0, 0].numpy()
        )
    tests: float = reference.log10_number_of_tests([z.shape[2] * z.shape[3] for z in latents])
    return np.asarray(np.min(maps, axis=0) + tests)


def assert_maps_equal(ours: NDArray[np.float32], theirs: NDArray[np.float64]) -> None:
    # Sums of squares in float32, in another order, differ by some 1e-7, and so does log P.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())
    assert (theirs < 0).any()  # the defect is there
    assert (theirs > 0).any()


@pytest.mark.parametrize("form", ["float32 array", "CPU tensor"])
def test_scikit_image_tree(race: Race, quick: bool, form: str) -> None:
    latents: list[Any] = latents_of(shapes_of(MSCAIT, quick))
    energy = segmentation.energies(latents)[0][0]
    flat = energy.ravel()
    ours, theirs = (
        np.asarray(tree(energy)[0]).ravel()
        for tree in (segmentation.max_tree, lambda e: skimage.morphology.max_tree(e, connectivity=1))
    )
    assert len(np.unique(flat)) == flat.size  # every pixel is a component, so that parents can be compared
    np.testing.assert_array_equal(ours, theirs)
    assert_maps_equal(segmentation.log_nfa(latents, SIZE, threads=1)[0], scikit_log_nfa(latents, SIZE))
    if form == "CPU tensor":
        latents = [torch.from_numpy(z) for z in latents]
    race(
        lambda: segmentation.log_nfa(latents, SIZE, threads=1),
        lambda: skimage.morphology.max_tree(energy, connectivity=1),
        at_least(6, "`log_nfa` of MS-CaiT latents: times faster than scikit-image's tree of the 28x28 map alone"),
        group=f"log_nfa MS-CaiT {form}",
        library="scikit-image, tree of 28x28 only",
        kind=form,
    )


@pytest.mark.parametrize("latents_name", ["MS-CaiT", "112x112"])
def test_scikit_image_whole(race: Race, quick: bool, latents_name: str) -> None:
    latents = latents_of(shapes_of(MSCAIT if latents_name == "MS-CaiT" else LARGE, quick))
    assert_maps_equal(segmentation.log_nfa(latents, SIZE, threads=1)[0], scikit_log_nfa(latents, SIZE))
    race(
        lambda: segmentation.log_nfa(latents, SIZE, threads=1),
        lambda: scikit_log_nfa(latents, SIZE),
        group=f"log_nfa {latents_name}",
        library="scikit-image and Python, whole",
        kind=latents_name,
    )


def test_slow_twin(race: Race, quick: bool) -> None:
    latents = latents_of(shapes_of(MSCAIT, quick))
    size = SIZE // 8 if quick else SIZE
    energies, dof = [e[0] for e in segmentation.energies(latents)], [z.shape[1] for z in latents]
    for energy, z in zip(energies, latents, strict=True):
        np.testing.assert_allclose(energy, np.square(z[0].astype(float)).sum(0), rtol=1e-5)
    expected = reference.log_nfa(energies, dof, (size, size), "chernoff")
    ours = segmentation.log_nfa(latents, size, threads=1)[0]
    roundings = 4 * np.finfo(np.float32).eps  # of float32 maps, resized and added to
    np.testing.assert_allclose(ours, expected, rtol=0, atol=roundings * np.abs(expected).max())
    race(
        lambda: segmentation.log_nfa(latents, size, threads=1),
        lambda: reference.log_nfa(energies, dof, (size, size), "chernoff"),
        group="log_nfa MS-CaiT",
        library="slow twin (numpy), from energies",
        kind="MS-CaiT",
    )


@pytest.mark.parametrize("form", ["float32 array", "CPU tensor"])
def test_larger_latents(race: Race, quick: bool, form: str) -> None:
    large: list[Any] = latents_of(shapes_of(LARGE, quick))
    small: list[Any] = latents_of(shapes_of(MSCAIT, quick))
    assert_maps_equal(segmentation.log_nfa(large, SIZE, threads=1)[0], scikit_log_nfa(large, SIZE))
    if form == "CPU tensor":
        large, small = ([torch.from_numpy(z) for z in latents] for latents in (large, small))
    race(
        lambda: segmentation.log_nfa(large, SIZE, threads=1),
        lambda: segmentation.log_nfa(small, SIZE, threads=1),
        at_most(6, "`log_nfa` of 112x112x112, 128x56x56, 128x28x28: time over that of MS-CaiT latents"),
        group=f"log_nfa 112x112 over MS-CaiT {form}",
        library="uflow, MS-CaiT",
        kind=form,
    )


@pytest.fixture(params=["latents", "energies"])
def batch(request: pytest.FixtureRequest, quick: bool) -> tuple[str, int, Any]:
    """Name, number of images, and a function (first image, last image, threads) -> log NFA."""
    images = 16 if quick else 64
    latents = latents_of(shapes_of(MSCAIT, quick), images)
    energies, dof = segmentation.energies(latents), [z.shape[1] for z in latents]

    def from_latents(start: int, stop: int, threads: int) -> NDArray[np.float32]:
        return segmentation.log_nfa([z[start:stop] for z in latents], SIZE, threads=threads)

    def from_energies(start: int, stop: int, threads: int) -> NDArray[np.float32]:
        return segmentation.log_nfa_from_energies([e[start:stop] for e in energies], dof, SIZE, threads=threads)

    return request.param, images, from_latents if request.param == "latents" else from_energies


@pytest.mark.benchmark(timer=time.perf_counter)
@pytest.mark.parametrize("threads", [2, 4, 8])
def test_threads(race: Race, batch: tuple[str, int, Any], all_cores: int, threads: int) -> None:
    if all_cores < 2:
        pytest.skip("one core")
    source, images, log_nfa = batch
    assert log_nfa(0, images, threads).tobytes() == log_nfa(0, images, 1).tobytes()
    claim = at_least(1.8, f"batch of 64 images, from {source}: times faster on 2 threads than on 1")
    race(
        lambda: log_nfa(0, images, threads),
        lambda: log_nfa(0, images, 1),
        *([claim] if threads == 2 else []),
        group=f"threads, from {source}",
        library="one call, 1 thread",
        kind=f"one call, from {source}",
        threads=threads,
    )


@pytest.mark.benchmark(timer=time.perf_counter)
@pytest.mark.parametrize("threads", [1, 2, 4, 8])
def test_python_threads(race: Race, batch: tuple[str, int, Any], all_cores: int, threads: int) -> None:
    """Python threads at once, each with its part of the batch on one thread: a held lock would make them wait."""
    if all_cores < 2:
        pytest.skip("one core")
    source, images, log_nfa = batch
    share = images // threads
    with ThreadPoolExecutor(threads) as pool:

        def ours() -> list[NDArray[np.float32]]:
            return list(pool.map(lambda i: log_nfa(i * share, (i + 1) * share, 1), range(threads)))

        assert np.concatenate(ours()).tobytes() == log_nfa(0, images, 1).tobytes()
        claim = at_least(1.2, f"the same from {source} by 8 Python threads at once, same bytes (a lock would give 1)")
        race(
            ours,
            lambda: log_nfa(0, images, 1),
            *([claim] if threads == 8 else []),
            group=f"Python threads, from {source}",
            library="one call, 1 thread",
            kind=f"Python threads, from {source}",
            threads=threads,
        )
