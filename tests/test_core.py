"""The compiled core: max-tree, component tree, selection, resizing; against definitions, scikit-image, Higra, torch."""

import math
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
from skimage.morphology import max_tree as skimage_max_tree

import reference
from uflow import _core, _core_testing
from uflow.outline import Drawing, draw_regions
from uflow.scoring import Evidence, EvidenceWeights

higra = pytest.importorskip("higra", reason="Higra, a test dependency, is not installed")

# The 4 x 4 image of csrc/tests/test_max_tree.cpp.
HAND = np.array([[9, 3, 7, 7], [3, 3, 1, 1], [1, 1, 5, 1], [0, 1, 1, 1]], np.float32)
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 7), (8, 6)]
DTYPES = [np.float32, np.float64]


def image_of(shape, kind, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "constant":
        return np.full(shape, -1.5, dtype)
    if kind == "levels":
        return rng.integers(-2, 3, shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def node_sets(node_of, parent):
    """The pixels of every node, descendants included."""
    sets = [set() for _ in parent]
    for pixel, node in np.ndenumerate(node_of):
        sets[node].add(pixel)
    for node in range(len(parent) - 1, 0, -1):
        sets[parent[node]] |= sets[node]
    return sets


def test_hand_worked_image():
    parent, order = _core.max_tree(HAND, 4)
    assert order.tolist() == [12, 6, 7, 8, 9, 11, 13, 14, 15, 1, 4, 5, 10, 2, 3, 0]
    assert parent.ravel().tolist() == [1, 6, 1, 2, 1, 1, 12, 6, 6, 6, 6, 6, 12, 6, 6, 6]
    counts = np.array([[8, 2, 6, 5], [3, 1, 0, 0], [0, 0, 4, 0], [0, 0, 1, 0]], np.int32)
    tree = _core_testing.component_tree(HAND, 4, counts)
    assert tree["level"].tolist() == [0, 1, 3, 5, 7, 9]
    assert tree["parent"].tolist() == [0, 0, 1, 1, 2, 2]
    assert tree["area"].tolist() == [16, 15, 6, 1, 2, 1]
    assert tree["exceedances"].tolist() == [30, 30, 25, 4, 11, 8]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("kind", ["constant", "levels", "noise"])
@pytest.mark.parametrize("shape", SHAPES)
def test_component_tree_equals_definition(shape, kind, connectivity, dtype):
    image = image_of(shape, kind, dtype)
    counts = np.random.default_rng(1).integers(0, 9, shape).astype(np.int32)
    tree = _core_testing.component_tree(image, connectivity, counts)
    nodes = reference.max_tree(image, connectivity)
    sets = [frozenset(s) for s in node_sets(tree["node_of"], tree["parent"])]
    assert dict(zip(sets, tree["level"].tolist(), strict=True)) == nodes
    assert tree["area"].tolist() == [len(s) for s in sets]
    assert tree["exceedances"].tolist() == [sum(int(counts[p]) for p in s) for s in sets]
    kids = reference.children_of(nodes)
    for node in range(1, len(sets)):
        assert sets[node] in kids[sets[tree["parent"][node]]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("kind", ["constant", "levels", "noise"])
def test_max_tree_equals_scikit_image(kind, connectivity, dtype):
    image = image_of((37, 53), kind, dtype)
    parent, order = _core.max_tree(image, connectivity)
    theirs, _ = skimage_max_tree(image, connectivity // 4)
    flat = image.ravel()

    def canonical(parent):  # per pixel, its component's canonical pixel
        parent = np.asarray(parent).ravel()
        return np.where(flat[parent] == flat, parent, np.arange(flat.size))

    ours_of, theirs_of = canonical(parent), canonical(theirs)
    pairs = set(zip(ours_of.tolist(), theirs_of.tolist(), strict=True))
    assert len(pairs) == len(np.unique(ours_of)) == len(np.unique(theirs_of))  # the same partition
    to_theirs = dict(pairs)
    ours_up, theirs_up = parent.ravel(), np.asarray(theirs).ravel()
    for ours, other in pairs:  # and the same parents
        assert to_theirs[ours_of[ours_up[ours]]] == theirs_of[theirs_up[other]]
    assert sorted(order.tolist()) == list(range(flat.size))


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("kind", ["constant", "levels", "noise"])
def test_component_tree_equals_higra(kind, connectivity):
    image = image_of((23, 31), kind, np.float64, seed=3)
    graph = getattr(higra, f"get_{connectivity}_adjacency_implicit_graph")(image.shape)
    theirs, altitudes = higra.component_tree_max_tree(graph, image)
    inner = slice(theirs.num_leaves(), None)
    tree = _core_testing.component_tree(image, connectivity)

    def rows(level, area, parent_level):
        return sorted(zip(level.tolist(), area.tolist(), parent_level.tolist(), strict=True))

    area = higra.attribute_area(theirs)
    assert rows(tree["level"], tree["area"], tree["level"][tree["parent"]]) == rows(
        altitudes[inner], area[inner].astype(int), altitudes[theirs.parents()][inner]
    )


def random_tree(rng, nodes):
    return np.array([0] + [rng.integers(max(0, i - 4), i) for i in range(1, nodes)], np.int32)


@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 20, 60])
@pytest.mark.parametrize("values", ["few", "many"])
def test_selection_equals_prune_and_merge(nodes, values):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        parent = random_tree(rng, nodes)
        value = -rng.integers(0, 4, nodes).astype(float) if values == "few" else -rng.random(nodes)
        region = _core_testing.select_regions(parent, value)
        children = {i: [int(j) for j in range(1, nodes) if parent[j] == i] for i in range(nodes)}
        final = set(reference.prune_and_merge(children, value.tolist()))
        for node in range(nodes):
            up = node
            while up and up not in final:
                up = int(parent[up])
            assert region[node] == (up if up in final else -1)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (14, 14), (29, 17), (256, 256)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (14, 14), (9, 11)])
