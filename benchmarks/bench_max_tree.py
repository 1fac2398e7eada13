"""The max-tree against Higra, scikit-image, meaningful-spot-detector, the slow twin, and a sort of the same pixels."""

from __future__ import annotations

from functools import cache

import higra
import numpy as np
import pytest
import skimage.morphology
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import reference
from conftest import Race, at_least, at_most
from uflow import _core
from uflow.segmentation import max_tree

SIDES = (14, 28, 56, 112, 256, 512, 1024)
QUICK_SIDES = (14, 28, 56)
IntArray = NDArray[np.int64]


@pytest.fixture(params=["smooth", "noise"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest, quick: bool) -> int:
    if quick and request.param not in QUICK_SIDES:
        pytest.skip("not in the quick mode")
    return int(request.param)


@cache
def image_of(kind: str, side: int) -> NDArray[np.float32]:
    """White noise, or the same smoothed by a Gaussian of sigma 2: (side, side) float32."""
    noise = np.random.default_rng(side).standard_normal((side, side))
    image: NDArray[np.float32] = (gaussian_filter(noise, 2) if kind == "smooth" else noise).astype(np.float32)
    return image


def canonical(flat: NDArray[np.float32], parent: IntArray) -> IntArray:
    """Per pixel the canonical pixel of its component."""
    return np.where(flat[parent] == flat, parent, np.arange(flat.size))


def assert_same_tree(image: NDArray[np.float32], node: IntArray, up: IntArray) -> None:
    """Ours is the tree in which pixel p belongs to node[p] and node n lies in up[n]."""
    flat = image.ravel()
    parent, order = (a.ravel().astype(np.int64) for a in max_tree(image))
    own = canonical(flat, parent)
    np.testing.assert_array_equal(node[own], node)
    components = np.unique(own)
    assert len(components) == len(np.unique(node))
    above = components[parent[components] != components]
    assert len(above) == len(components) - 1
    np.testing.assert_array_equal(up[node[above]], node[parent[above]])
    rank = np.empty(flat.size, np.int64)
    rank[order] = np.arange(flat.size)
    assert order[0] == parent[order[0]]
    assert (rank[parent[order[1:]]] < rank[order[1:]]).all()


def test_ours(race: Race, kind: str, side: int) -> None:
    image = image_of(kind, side)
    race.alone(lambda: max_tree(image), group=f"max_tree {kind} {side}", library="uflow", kind=kind, side=side)


@pytest.mark.parametrize("graph_kind", ["explicit", "implicit"])
def test_higra(race: Race, kind: str, side: int, graph_kind: str) -> None:
    image = image_of(kind, side)
    graph = (higra.get_4_adjacency_graph if graph_kind == "explicit" else higra.get_4_adjacency_implicit_graph)(
        image.shape
    )
    tree, _ = higra.component_tree_max_tree(graph, image)
    parents = tree.parents()
    assert_same_tree(image, parents[: image.size], parents)
    race(
        lambda: max_tree(image),
        lambda: higra.component_tree_max_tree(graph, image),
        at_least(5, "`max_tree`: times faster than Higra (the faster of its two graphs)"),
        group=f"max_tree {kind} {side}",
        library=f"Higra, {graph_kind} graph",
        kind=kind,
        side=side,
    )


def test_scikit_image(race: Race, kind: str, side: int) -> None:
    image = image_of(kind, side)
    theirs = skimage.morphology.max_tree(image, connectivity=1)[0].ravel()
    node = canonical(image.ravel(), theirs)
    assert_same_tree(image, node, node[theirs])
    claims = [at_least(20, "`max_tree`: times faster than scikit-image")]
    if side <= 112:
        claims.append(at_least(50, "`max_tree`, up to 112 px: times faster than scikit-image"))
    race(
        lambda: max_tree(image),
        lambda: skimage.morphology.max_tree(image, connectivity=1),
        *claims,
        group=f"max_tree {kind} {side}",
        library="scikit-image",
        kind=kind,
        side=side,
    )


def test_argsort(race: Race, kind: str, side: int) -> None:
    """Not the same answer: the time of the sort that a max-tree begins with."""
    image = image_of(kind, side)
    flat = image.ravel()
    np.testing.assert_array_equal(np.sort(flat[max_tree(image)[1]]), flat[np.argsort(flat, kind="stable")])
    race(
        lambda: max_tree(image),
        lambda: np.argsort(flat, kind="stable"),
        at_most(1.5, '`max_tree`: time over that of `numpy.argsort(kind="stable")` alone'),
        group=f"max_tree {kind} {side}",
        library="numpy.argsort",
        kind=kind,
        side=side,
    )


def test_slow_twin(race: Race, kind: str, side: int, quick: bool) -> None:
    if side > (14 if quick else 28):
        pytest.skip("the slow twin takes too long")
    image = image_of(kind, side)
    tree = _core.component_tree(image, 4)
    pixels: list[set[tuple[int, ...]]] = [set() for _ in tree["parent"]]
    for pixel, node in np.ndenumerate(tree["node_of"]):
        pixels[node].add(pixel)
    for node in range(len(pixels) - 1, 0, -1):
        pixels[tree["parent"][node]] |= pixels[node]
    ours = {frozenset(p): level for p, level in zip(pixels, tree["level"].tolist(), strict=True)}
    assert ours == reference.max_tree(image)
    race(
        lambda: max_tree(image),
        lambda: reference.max_tree(image),
        group=f"max_tree {kind} {side}",
        library="slow twin (numpy)",
        kind=kind,
        side=side,
    )


def test_meaningful_spot_detector(race: Race, kind: str, side: int) -> None:
    """Its max-tree takes 16 bits and gives area and height above the parent of every component but the root."""
    if side > 512:
        pytest.skip("takes 6 s a call at 1024 px")
    spots = pytest.importorskip("meaningful_spot_detector", reason="it has no wheel for this machine")
    image = image_of(kind, side)
    image = (image - image.min()) / (image.max() - image.min())
    levels = (image * 65534).astype(np.uint16)
    floats = levels.astype(np.float32)

    def ours() -> tuple[list[int], list[float]]:
        tree = _core.component_tree(floats, 4)
        height = tree["level"] - tree["level"][tree["parent"]]
        return tree["area"][1:].tolist(), height[1:].tolist()

    def theirs() -> tuple[list[float], list[float]]:
        area, height = spots.get_level_stats(levels)
        return area, height

    assert sorted(zip(*ours(), strict=True)) == sorted(zip(*theirs(), strict=True))
    race(
        ours,
        theirs,
        group=f"components of 16-bit image {kind} {side}",
        library="meaningful-spot-detector",
        kind=kind,
        side=side,
    )


@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_cost_per_pixel(race: Race, kind: str, quick: bool) -> None:
    large, small = image_of(kind, max(QUICK_SIDES if quick else SIDES)), image_of(kind, 28)
    race(
        lambda: max_tree(large),
        lambda: max_tree(small),
        at_most(3, "`max_tree`: cost per pixel at 1024 px over that at 28 px"),
        scale=small.size / large.size,
        per="pixel",
        group=f"cost per pixel of the largest map over 28 px, {kind}",
        library="uflow, 28 px",
        kind=kind,
    )
