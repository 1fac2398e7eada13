"""The distance to good images' features: equal to brute force, drawn from all images, alike in a model file and out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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


def vectors(features: FeatureCache, images: list[int]) -> torch.Tensor:
    fine, coarse, _ = features.batch(images)
    return torch.cat([F.avg_pool2d(fine, 2), coarse], 1).permute(0, 2, 3, 1).reshape(-1, 8)


def test_is_the_squared_distance_to_the_nearest(features: FeatureCache) -> None:
    kept, cells = vectors(features, [0, 1]), vectors(features, [2, 6])
    found = Neighbours(kept, usual=2.5)(features.batch([2, 6]))
    assert (found.shape, found.dtype) == ((2, 4, 6), torch.float32)
    expected = torch.cdist(cells.double(), kept.double()).amin(1).square() / 2.5
    torch.testing.assert_close(found.flatten().double(), expected, rtol=1e-4, atol=1e-4)
    assert Neighbours(kept, usual=2.5)(features.batch([0])).max() < 1e-4  # not below 0, whatever the rounding
    assert Neighbours(kept, usual=2.5)(features.batch([0])).min() >= 0


def test_takes_the_only_scale(features: FeatureCache) -> None:
    x = torch.from_numpy(features.arrays[1][:2])
    found = Neighbours(torch.zeros(1, 5), usual=1.0)([x])
    torch.testing.assert_close(found, x.square().sum(1))


def test_keeps_cells_of_all_images_and_knows_the_usual_distance(features: FeatureCache) -> None:
    near = Neighbours.of(features, [0, 1, 2], [3, 4], count=1000)
    assert len(near.vectors) == 5 * 24  # all there are
    torch.testing.assert_close(near.vectors, vectors(features, [0, 1, 2, 3, 4]))
    unseen = torch.cdist(vectors(features, [3, 4]), vectors(features, [0, 1, 2])).amin(1).square().mean()
    torch.testing.assert_close(near.usual, unseen, rtol=1e-4, atol=0)
    assert near(features.batch([6])).min() > 20

    few = Neighbours.of(features, [0, 1, 2], [3, 4], count=30, seed=1)
    assert len(few.vectors) == 30
    everything = vectors(features, [0, 1, 2, 3, 4])
    places = torch.cdist(few.vectors, everything).argmin(1)
    torch.testing.assert_close(few.vectors, everything[places])
    assert len(set(places.tolist())) == 30
    assert len(set((places // 24).tolist())) == 5
    assert torch.equal(few.vectors, Neighbours.of(features, [0, 1, 2], [3, 4], count=30, seed=1).vectors)


def test_equal_images_do_not_divide_by_zero(features: FeatureCache) -> None:
    for array in features.arrays:
        array[:] = array[0]
    near = Neighbours.of(features, [0, 1], [2], count=100)
    assert torch.isfinite(near(features.batch([3]))).all()


def test_features_of_another_net_are_one_line() -> None:
    with pytest.raises(ValueError, match="features of 4 channels, and the vectors of good images have 5"):
        Neighbours(torch.zeros(3, 5), usual=1.0)([torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2)])
