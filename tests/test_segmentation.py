"""uflow.segmentation against the slow twin and the golden files; input forms, threads, bad input."""

import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import reference
from conftest import one_line
from uflow import _core, segmentation
from uflow.segmentation import AreaLaw, Background, nfa

GOLDEN = Path(__file__).parent / "golden"
TAILS = ["exact", "chernoff", "chernoff-unguarded", "binomial"]


def latents_of(seed=0, batch=2, shapes=((6, 7, 5), (4, 3, 4)), blob=2.5):
    rng = np.random.default_rng(seed)
    latents = [rng.standard_normal((batch, *shape), np.float32) for shape in shapes]
    latents[0][:, :, 1:3, 1:4] *= blob
    return latents


def counts_of(z, quantile=0.9):
    return (z.astype(float) ** 2 >= scipy.stats.chi2.ppf(quantile, 1)).sum(1).astype(np.int32)


@pytest.mark.parametrize("i", range(6))
def test_golden_tree(i):
    golden = np.load(GOLDEN / "tree_log_pfa_unguarded.npz")
    energy, dof, expected = golden[f"{i}_energy"], int(golden[f"{i}_dof"]), golden[f"{i}_log_pfa"]
    result = segmentation.log_pfa_tree(energy[None], dof, "chernoff-unguarded")[0]
    np.testing.assert_array_equal(result == 0, expected == 0)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)  # golden logs were computed in float32


