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


@pytest.mark.parametrize("blend", [None, Blend(share=0.3, offset=-1.5)])
def test_neighbours_join_the_map_and_the_blend_scales_it(blend: Blend | None) -> None:
    given = with_distances(np.random.default_rng(0))
    latent = anomaly_map_from_energies(given[:2], [6, 9], (20, 30))
    np.testing.assert_array_equal(anomaly_map_with_neighbours(given[:2], [6, 9], (20, 30), blend), latent)
    found = anomaly_map_with_neighbours(given, [6, 9], (20, 30), blend)
    assert (found.shape, found.dtype) == ((2, 20, 30), np.float32)

    maps = [torch.from_numpy(d).double()[:, None] for d in given[2:]]
    near = sum(F.interpolate(m, (20, 30), mode="bilinear")[:, 0].numpy() for m in maps) / 2
    both = latent + 1 - np.exp(-near / 2)
    energy = -2 * np.log(1 - latent.max((1, 2)).astype(float))
    if blend is not None:
        energy = 0.7 * energy + 0.3 * (near.max((1, 2)) - 1.5)
    score = 1 - np.exp(-energy / 2)
    np.testing.assert_allclose(found, both * (score / both.max((1, 2)))[:, None, None], rtol=1e-5)
    assert np.unravel_index(found[1].argmax(), (20, 30))[0] > 14


def test_a_map_of_zeros_stays_one_and_a_score_does_not_fall_below_0() -> None:
    zeros = np.zeros((1, 2, 2), np.float32)
    for blend in (None, Blend(share=0.5, offset=-3)):
        assert (anomaly_map_with_neighbours([zeros, zeros], [4], 4, blend) == 0).all()
    ones = np.ones((1, 2, 2), np.float32)
    assert (anomaly_map_with_neighbours([ones, ones], [4], 4, Blend(share=0.5, offset=-3)) == 0).all()


def test_the_blend_counts_each_by_the_inverse_of_its_variance() -> None:
    """Flat maps: the largest values are those given."""
    latent, near = np.array([1.0, 1.1, 1.2, 1.3, 1.4]), np.array([3.0, 3.5, 4.0, 4.5, 5.0])
    images = [[np.full((1, 2, 3), v, np.float32) for v in (5 * e, d)] for e, d in zip(latent, near, strict=True)]
    blend = Blend.of(images, [5], [(7, 9)] * 5)
    assert blend.share == pytest.approx(0.1**2 / (0.1**2 + 0.5**2), rel=1e-4)
    assert blend.offset == pytest.approx(1.2 - 4, rel=1e-5)
    assert Blend.of(images[:4], [5], [(7, 9)] * 4) == Blend(0, 0)  # too few
    assert Blend.of(images[:1] * 5, [5], [(7, 9)] * 5).share == 0


def test_bad_distances_are_one_line() -> None:
    energies, distances = np.ones((1, 2, 2), np.float32), np.ones((2, 2, 2), np.float32)
    with pytest.raises(ValueError, match="energies are of 1 images and distances of 2"):
        anomaly_map_with_neighbours([energies, distances], [4], 4)
    with pytest.raises(ValueError, match="not finite"):
        anomaly_map_with_neighbours([energies, energies * np.nan], [4], 4)
    with pytest.raises(ValueError, match="at least one scale, got 0 scales"):
        Blend.of([[energies]] * 5, [4], [(4, 4)] * 5)