def test_resizing_equals_torch(shape, size):
    torch = pytest.importorskip("torch", reason="the oracle is torch")
    maps = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    resized = _core.resize_bilinear(maps, *size, 1)
    assert resized.dtype == np.float32
    theirs = torch.nn.functional.interpolate(torch.from_numpy(maps)[:, None], size=size, mode="bilinear")
    # Two float32 roundings of values up to 4; torch computes the positions in float32 too, ours are float64.
    np.testing.assert_allclose(resized, theirs[:, 0].numpy(), rtol=0, atol=1e-5)
    if size[0] < 100:
        for one, image in zip(resized, maps, strict=True):
            np.testing.assert_allclose(one, reference.bilinear(image.astype(float), *size), rtol=0, atol=1e-6)
    for threads in (2, 0):
        assert _core.resize_bilinear(maps, *size, threads).tobytes() == resized.tobytes()


@pytest.mark.parametrize("sources", [0, 1, 2])
@pytest.mark.parametrize("shapes", [[(9, 11)], [(14, 18), (7, 9), (4, 5)], [(1, 1), (3, 3)]])
def test_field_equals_python(shapes, sources):
    rng = np.random.default_rng(sources)
    energies = [rng.chisquare(20, (3, *shape)).astype(np.float32) for shape in shapes]
    energies[0][0, 0, 0] = 1e6  # unlikely beyond float32
    distances = [rng.gamma(2, size=(3, *shape)).astype(np.float32) for shape in (shapes[0], (4, 5))[:sources]]
    evidence = Evidence(energies, distances)
    weights = EvidenceWeights((20.0, 21.0, 22.0)[: len(shapes)], 0.7, (0.3, 0.45)[:sources])
    field, drawing = _core_testing.evidence_field(
        energies, distances, weights.energy_means, weights.latents, weights.distances
    )
    np.testing.assert_allclose(field, weights.field(evidence), rtol=1e-6, atol=1e-6)  # the logarithms round otherwise
    if distances:
        assert drawing.tobytes() == weights.drawing(evidence).tobytes()
    else:
        assert drawing.tobytes() == field.tobytes()


@pytest.mark.parametrize("size", [(14, 18), (56, 72), (61, 80), (10, 33)])
@pytest.mark.parametrize("quiet", [0.5, 1.2, 2.5])
@pytest.mark.parametrize("picture", [None, (56, 72), (100, 61), (9, 200)])
def test_outlines_equal_the_slow_twin(size, quiet, picture):
    for seed in range(2):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(14, 18)).astype(np.float32)
        image = None if picture is None else rng.integers(80, 120, (*picture, 3), np.uint8)
        for _ in range(4):
            top, left, reach = rng.integers(0, 12), rng.integers(0, 14), rng.integers(1, 7)
            values[top : top + reach, left : left + reach] += np.float32(rng.uniform(0, 4))
            if image is not None:
                y, x = top * picture[0] // 14, left * picture[1] // 18
                image[y : y + 4 * reach, x : x + 4 * reach] += rng.integers(0, 60, 3, np.uint8)
        found = (values > rng.uniform(1, 3)) | (rng.random(values.shape) < 0.01)
        drawn = draw_regions(values, found, Drawing(0.25, quiet), size, image=image)
        assert drawn.any()
        expected = reference.draw_regions(values, found, 0.25, quiet, size, image)
        assert (drawn != expected).mean() <= 0.001  # pixels at the very edge may be rounded otherwise


