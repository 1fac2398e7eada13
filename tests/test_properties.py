"""Properties that hold for every image, found false by hypothesis if they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from uflow import _core, _core_testing, segmentation

TAILS = ["exact", "chernoff", "chernoff-unguarded", "binomial"]
DTYPES = st.sampled_from([np.float32, np.float64])
CONNECTIVITIES = st.sampled_from([4, 8])


@st.composite
def images(draw, low=-1e6, high=1e6, dtype=None):
    """Few levels (many ties) or any finite numbers."""
    dtype = draw(DTYPES) if dtype is None else dtype
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
    width = 8 * np.dtype(dtype).itemsize
    levels = st.integers(max(int(low), -3), 4).map(float)
    values = st.floats(np.float32(low).item(), np.float32(high).item(), width=width)
    return draw(hnp.arrays(dtype, shape, elements=draw(st.sampled_from([levels, values]))))


def energies(**kwargs):
    return images(low=0.0, high=200.0, **kwargs)


def log_pfa(energy, dof=4, tail="exact"):
    counts = np.minimum(energy, dof).astype(np.int32)[None] if tail == "binomial" else None
    return segmentation.log_pfa_tree(energy[None], dof, tail, counts, threads=1)[0]


@given(images(), CONNECTIVITIES)
def test_parent_precedes_child(image, connectivity):
    parent, order = segmentation.max_tree(image, connectivity)
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    up, pixels = parent.ravel(), np.arange(order.size)
    assert sorted(order.tolist()) == pixels.tolist()
    root = order[0]
    assert up[root] == root
    assert (place[up[pixels]] < place[pixels])[pixels != root].all()
    canonical = (pixels == root) | (image.ravel()[up] != image.ravel())
    assert canonical[up].all()
    assert (np.diff(image.ravel()[order]) >= 0).all()


@given(images(), CONNECTIVITIES, st.integers(0, 2**32 - 1))
def test_areas_add_up_and_levels_rise(image, connectivity, seed):
    counts = np.random.default_rng(seed).integers(0, 100, image.shape).astype(np.int32)
    tree = _core_testing.component_tree(image, connectivity, counts)
    parent, area, level = tree["parent"], tree["area"], tree["level"]
    own = np.bincount(tree["node_of"].ravel(), minlength=len(parent))
    below = np.bincount(parent[1:], weights=area[1:], minlength=len(parent))
    assert (own > 0).all()
    assert (area == own + below).all()
    assert area[0] == image.size
    assert tree["exceedances"][0] == counts.sum()
    assert (level[1:] > level[parent[1:]]).all()
    assert (parent[1:] < np.arange(1, len(parent))).all()
    assert (level[tree["node_of"]] == image).all()


@given(energies(), st.sampled_from(TAILS))
def test_flip_invariance(energy, tail):
    result = log_pfa(energy, tail=tail)
    for turn in (np.flipud, np.fliplr, np.transpose):
        np.testing.assert_array_equal(log_pfa(np.ascontiguousarray(turn(energy)), tail=tail), turn(result))


@given(energies(), st.sampled_from(TAILS), st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_translation_invariance(energy, tail, shift):
    height, width = energy.shape
    canvas, moved = np.zeros((2, height + 7, width + 7), energy.dtype)
    row, col = shift
    canvas[1 : height + 1, 1 : width + 1] = energy
    moved[row + 1 : row + 1 + height, col + 1 : col + 1 + width] = energy
    expected = np.roll(log_pfa(canvas, tail=tail), shift, (0, 1))
    np.testing.assert_array_equal(log_pfa(moved, tail=tail), expected)


@given(st.floats(0, 500), st.floats(0.5, 300), st.sampled_from(["exact", "chernoff"]))
def test_log_probability_never_rises_with_area(level, dof, tail):
    plateaus = np.zeros((12, 1, 12))
    for area in range(1, 13):
        plateaus[area - 1, 0, :area] = level
    log_p = segmentation.log_pfa_tree(plateaus, dof, tail)[:, 0, 0]
    assert (np.diff(log_p) <= 0).all()
    assert (log_p <= 0).all()


@given(st.floats(0, 500), st.floats(0, 500), st.floats(0.5, 300), st.sampled_from(["exact", "chernoff"]))
def test_log_probability_never_rises_with_level(one, other, dof, tail):
    low, high = sorted((one, other))
    log_p = segmentation.log_pfa_tree(np.array([[[low]], [[high]]]), dof, tail).ravel()
    assert log_p[1] <= log_p[0]


@given(energies(), st.floats(0.5, 50))
def test_chernoff_bounds_exact_for_single_cells(energy, dof):
    x, dofs = energy.ravel().astype(float), np.full(energy.size, dof)
    exact, bound = _core.log10_chi2_sf(x, dofs), _core_testing.log10_chi2_chernoff(x / dofs, dofs, True)
    assert (exact <= bound + 1e-9).all()


@given(st.lists(energies(dtype=np.float32), min_size=1, max_size=3), st.sampled_from(["total", "by-area"]), st.data())
@settings(max_examples=40)
def test_independent_of_threads_and_of_batch(maps, n_tests, data):
    tail = data.draw(st.sampled_from(TAILS[:3]))
    stacks = [np.stack([e, np.roll(e, 1, 0), e * np.float32(0.5), e[::-1]]) for e in maps]
    before = [s.copy() for s in stacks]
    dof = [3] * len(maps)

    def run(stacks, threads):
        return segmentation.log_nfa_from_energies(stacks, dof, (7, 10), tail, n_tests, threads=threads)

    one = run(stacks, 1)
    for threads in (2, 5, None):
        assert run(stacks, threads).tobytes() == one.tobytes()
    for i in range(4):
        assert run([s[i : i + 1] for s in stacks], 1).tobytes() == one[i : i + 1].tobytes()
    for stack, copy in zip(stacks, before, strict=True):
        np.testing.assert_array_equal(stack, copy)


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)), CONNECTIVITIES)
def test_labels_are_a_partition_in_raster_order(mask, connectivity):
    labels, count = segmentation.connected_components(mask, connectivity)
    assert ((labels > 0) == mask).all()
    values, first = np.unique(labels[mask], return_index=True)
    assert values.tolist() == list(range(1, count + 1))
    assert (np.diff(first) > 0).all()


@pytest.mark.parametrize("writeable", [True, False])
@given(image=images())
def test_inputs_unchanged(writeable, image):
    copy = image.copy()
    image.flags.writeable = writeable
    segmentation.max_tree(image)
    segmentation.log_pfa_tree(np.abs(image)[None], 2)
    np.testing.assert_array_equal(image, copy)
