"""The max-tree against Higra, scikit-image, meaningful-spot-detector, and a sort of the same pixels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import higra
import numpy as np
import skimage.morphology
from numpy.typing import NDArray
from race import Claim, Contest, Function, at_least, at_most
from scipy.ndimage import gaussian_filter

from uflow import _core_testing
from uflow.segmentation import max_tree

SIDES = (14, 28, 56, 112, 256, 512, 1024)
QUICK_SIDES = (14, 28, 56)
KINDS = ("smooth", "noise")
GRAPHS = {"explicit": higra.get_4_adjacency_graph, "implicit": higra.get_4_adjacency_implicit_graph}

Image = NDArray[np.float32]


def contests(quick: bool) -> Iterator[Contest]:
    """Each kind of image, each size, each library."""
    sides = QUICK_SIDES if quick else SIDES
    for kind in KINDS:
        for side in sides:
            yield from contests_of(image_of(kind, side), kind, side)
    for kind in KINDS:
        yield cost_per_pixel(kind, sides[-1])


def image_of(kind: str, side: int) -> Image:
    """White noise, or the same smoothed by a Gaussian of sigma 2: (side, side) float32."""
    noise = np.random.default_rng(side).standard_normal((side, side))
    image: Image = (gaussian_filter(noise, 2) if kind == "smooth" else noise).astype(np.float32)
    return image


def contests_of(image: Image, kind: str, side: int) -> Iterator[Contest]:
    """All contests on one image."""
    details = {"kind": kind, "side": side}
    case, uflow = f"{kind}, {side} px", {"uflow": lambda: max_tree(image)}

    def contest(name: str, rival: Function, agree: Callable[..., None], claims: Sequence[Claim] = ()) -> Contest:
        return Contest("max-tree", case, {**uflow, name: rival}, agree, claims, details=details)

    yield Contest("max-tree", case, uflow, None, details=details)
    for name, make in GRAPHS.items():
        yield contest(f"Higra, {name} graph", higra_tree(make(image.shape), image), *against_higra(image))
    scikit_image = at_least(20, "max-tree: times faster than scikit-image")
    small = at_least(50, "max-tree up to 112 px: the same")
    yield contest(
        "scikit-image",
        lambda: skimage.morphology.max_tree(image, connectivity=1),
        lambda own, theirs: assert_same_as_scikit_image(image, theirs[0].ravel()),
        [scikit_image, small] if side <= 112 else [scikit_image],
    )
    # Another answer: the sort that a max-tree begins with.
    yield contest(
        "numpy.argsort",
        lambda: np.argsort(image.ravel(), kind="stable"),
        lambda own, theirs: np.testing.assert_array_equal(np.sort(image.ravel()[own[1]]), image.ravel()[theirs]),
        [at_most(1.5, "max-tree: time over that of a stable sort alone")],
    )
    # A call at 1024 px takes 6 s; there is no wheel for every machine.
    if side <= 512 and importlib.util.find_spec("meaningful_spot_detector"):
        yield components(image, case, details)


def higra_tree(graph: Any, image: Image) -> Function:
    """Higra's max-tree on a graph that was built before."""
    return lambda: higra.component_tree_max_tree(graph, image)


def against_higra(image: Image) -> tuple[Callable[..., None], list[Claim]]:
    """How its answer is compared, and what is claimed."""

    def agree(_: object, theirs: Any) -> None:
        parents = theirs[0].parents()
        assert_same_tree(image, parents[: image.size], parents)

    return agree, [at_least(5, "max-tree: times faster than Higra's better graph")]


def assert_same_as_scikit_image(image: Image, parent: NDArray[np.int64]) -> None:
    """Its parents are pixels, as uflow's are."""
    node = canonical(image.ravel(), parent)
    assert_same_tree(image, node, node[parent])


def canonical(flat: Image, parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Per pixel the canonical pixel of its component."""
    return np.where(flat[parent] == flat, parent, np.arange(flat.size))


def assert_same_tree(image: Image, node: NDArray[np.int64], up: NDArray[np.int64]) -> None:
    """uflow's is the tree in which pixel p belongs to node[p] and node n lies in up[n]."""
    flat = image.ravel()
    parent, order = (array.ravel().astype(np.int64) for array in max_tree(image))
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


def components(image: Image, case: str, details: dict[str, object]) -> Contest:
    """Area, and height above the parent, of every component of a 16-bit image but the root: what spots' tree gives."""
    import meaningful_spot_detector as spots

    levels = ((image - image.min()) / (image.max() - image.min()) * 65534).astype(np.uint16)
    floats = levels.astype(np.float32)

    def areas_and_heights() -> tuple[list[int], list[float]]:
        tree = _core_testing.component_tree(floats, 4)
        height = tree["level"] - tree["level"][tree["parent"]]
        return tree["area"][1:].tolist(), height[1:].tolist()

    def agree(own: Any, theirs: Any) -> None:
        assert sorted(zip(*own, strict=True)) == sorted(zip(*theirs, strict=True))

    contestants = {"uflow": areas_and_heights, "meaningful-spot-detector": lambda: spots.get_level_stats(levels)}
    return Contest("components of a 16-bit image", case, contestants, agree, details=details)


def cost_per_pixel(kind: str, side: int) -> Contest:
    """The largest map beside a small one."""
    large, small = image_of(kind, side), image_of(kind, 28)
    claim = at_most(3, "max-tree: cost per pixel, 1024 px over 28 px")
    contestants = {f"uflow, {side} px": lambda: max_tree(large), "uflow, 28 px": lambda: max_tree(small)}
    work = (large.size, small.size)
    return Contest("max-tree, cost per pixel", kind, contestants, None, [claim], work=work, unit="pixel")