@pytest.mark.parametrize("found", [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]])
def test_outlines_of_odd_maps_equal_the_slow_twin(found):
    found = np.array([found], bool)
    for values in ([4, 3, 1, 0, 0, 0], [0, 3, 3, 3, 3, 3], [-4, -3, -1, -1, -1, -9], [2, 2, 2, 2, 2, 2]):
        values = np.array([values], np.float32)
        drawn = draw_regions(values, found, Drawing(1.5, 9), (2, 12))
        assert drawn.any()
        assert (drawn == reference.draw_regions(values, found, 1.5, 9, (2, 12))).all()


def test_outlines_follow_the_colour_of_the_defect():
    """A disc of another colour below a hump that is wider than it: the disc is drawn, whatever its size."""
    y, x = np.mgrid[:16, :16] - 7.5
    values = (10 * np.exp(-(x**2 + y**2) / 12)).astype(np.float32)
    rows, columns = np.mgrid[:64, :64] - 31.5
    for radius in (7, 9, 11):
        disc = rows**2 + columns**2 < radius**2
        image = np.random.default_rng(0).integers(95, 105, (64, 64, 3), np.uint8)
        image[disc] += np.uint8(50)
        alone = draw_regions(values, values > 7, Drawing(0, 1), (64, 64))
        drawn = draw_regions(values, values > 7, Drawing(0, 1), (64, 64), image=image)
        assert reference.iou(drawn, disc) > 0.95 > reference.iou(alone, disc)
        assert (draw_regions(values, values > 7, Drawing(0, 1), (64, 64), image=image[:, ::-1]) == drawn[:, ::-1]).all()


def test_outlines_where_the_map_sees_nothing_are_the_cells_and_where_all_is_found_count_from_good_images():
    first, every = np.array([[1, 0, 0, 0]], bool), np.ones((1, 4), bool)
    assert draw_regions(np.float32([[0, 3, 3, 3]]), first, Drawing(1.5, 9), (1, 4)).tolist() == first.tolist()
    drawn = draw_regions(np.float32([[4, 3.5, 2.5, 0]]), every, Drawing(1.5, 9), (1, 4))
    assert drawn.tolist() == [[True, True, False, False]]  # half-way from 1.5 to 4 is 2.75


def test_outlines_of_wrong_input_are_one_line():
    values, found = np.zeros((4, 5), np.float32), np.zeros((4, 5), bool)
    strange = np.where(np.eye(4, 5) > 0, np.float32(np.nan), values)
    for given, image, message in [
        (
            values,
            np.zeros((8, 8), np.uint8),
            r"^the image must be uint8 of shape \(height, width, 3\), got uint8 \(8, 8\)$",
        ),
        (values, np.zeros((8, 8, 3)), r"^the image must be uint8 of shape \(height, width, 3\), got float64 "),
        (strange, None, r"^map has a value that is not finite, at flat index 0 of shape \(4, 5\)$"),
    ]:
        with pytest.raises(ValueError, match=message):
            draw_regions(given, found, Drawing(0.0, 1.0), (8, 8), image=image)
    with pytest.raises(ValueError, match=r"^counted must have a cell for each value of shape \(4, 5\), got \(5, 5\)$"):
        draw_regions(values, found, Drawing(0.0, 1.0), (8, 8), np.zeros((5, 5), bool))


@pytest.mark.parametrize(("width", "wanted"), [(1, 2.1), (2, 2.3), (3, 2.7), (4, 3.3), (8, 7.2)])
def test_outlines_of_blurred_strips(width, wanted):
    """The table of docs/theory.md: strips blurred by a standard deviation of 1 cell, wherever in the grid they lie."""
    drawn = []
    for middle in (11, 11.25, 11.5, 11.75):
        ends = (np.arange(24)[:, None] - middle + np.array([width / 2, -width / 2])) / math.sqrt(2)
        profile = [(math.erf(left) - math.erf(right)) / 2 for left, right in ends]
        values = np.tile(np.array(profile, np.float32), (24, 1))
        drawn.append(draw_regions(values, values >= values.max() / 2, Drawing(0.0, 0.01), (480, 480)).mean() * 24)
    assert np.mean(drawn) == pytest.approx(wanted, abs=0.06)


@pytest.mark.parametrize("bad", [np.zeros((3, 3), np.int32), np.zeros((4, 4), np.float32)[:, ::2], [[1.0, 2.0]]])
def test_nothing_is_converted_silently(bad):
    with pytest.raises(TypeError):
        _core.max_tree(bad, 4)


@pytest.mark.parametrize(
    ("image", "connectivity", "message"),
    [
        (np.zeros((0, 3)), 4, "image is empty, got shape \\(0, 3\\)"),
        (np.zeros(3), 4, "image needs 2 dimensions"),
        (np.array([[0, np.nan]]), 4, "not finite, at flat index 1"),
        (np.array([[np.inf, 0]], np.float32), 4, "not finite, at flat index 0"),
        (np.zeros((2, 2)), 6, "connectivity must be 4 or 8, got 6"),
    ],
)
def test_bad_images(image, connectivity, message):
    with pytest.raises(ValueError, match=message):
        _core.max_tree(image, connectivity)


