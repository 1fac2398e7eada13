"""The anomaly map equals its formula, for arrays and tensors, any size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from uflow.scoring import Blend, anomaly_map, anomaly_map_from_energies, anomaly_map_with_neighbours


@pytest.mark.parametrize("size", [16, (16, 24), (5, 7)])
def test_equals_the_formula(size: int | tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(2, 6, 8, 12, generator=generator), torch.randn(2, 10, 4, 6, generator=generator)]
    target = (size, size) if isinstance(size, int) else size
    likelihood = [
        F.interpolate(torch.exp(-0.5 * z.square().mean(1, keepdim=True)), target, mode="bilinear") for z in latents
    ]
    expected = 1 - torch.cat(likelihood, 1).mean(1)
    result = anomaly_map(latents, size)
    assert result.shape == (2, *target)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(result, anomaly_map([z.numpy() for z in latents], size), atol=1e-6)


def test_lies_between_0_and_1_and_rises_with_energy() -> None:
    z = np.zeros((1, 4, 3, 3), np.float32)
    z[0, :, 1, 1] = 40.0
    result = anomaly_map([z], 3)[0]
    assert result.min() == 0.0
    assert result.argmax() == 4
    assert result[1, 1] == pytest.approx(1.0)


def test_bad_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        anomaly_map([np.zeros((4, 3, 3), np.float32)])
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        anomaly_map([np.zeros((1, 4, 3, 3), np.float32)], size=0)
    energies = [np.zeros((1, 3, 3), np.float32)]
    with pytest.raises(ValueError, match="one dof per scale is needed and at least one scale, got 1 scales, 2 dof"):
        anomaly_map_from_energies(energies, [4, 4])
    with pytest.raises(ValueError, match="positive and finite"):
        anomaly_map_from_energies(energies, [0])


def test_same_bytes_whatever_the_threads() -> None:
    energies = [np.random.default_rng(0).chisquare(8, (7, n, n)).astype(np.float32) for n in (9, 5)]
    one = anomaly_map_from_energies(energies, [8, 8], (20, 31), threads=1).tobytes()
    for threads in (2, 5, None):
        assert anomaly_map_from_energies(energies, [8, 8], (20, 31), threads=threads).tobytes() == one


def with_distances(rng: np.random.Generator) -> list[np.ndarray]:
    energies = [c * rng.uniform(0.5, 1.5, (2, h, 2 * h)).astype(np.float32) for c, h in ((6, 8), (9, 4))]
    distances = [rng.uniform(0.5, 2, (2, h, 2 * h)).astype(np.float32) for h in (8, 4)]
    distances[1][1, 3, 5] = 20
    return [*energies, *distances]


@pytest.mark.parametrize("blend", [None, Blend(map_share=0.7, score_share=0.2), Blend(0, 1), Blend(1, 0)])
def test_neighbours_join_the_map_and_the_blend_says_how_much(blend: Blend | None) -> None:
    given = with_distances(np.random.default_rng(0))
    p = anomaly_map_from_energies(given[:2], [6, 9], (20, 30))
    np.testing.assert_array_equal(anomaly_map_with_neighbours(given[:2], [6, 9], (20, 30), blend), p)
    found = anomaly_map_with_neighbours(given, [6, 9], (20, 30), blend)
    assert (found.shape, found.dtype) == ((2, 20, 30), np.float32)

    maps = [torch.from_numpy(d).double()[:, None] for d in given[2:]]
    q = 1 - np.exp(-sum(F.interpolate(m, (20, 30), mode="bilinear")[:, 0].numpy() for m in maps) / 4)
    w, s = (0.5, 0.5) if blend is None else (blend.map_share, blend.score_share)
    both = (1 - w) * p + w * q
    score = ((1 - s) * p + s * q).max((1, 2))
    np.testing.assert_allclose(found.max((1, 2)), score, rtol=1e-6)
    np.testing.assert_allclose(found, both * (score / both.max((1, 2)))[:, None, None], rtol=1e-5)
    if w > 0:
        assert np.unravel_index(found[1].argmax(), (20, 30))[0] > 14


def test_a_map_of_zeros_stays_one() -> None:
    zeros = np.zeros((1, 2, 2), np.float32)
    assert (anomaly_map_with_neighbours([zeros, zeros], [4], 4, Blend(0.7, 0.2)) == 0).all()


def test_the_blend_counts_each_by_how_much_it_rises() -> None:
    """Two images of one scale whose energies, over 5 channels, rise by 1 in their areas and their distances by 3."""
    areas = np.zeros((2, 4, 6), bool)
    areas[0, :2, :2] = areas[1, 2:, 4:] = True
    latent, near = np.full((2, 4, 6), 0.5, np.float32), np.full((2, 4, 6), 2, np.float32)
    latent[0, 3, 3] = 1.0
    near[:, 1, 5] = 3
    good = [5 * latent, near]
    changed = [5 * (latent + areas), near + 3 * areas]
    blend = Blend.of(good, changed, areas, [5])
    assert blend.map_share == pytest.approx(3 * 3 / (1 + 3 * 3), rel=1e-5)
    assert blend.score_share == pytest.approx(2 / (0.75 + 2), rel=1e-5)
    fallen = Blend.of(good, [changed[0], near - areas], areas, [5])
    assert (fallen.map_share, fallen.score_share) == pytest.approx((0, 0), abs=1e-5)
    assert Blend.of(good, good, areas, [5]) == Blend(0.5, 0.5)  # nothing rises


def test_bad_distances_are_one_line() -> None:
    energies, distances = np.ones((1, 2, 2), np.float32), np.ones((2, 2, 2), np.float32)
    with pytest.raises(ValueError, match="energies are of 1 images and distances of 2"):
        anomaly_map_with_neighbours([energies, distances], [4], 4)
    with pytest.raises(ValueError, match="not finite"):
        anomaly_map_with_neighbours([energies, energies * np.nan], [4], 4)
    with pytest.raises(ValueError, match="at least one scale, got 0 scales"):
        Blend.of([energies], [energies], energies > 0, [4])
    both = [energies, energies]
    for changed, areas in ((both, energies < 0), (both, distances > 0), ([distances] * 2, energies > 0)):
        with pytest.raises(ValueError, match="areas that were changed in as many images"):
            Blend.of(both, changed, areas, [4])
    for share in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="score_share is a share between 0 and 1"):
            Blend(0.5, share)
