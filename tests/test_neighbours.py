"""The distance to good images' features: equal to brute force, drawn from all images, alike in a model file and out."""

import numpy as np
import pytest
import torch

from uflow.neighbours import Neighbours
from uflow.training import FeatureCache


@pytest.fixture
def features() -> FeatureCache:
    """Of 7 images at 3 scales, the last one far from the others."""
    rng = np.random.default_rng(0)
    cache = FeatureCache(7, [(3, 8, 12), (5, 4, 6), (9, 2, 3)])
    for array in cache.arrays:
        array[:] = rng.normal(size=array.shape)
        array[-1] += 10
    return cache


def around(x: torch.Tensor, share: float) -> torch.Tensor:
    """A share of the sum of 3 x 3 cells over 9, and the cell itself, by loops; (B * H * W, C)."""
    batch, channels, height, width = x.shape
    out = torch.zeros(batch, height, width, channels)
    for i in range(height):
        for j in range(width):
            window = x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            out[:, i, j] = share * window.sum((2, 3)) / 9 + (1 - share) * x[:, :, i, j]
    return out.reshape(-1, channels)


def vectors(features: FeatureCache, images: list[int]) -> list[torch.Tensor]:
    fine, coarse, _ = features.batch(images)
    return [around(fine, 1.0), around(coarse, 0.75)]


def test_is_the_squared_distance_to_the_nearest(features: FeatureCache) -> None:
    kept, cells = vectors(features, [0, 1]), vectors(features, [2, 6])
    near = Neighbours(kept, usual=[2.5, 4.0])
    found = near(features.batch([2, 6]))
    assert [(d.shape, d.dtype) for d in found] == [((2, 8, 12), torch.float32), ((2, 4, 6), torch.float32)]
    for d, mine, theirs, usual in zip(found, cells, kept, (2.5, 4.0), strict=True):
        expected = torch.cdist(mine.double(), theirs.double()).amin(1).square() / usual
        torch.testing.assert_close(d.flatten().double(), expected, rtol=1e-4, atol=1e-4)
    for d in near(features.batch([0])):
        assert d.min() >= 0  # not below 0, whatever the rounding
        assert d.max() < 1e-4


def test_parts_of_many_cells_are_put_together_in_order() -> None:
    x = torch.randn(2, 3, 20, 31, generator=torch.Generator().manual_seed(0))
    (found,) = Neighbours([torch.zeros(1, 3)], usual=[1.0])([x])
    torch.testing.assert_close(found.flatten(), around(x, 1.0).square().sum(1))


def test_keeps_cells_of_all_images_and_knows_the_usual_distance(features: FeatureCache) -> None:
    near = Neighbours.of(features, [0, 1, 2], count=1000)
    assert near.usual.tolist() == [1, 1]
    near.measure(features, [3, 4])
    for kept, usual, mine, theirs in zip(
        near.vectors, near.usual, vectors(features, [3, 4]), vectors(features, [0, 1, 2]), strict=True
    ):
        torch.testing.assert_close(kept, theirs)  # all there are
        torch.testing.assert_close(usual, torch.cdist(mine, theirs).amin(1).square().mean(), rtol=1e-4, atol=0)
    assert min(d.min() for d in near(features.batch([6]))) > 5

    few = Neighbours.of(features, [0, 1, 2, 3, 4], count=30, seed=1)
    for kept, everything, cells in zip(few.vectors, vectors(features, [0, 1, 2, 3, 4]), (96, 24), strict=True):
        assert len(kept) == 30
        places = torch.cdist(kept, everything).argmin(1)
        torch.testing.assert_close(kept, everything[places])
        assert len(set(places.tolist())) == 30
        assert len(set((places // cells).tolist())) == 5
    again = Neighbours.of(features, [0, 1, 2, 3, 4], count=30, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(few.vectors, again.vectors, strict=True))


def test_equal_images_do_not_divide_by_zero(features: FeatureCache) -> None:
    for array in features.arrays:
        array[:] = array[0]
    near = Neighbours.of(features, [0, 1], count=100)
    near.measure(features, [2])
    assert all(torch.isfinite(d).all() for d in near(features.batch([3])))


def test_features_of_another_net_are_one_line() -> None:
    with pytest.raises(ValueError, match="features of 4 channels, and the vectors of good images have 5"):
        Neighbours([torch.zeros(3, 5)], usual=[1.0])([torch.ones(1, 4, 2, 2)])
    with pytest.raises(ValueError, match="features of 1 scales, and the vectors of good images are of 2"):
        Neighbours([torch.zeros(3, 5)] * 2, usual=[1.0] * 2)([torch.ones(1, 5, 2, 2)])