def test_golden_maps():
    golden = np.load(GOLDEN / "maps.npz")
    latents, size = [golden["z0"], golden["z1"]], int(golden["size"])
    tree = segmentation.log_nfa(latents, size, "chernoff-unguarded")
    np.testing.assert_allclose(-tree, golden["minus_log_nfa_tree_unguarded"], rtol=1e-5, atol=1e-4)
    block = segmentation.log_nfa_block(latents, size)  # the golden file is the binom.logsf form
    np.testing.assert_allclose(-block, golden["minus_log_nfa_block"], rtol=1e-5, atol=1e-5)
    assert np.abs(block - segmentation.log_nfa_block(latents, size, continuous=True)).max() > 0.1


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 7)])
@pytest.mark.parametrize("levels", ["ties", "distinct"])
def test_log_pfa_tree_equals_twin(levels, shape, tail):
    rng = np.random.default_rng(5)
    z = rng.standard_normal((2, 5, *shape)) * 1.5
    energy = np.square(z).sum(1)
    energy = np.ceil(energy / 4) * 4 if levels == "ties" else energy
    counts = counts_of(z) if tail == "binomial" else None
    result = segmentation.log_pfa_tree(energy, 5, tail, counts)
    for b in range(2):
        model = {"exceedances": counts[b]} if tail == "binomial" else {}
        np.testing.assert_allclose(result[b], reference.log_pfa(energy[b], 5, tail, **model), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n_tests", ["total", "by-area"])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("background", [False, True])
def test_log_nfa_equals_twin(background, tail, n_tests):
    latents = latents_of()
    models = [Background(1.3, 4.5, 2.0), Background(0.8, 3.0, 1.5)] if background else None
    result = segmentation.log_nfa(latents, (9, 12), tail, n_tests, background=models)
    assert result.shape == (2, 9, 12)
    assert result.dtype == np.float32
    energies = segmentation.energies(latents)
    for b in range(2):
        twin = [
            {"scale": m.scale, "nu": m.dof, "area": m.correlation_area} if m else {}
            for m in (models or [None] * len(latents))
        ]
        if tail == "binomial":
            twin = [
                {"area": t.get("area", 1.0), "exceedances": counts_of(z)[b]} for t, z in zip(twin, latents, strict=True)
            ]
        one = [e[b] for e in energies]
        expected = reference.log_nfa(one, [6, 4], (9, 12), tail, n_tests == "by-area", twin)
        np.testing.assert_allclose(result[b], expected, rtol=2e-6, atol=2e-6)


def core_log_nfa(energies, dof, size, tail="exact", n_tests="by-area", *, background=None, counts=None, **law):
    """The core's own function: it takes any law of the area for each scale, with any tail."""
    models = nfa._models(background, dof, 0.1)
    laws = law.get("effective_area"), law.get("log_tests")
    size = (size, size) if isinstance(size, int) else size
    by_area, threads = n_tests == "by-area", law.get("threads", 0)
    return _core.log_nfa(energies, counts, models, *size, nfa._TAILS[tail], by_area, threads, *laws)


@pytest.mark.parametrize("n_tests", ["total", "by-area"])
@pytest.mark.parametrize("tail", [t for t in TAILS if t != "binomial"])
def test_any_law_of_the_area_equals_twin(tail, n_tests):
    energies = segmentation.energies(latents_of())
    rng = np.random.default_rng(4)
    area = [np.arange(e[0].size + 1.0) for e in energies]
    laws = {
        "a power": ([a**0.7 for a in area], [0.3 * a + 2 for a in area]),
        "full after 5 cells": ([np.minimum(a, 5.0) for a in area], [np.where(a > 8, 40.0, 1.5) for a in area]),
        "any numbers": ([rng.uniform(0.1, 9, len(a)) for a in area], [rng.normal(0, 5, len(a)) for a in area]),
    }
    found = []
    for effective, tests in laws.values():
        by_area = n_tests == "by-area"
        result = core_log_nfa(
            energies, [6, 4], (9, 12), tail, n_tests, effective_area=effective, log_tests=tests if by_area else None
        )
        found.append(result)
        models = [
            {"effective": f, **({"log_tests": t} if by_area else {})} for f, t in zip(effective, tests, strict=True)
        ]
        for b in range(2):
            expected = reference.log_nfa([e[b] for e in energies], [6, 4], (9, 12), tail, by_area, models)
            np.testing.assert_allclose(result[b], expected, rtol=2e-6, atol=2e-6)
    assert len({r.tobytes() for r in found}) == len(laws)


@pytest.mark.parametrize("tail", [t for t in TAILS if t != "binomial"])
def test_the_area_itself_and_todays_number_of_tests_change_no_bit(tail):
    rng = np.random.default_rng(0)
    shapes = [(28, 28), (14, 9)]
    energies = [rng.chisquare(40, (3, *shape)).astype(np.float32) for shape in shapes]
    area = [np.arange(e[0].size + 1.0) for e in energies]
    tests = [_core.log10_number_of_tests_by_area(e[0].size, 2) for e in energies]
    background = [Background(1.1, 37.0, 2.5), Background(0.9, 44.0, 1.0)]
    for n_tests in ("total", "by-area"):
        for threads in (1, 2):
            arguments = energies, [40, 40], (50, 31), tail, n_tests
            today = segmentation.log_nfa_from_energies(*arguments, threads=threads, background=background)
            law = core_log_nfa(
                *arguments,
                background=background,
                effective_area=area,
                log_tests=tests if n_tests == "by-area" else None,
                threads=threads,
            )
            assert law.tobytes() == today.tobytes()


def test_bad_laws_of_the_area():
    energies, area = [np.ones((1, 2, 3), np.float32)], np.arange(7.0)
    for law, message in [
        ({"effective_area": [area[1:]]}, "every area from 0 to that of the map, 7, got shape \\(6,\\)"),
        ({"effective_area": [area, area]}, "one table per scale"),
        ({"effective_area": [area - 1]}, "must be positive"),
        ({"effective_area": [area * np.nan]}, "not finite"),
        ({"log_tests": [area[None]]}, "every area"),
        ({"log_tests": [np.full(7, np.inf)]}, "not finite"),
        ({"log_tests": [area], "n_tests": "total"}, "by area"),
    ]:
        with pytest.raises(ValueError, match=message):
            core_log_nfa(energies, [4], 3, **law)
    with pytest.raises(ValueError, match="not the binomial"):
        core_log_nfa(energies, [4], 3, "binomial", counts=[np.ones((1, 2, 3), np.int32)], effective_area=[area])


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0])
def test_a_field_is_judged_by_a_power_of_the_area(exponent):
    field = np.random.default_rng(1).chisquare(9, (2, 6, 8)).astype(np.float32)
    background, law = Background(1.2, 8.0, 1.0), AreaLaw.power(48, exponent)
    np.testing.assert_allclose(law.effective_area[1:], np.arange(1, 49) ** exponent)
    if exponent == 1:  # independent cells: the paper's number by area
        np.testing.assert_allclose(law.log_tests[1:], _core.log10_number_of_tests_by_area(48, 1)[1:], rtol=1e-5)
    if exponent == 0:
        assert len(set(law.log_tests)) == 1
    result = segmentation.log_nfa_of_field(field, background, law, (9, 12))
    twin = [{"scale": 1.2, "nu": 8.0, "effective": law.effective_area, "log_tests": law.log_tests}]
    for found, image in zip(result, field, strict=True):
        expected = reference.log_nfa([image], [1], (9, 12), "exact", True, twin)
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    assert segmentation.log_nfa_of_field(field, background, law, (9, 12), threads=1).tobytes() == result.tobytes()


