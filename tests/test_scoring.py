"""The anomaly map equals its formula, for arrays and tensors, any size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from uflow.scoring import NEAR, anomaly_map, anomaly_map_from_energies, anomaly_map_with_neighbours


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


def test_neighbours_move_the_anomaly_but_not_the_score() -> None:
    rng = np.random.default_rng(0)
    energies = [rng.chisquare(6, (2, 8, 12)).astype(np.float32), rng.chisquare(9, (2, 4, 6)).astype(np.float32)]
    latent = anomaly_map_from_energies(energies, [6, 9], (20, 30))
    np.testing.assert_array_equal(anomaly_map_with_neighbours(energies, [6, 9], (20, 30)), latent)
    distance = rng.uniform(0.5, 2, (2, 4, 6)).astype(np.float32)
    distance[1, 3, 5] = 20
    found = anomaly_map_with_neighbours([*energies, distance], [6, 9], (20, 30))
    assert (found.shape, found.dtype) == ((2, 20, 30), np.float32)
    np.testing.assert_allclose(found.max((1, 2)), latent.max((1, 2)), rtol=1e-6)
    near = F.interpolate(torch.exp(-torch.from_numpy(distance)[:, None] / 2), (20, 30), mode="bilinear")[:, 0].numpy()
    both = (1 - NEAR) * latent + NEAR * (1 - near)
    np.testing.assert_allclose(found / found.max((1, 2), keepdims=True), both / both.max((1, 2), keepdims=True), 1e-5)
    assert np.unravel_index(found[1].argmax(), (20, 30))[0] > 14


def test_a_map_of_zeros_stays_one() -> None:
    zeros = np.zeros((1, 2, 2), np.float32)
    assert (anomaly_map_with_neighbours([zeros, zeros], [4], 4) == 0).all()