def test_core_checks_what_it_would_index_with():
    energy, model = np.ones((1, 2, 2), np.float32), _core.Background(1, 4, 1, 4, 0.1)
    counts = np.zeros((1, 2, 2), np.int32)
    with pytest.raises(ValueError, match="between 0 and the number of channels, got 5"):
        _core.log_pfa(energy, counts + 5, _core.Tail.binomial, model, 1)
    with pytest.raises(ValueError, match="same shape"):
        _core.log_pfa(energy, np.zeros((1, 2, 3), np.int32), _core.Tail.binomial, model, 1)
    with pytest.raises(ValueError, match="needs exceedances"):
        _core.log_nfa([energy], None, [model], 4, 4, _core.Tail.binomial, False, 1)
    with pytest.raises(ValueError, match="one background per scale"):
        _core.log_nfa([energy, energy], None, [model], 4, 4, _core.Tail.exact, False, 1)
    with pytest.raises(TypeError, match="C-contiguous"):
        _core.log_nfa([energy.astype(np.float64)], None, [model], 4, 4, _core.Tail.exact, False, 1)
    with pytest.raises(ValueError, match="got 99"):
        _core.log_nfa_block([counts + 99], [4], 4, 4, 1, 0.1, False, 1)
    with pytest.raises(ValueError, match="a parent must come before"):
        _core_testing.select_regions(np.array([0, 2, 0], np.int32), np.zeros(3))
    with pytest.raises(ValueError, match="output size must be positive"):
        _core.resize_bilinear(np.zeros((1, 2, 2), np.float32), 0, 3, 1)
    with pytest.raises(ValueError, match="maps needs 3 dimensions"):
        _core.resize_bilinear(np.zeros((2, 2), np.float32), 3, 3, 1)
    with pytest.raises(TypeError):
        _core.resize_bilinear(np.zeros((1, 2, 2)), 3, 3, 1)
    with pytest.raises(ValueError, match=r"not finite, at flat index 0 of shape \(1, 2, 2\)"):
        _core.anomaly_map([energy * np.float32(np.nan)], [4.0], 4, 4, 1)
    with pytest.raises(ValueError, match="one mean per scale"):
        _core.anomaly_map([energy], [4.0, 4.0], 4, 4, 1)
    with pytest.raises(ValueError, match="one batch size"):
        _core.anomaly_map([energy, np.ones((2, 1, 1), np.float32)], [4.0, 4.0], 4, 4, 1)
    with pytest.raises(ValueError, match="positive and finite"):
        _core.anomaly_map([energy], [0.0], 4, 4, 1)
    with pytest.raises(ValueError, match="output size must be positive"):
        _core.anomaly_map([energy], [4.0], 4, 0, 1)
    with pytest.raises(ValueError, match="positive and finite"):
        _core.log_pfa(energy, None, _core.Tail.exact, _core.Background(0, 4, 1, 4, 0.1), 1)


def test_results_own_their_memory():
    parent, order = _core.max_tree(HAND, 4)
    assert parent.flags.owndata
    assert order.flags.owndata
    assert parent.flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_of_both_signs_are_one_level(dtype):
    parent, order = _core.max_tree(np.array([[0.0, -0.0, 0.0, -0.0]], dtype), 4)
    assert parent.tolist() == [[0, 0, 0, 0]]
    assert order.tolist() == [0, 1, 2, 3]


class Stopped(Exception):
    """What a signal's handler raises."""


def stop(*_: object) -> None:
    raise Stopped


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a system without timers of processor time")
@pytest.mark.parametrize("call", ["max_tree", "log_nfa", "log10_chi2_sf"])
def test_a_long_call_can_be_interrupted(call: str) -> None:
    values = np.random.default_rng(0).random((2500, 2500), np.float32) * 9
    model = _core.Background(1.0, 4.0, 1.0, 4.0, 0.1)
    flat = np.tile(values.ravel()[:2_000_000].astype(np.float64), 8)
    work = {
        "max_tree": lambda: _core.max_tree(values, 4),
        "log_nfa": lambda: _core.log_nfa([values[None]], None, [model], 9, 9, _core.Tail.exact, False, 1),
        "log10_chi2_sf": lambda: _core.log10_chi2_sf(flat, np.full_like(flat, 7.5)),
    }[call]
    whole = cpu_seconds(work)
    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.01)
        started = time.process_time()
        with pytest.raises(Stopped):
            work()
        assert time.process_time() - started < 0.7 * whole
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert cpu_seconds(lambda: _core.max_tree(values[:9, :9].copy(), 4)) < whole  # and the next call is as ever