@pytest.mark.parametrize("size", [(9, 12), (3, 85)])
@pytest.mark.parametrize("shapes", [((6, 7, 5), (4, 3, 4)), ((3, 5, 40), (2, 3, 18))])
def test_log_nfa_block_equals_twin(shapes, size):
    torch = pytest.importorskip("torch", reason="bicubic resizing is checked against torch")
    latents = latents_of(shapes=shapes)
    result = segmentation.log_nfa_block(latents, size, window=5, quantile=0.8)
    for b in range(2):
        expected = np.full(size, np.log10(sum(height * width for _, height, width in shapes)))
        for scale, z in enumerate(latents):
            half, channels = max(int((5 / 2**scale) // 2), 1), z.shape[1]
            side = 2 * half + 1
            padded = np.pad(counts_of(z, 0.8)[b], half, mode="reflect")
            sums = np.lib.stride_tricks.sliding_window_view(padded, (side, side)).sum((2, 3))
            tail = np.vectorize(lambda c, n=side**2, k=channels: reference.log10_block_tail(c, n, k, 0.2))(sums)
            resized = torch.nn.functional.interpolate(
                torch.from_numpy(tail)[None, None], size=size, mode="bicubic", align_corners=True
            )
            expected += resized[0, 0].numpy()
        np.testing.assert_allclose(result[b], expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_log_nfa_block_takes_every_finite_latent():
    with pytest.raises(ValueError, match=r"scale 0 is 7 x 5 cells .* use a smaller window"):
        segmentation.log_nfa_block([z(1, 2, 7, 5)], 8, window=13)
    large, small = z(1, 2, 7, 5, fill=1e30), z(1, 2, 7, 5, fill=10)  # the square of 1e30 overflows
    assert (segmentation.log_nfa_block([large]) == segmentation.log_nfa_block([small])).all()
    for fill in (np.inf, np.nan):
        with pytest.raises(ValueError, match="not finite"):
            segmentation.log_nfa_block([z(1, 2, 7, 5, fill=fill)])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F", "strided", "read-only", "unaligned"])
def test_array_forms(order, dtype):
    latents = [z.astype(dtype) for z in latents_of()]
    expected = segmentation.log_nfa(latents, 10, "exact")
    forms = []
    for z in latents:
        form = np.array(z, order="F") if order == "F" else z.copy()
        if order == "strided":
            form = np.repeat(z, 2, axis=3)[..., ::2]
        elif order == "read-only":
            form.flags.writeable = False
        elif order == "unaligned":
            form = np.frombuffer(b"x" + z.tobytes(), dtype=np.uint8)[1:].view(dtype).reshape(z.shape)
        forms.append(form)
    copies = [f.copy() for f in forms]
    np.testing.assert_allclose(segmentation.log_nfa(forms, 10, "exact"), expected, rtol=1e-5, atol=1e-5)
    for form, copy in zip(forms, copies, strict=True):
        np.testing.assert_array_equal(form, copy)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_equal_arrays(dtype):
    torch = pytest.importorskip("torch", reason="tensors are torch's")
    tensors = [torch.from_numpy(z).to(getattr(torch, dtype)).requires_grad_() for z in latents_of()]
    arrays = [t.detach().double().numpy() for t in tensors]
    for tail in ("exact", "binomial"):
        np.testing.assert_allclose(
            segmentation.log_nfa(tensors, 10, tail), segmentation.log_nfa(arrays, 10, tail), rtol=1e-5, atol=1e-5
        )
    energy = torch.from_numpy(segmentation.energies(arrays)[0])
    np.testing.assert_array_equal(segmentation.log_pfa_tree(energy, 6), segmentation.log_pfa_tree(energy.numpy(), 6))


def test_large_float16_latents_do_not_overflow():
    latents = [np.full((1, 4, 2, 2), 60000, np.float16)]
    assert segmentation.energies(latents)[0].max() == pytest.approx(4 * 60000.0**2, rel=1e-3)


def test_shapes_of_every_kind():
    for shape in [(1, 1), (1, 9), (9, 1), (3, 5)]:
        z = np.random.default_rng(0).standard_normal((1, 3, *shape))
        for size in (1, 7, (3, 8)):
            result = segmentation.log_nfa([z], size)
            assert result.shape == (1, *((size, size) if isinstance(size, int) else size))
            assert np.isfinite(result).all()


def test_zero_energy_without_guard_stays_finite():
    z = np.zeros((1, 3, 4, 4), np.float32)
    assert (segmentation.log_nfa([z], 9, "chernoff-unguarded") < -1e29).all()
    assert np.isfinite(segmentation.log_nfa([z], 9, "chernoff-unguarded")).all()


def test_white_noise_is_not_flagged():
    rng = np.random.default_rng(11)
    latents = [rng.standard_normal((50, 32, 14, 14), np.float32), rng.standard_normal((50, 48, 7, 7), np.float32)]
    for tail in ("exact", "chernoff", "binomial"):
        assert (segmentation.log_nfa(latents, 28, tail) > 0).all()
    # By area at most one false region an image is expected; white noise gives far fewer.
    flagged = (segmentation.log_nfa(latents, 28, "exact", "by-area") < 0).any((1, 2))
    assert flagged.mean() <= 0.1


def test_quiet_latents_need_the_guard():
    z = np.sqrt(0.95) * np.random.default_rng(2).standard_normal((2, 2000, 16, 16))
    assert (segmentation.log_nfa([z], 32, "chernoff-unguarded") < 0).all()
    for tail in ("chernoff", "exact"):
        assert (segmentation.log_nfa([z], 32, tail) > 0).all()


@pytest.mark.parametrize("tail", TAILS)
def test_same_bytes_whatever_the_threads(tail):
    latents = latents_of(batch=11)
    for n_tests in ("total", "by-area"):
        one = segmentation.log_nfa(latents, (20, 31), tail, n_tests, threads=1).tobytes()
        for threads in (2, 5, None):
            assert segmentation.log_nfa(latents, (20, 31), tail, n_tests, threads=threads).tobytes() == one


def test_gil_is_released_and_calls_can_overlap():
    energy = np.random.default_rng(0).chisquare(8, (4, 300, 300)).astype(np.float32)
    expected = segmentation.log_pfa_tree(energy, 8, threads=1).tobytes()
    results, spans = [], []

    def work():
        start = time.perf_counter()
        results.append(segmentation.log_pfa_tree(energy, 8, threads=1).tobytes())
        spans.append((start, time.perf_counter()))

    ticks = []
    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(1e-4)
    worker.join()
    start, end = spans[0]
    quarter = (end - start) / 4  # Python code runs at both ends of the call; in its middle only if the GIL is free
    assert any(start + quarter < tick < end - quarter for tick in ticks)
    crowd = [threading.Thread(target=work) for _ in range(8)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert results == [expected] * 9


def test_connected_components_and_regions():
    mask = np.array([[0, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1]], bool)
    labels, count = segmentation.connected_components(mask)
    assert labels.tolist() == [[0, 1, 0, 2], [0, 1, 0, 0], [3, 0, 0, 4]]
    assert labels.dtype == np.int32
    assert count == 4
    assert segmentation.connected_components(mask, 8)[1] == 3
    assert segmentation.connected_components(np.zeros((2, 2)))[1] == 0
    assert segmentation.connected_components(np.ones((2, 2)))[0].tolist() == [[1, 1], [1, 1]]
    rng = np.random.default_rng(0)
    for connectivity in (4, 8):
        big = rng.random((40, 31)) < 0.5
        labels, count = segmentation.connected_components(big, connectivity)
        found = reference.components(big, connectivity)
        assert count == len(found)
        for i, component in enumerate(found):
            assert {tuple(p) for p in np.argwhere(labels == i + 1).tolist()} == component

    nfa, score = rng.normal(size=big.shape), rng.random(big.shape)
    listed = segmentation.regions(big, nfa, score)
    found = reference.components(big)
    assert [r.log_nfa for r in listed] == sorted(r.log_nfa for r in listed)
    assert len(listed) == len(found)
    for component in found:
        pixels = np.array(sorted(component))
        at = tuple(pixels.T)
        (region,) = [r for r in listed if r.log_nfa == nfa[at].min()]
        assert region.area == len(pixels)
        assert region.bbox == (*pixels.min(0).tolist(), *(pixels.max(0) + 1).tolist())
        np.testing.assert_allclose(region.centroid, pixels.mean(0))
        assert region.score == score[at].max()
    assert segmentation.regions(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))) == []
    # float32 maps, a list, and arrays that are not contiguous give the same
    nfa, score = nfa.astype(np.float32), score.astype(np.float32)
    listed = segmentation.regions(big, nfa, score)
    assert segmentation.regions(np.asfortranarray(big), nfa.astype(float), np.asfortranarray(score)) == listed
    assert segmentation.regions(255 * big.astype(np.uint8), nfa.tolist(), score) == listed
    with pytest.raises(dataclasses.FrozenInstanceError):
        listed[0].area = 3


def test_max_tree_converts_other_dtypes():
    image = np.array([[3, 1, 2]])
    for dtype in (np.int64, np.uint8, np.float16, bool):
        array = image.astype(dtype)
        np.testing.assert_array_equal(
            segmentation.max_tree(array)[0], segmentation.max_tree(array.astype(np.float64))[0]
        )
    with pytest.raises(TypeError, match="complex128"):
        segmentation.max_tree(image + 1j)


def z(*shape, fill=0.0):
    return np.full(shape, fill, np.float32)


@pytest.mark.parametrize(
    ("latents", "options", "message"),
    [
        ([], {}, "one per scale, got an empty one"),
        (z(1, 2, 3, 3), {}, "must be a list .* got ndarray"),
        ([z(2, 3, 3)], {}, r"latents must be \(B, C, H, W\) and not empty, got shape \(2, 3, 3\)"),
        ([z(0, 2, 3, 3)], {}, r"got shape \(0, 2, 3, 3\)"),
        ([z(1, 2, 0, 3)], {}, r"got shape \(1, 2, 0, 3\)"),
        ([z(1, 2, 3, 3), z(2, 2, 3, 3)], {}, "scales differ in batch size"),
        ([z(1, 2, 3, 3, fill=np.nan)], {}, r"scale 0, shape \(1, 2, 3, 3\), hold values that are not finite"),
        ([z(1, 2, 3, 3, fill=np.inf)], {}, "not finite"),
        ([z(1, 2, 3, 3, fill=1e30)], {}, "not finite"),
        ([z(1, 2, 3, 3)], {"size": 0}, "size must be positive, got 0"),
        ([z(1, 2, 3, 3)], {"size": 2**70}, r"size must be below 2\^31 pixels, got 1180591620717411303424"),
        ([z(1, 2, 3, 3)], {"size": (4, 5, 6)}, "size must be a whole number or"),
        ([z(1, 2, 3, 3)], {"size": 2.5}, "size must be a whole number or"),
        ([z(1, 2, 3, 3)], {"tail": "gauss"}, "unknown tail 'gauss'; choose one of exact, chernoff"),
        ([z(1, 2, 3, 3)], {"n_tests": "none"}, "unknown n_tests 'none'"),
        ([z(1, 2, 3, 3)], {"quantile": 1.0}, "quantile must lie between 0 and 1, by more than 1e-16, got 1.0"),
        ([z(1, 2, 3, 3)], {"quantile": 1e-300}, "quantile must lie between 0 and 1, by more than 1e-16, got 1e-300"),
        ([z(1, 2, 3, 3)], {"quantile": "0.9"}, "quantile must lie between 0 and 1, by more than 1e-16, got '0.9'"),
        ([z(1, 2, 3, 3)], {"threads": 2**31}, "threads must be a number of threads, got 2147483648"),
        ([z(1, 2, 3, 3)], {"background": [1]}, r"background must be .* one Background per scale, got \[1\]"),
        ([z(1, 2, 3, 3)], {"background": 1}, "background must be .* one Background per scale, got 1"),
        ([z(1, 2, 3, 3)], {"background": []}, "one Background per scale is needed, got 0 for 1 scales"),
    ],
)
def test_bad_latents(latents, options, message):
    with pytest.raises(ValueError, match=message) as error:
        segmentation.log_nfa(latents, **options)
    assert "\n" not in str(error.value)


def test_bad_arguments():
    energy = np.ones((1, 2, 2))
    with pytest.raises(TypeError, match=r"threads must be a whole number, or None for one per core, got 1\.5"):
        segmentation.log_nfa([z(1, 2, 3, 3)], threads=1.5)
    with pytest.raises(TypeError, match="floating point, got int32"):
        segmentation.log_nfa([np.zeros((1, 2, 3, 3), np.int32)])
    with pytest.raises(TypeError, match="numpy arrays or torch tensors, got list"):
        segmentation.log_nfa([[[[[1.0]]]]])
    with pytest.raises(ValueError, match=r"energy must be \(B, H, W\)"):
        segmentation.log_pfa_tree(energy[0], 3)
    with pytest.raises(ValueError, match="not finite"):
        segmentation.log_pfa_tree(energy * np.nan, 3)
    with pytest.raises(ValueError, match="dof must be positive and finite, got -1"):
        segmentation.log_pfa_tree(energy, -1)
    with pytest.raises(ValueError, match="exceedances go with tail='binomial' and only with it"):
        segmentation.log_pfa_tree(energy, 3, "binomial")
    with pytest.raises(ValueError, match="exceedances go with"):
        segmentation.log_pfa_tree(energy, 3, "exact", np.zeros((1, 2, 2), int))
    with pytest.raises(ValueError, match="whole numbers of shape"):
        segmentation.log_pfa_tree(energy, 3, "binomial", energy)
    with pytest.raises(ValueError, match=r"got 4\.\.4 for dof 3"):
        segmentation.log_pfa_tree(energy, 3, "binomial", np.full((1, 2, 2), 4))
    with pytest.raises(ValueError, match="one dof per scale"):
        segmentation.log_nfa_from_energies([energy], [3, 4])
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        segmentation.log_nfa_block([z(1, 2, 8, 8)], window=0)
    with pytest.raises(ValueError, match="at least one cell, got 0"):
        segmentation.number_of_tests([0])
    with pytest.raises(ValueError, match=r"Background\.dof must be positive and finite, got 0"):
        Background(1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="must have the same shape"):
        segmentation.regions(np.ones((2, 2)), np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="NaN inside the mask"):
        segmentation.regions(np.ones((2, 2)), np.full((2, 2), np.nan), np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"mask must be \(H, W\) and not empty, got shape \(0, 2\)"):
        segmentation.connected_components(np.ones((0, 2)))
    with pytest.raises(ValueError, match="connectivity must be 4 or 8, got 5"):
        segmentation.connected_components(np.ones((2, 2)), 5)


def test_number_of_tests():
    for sizes, value in [
        ([784, 196], 476.92371),
        ([784], 476.92371),
        ([196], 118.94935),
        ([4096, 1024, 256], 2493.272),
    ]:
        assert segmentation.number_of_tests(sizes) == pytest.approx(value, abs=6e-6 if value < 1000 else 6e-5)
        assert segmentation.number_of_tests(sizes) == pytest.approx(reference.log10_number_of_tests(sizes), rel=1e-12)


def test_threshold_is_the_chi2_quantile():
    for q in (0.01, 0.5, 0.9, 0.999):
        assert _core.chi2_1_quantile(q) == pytest.approx(scipy.stats.chi2.ppf(q, 1), rel=1e-12)


def test_background_by_name():
    latents = [np.random.default_rng(0).normal(size=(1, 6, 4, 4)).astype(np.float32)]
    paper = segmentation.log_nfa(latents, 8)
    for background in (None, "gaussian", [segmentation.Background(1.0, 6.0, 1.0)]):
        np.testing.assert_array_equal(segmentation.log_nfa(latents, 8, background=background), paper)
    with pytest.raises(ValueError, match="'gaussian' or a list of one Background per scale, got 'gauss'"):
        segmentation.log_nfa(latents, 8, background="gauss")


@pytest.mark.parametrize("connectivity", [0, 6, 2**40, 4.5, "4", None])
def test_other_neighbours_are_refused_on_one_line(connectivity: object) -> None:
    for read in (segmentation.max_tree, segmentation.connected_components):
        with pytest.raises(ValueError, match="connectivity must be 4 or 8, got ") as error:
            read(np.ones((2, 2)), connectivity=connectivity)
        one_line(error)


def test_scales_of_too_many_cells_are_refused_on_one_line() -> None:
    with pytest.raises(ValueError, match=r"a scale has at most 2\^31 - 1 cells, got 2147483648") as error:
        segmentation.number_of_tests([4, 2**31])
    one_line(error)
