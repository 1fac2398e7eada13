"""The distance to good images' features: equal to brute force, drawn from all images, alike in a model file and out."""

import numpy as np
import pytest
import torch

from uflow.features import FeatureCache
from uflow.memory import Neighbours, change, greedy_coreset


@pytest.fixture
def features() -> FeatureCache:
    """Of 7 images at 3 scales, the last one far from the others."""
    rng = np.random.default_rng(0)
    cache = FeatureCache(7, [(3, 8, 12), (5, 4, 6), (9, 2, 3)])
    for array in cache.arrays:
        array[:] = rng.normal(size=array.shape)
        array[-1] += 10
    return cache


def around(x: torch.Tensor) -> torch.Tensor:
    """The sum of 3 x 3 cells over 9, by loops: (B, H, W, C)."""
    batch, channels, height, width = x.shape
    out = torch.zeros(batch, height, width, channels)
    for i in range(height):
        for j in range(width):
            out[:, i, j] = x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].sum((2, 3)) / 9
    return out


def vectors(features: FeatureCache, images: list[int]) -> list[torch.Tensor]:
    fine, own = features.batch(images)[:2]
    fine, coarse = around(fine), 7 / 8 * around(own) + own.permute(0, 2, 3, 1) / 8
    four = (fine[:, ::2, ::2] + fine[:, 1::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, 1::2]) / 4
    return [fine.flatten(0, 2), torch.cat([four, coarse], dim=3).flatten(0, 2)]


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
    torch.testing.assert_close(found.flatten(), around(x).square().sum(3).flatten())


def test_keeps_cells_of_all_images_and_knows_the_usual_distance(features: FeatureCache) -> None:
    near = Neighbours.of(features, [0, 1, 2], count=1000)
    assert near.usual.tolist() == [1, 1]
    near.measure(features, [3, 4])
    counts = 2 / 3, 4 / 3  # the second scale counts twice in the mean
    for kept, usual, count, mine, theirs in zip(
        near.vectors, near.usual, counts, vectors(features, [3, 4]), vectors(features, [0, 1, 2]), strict=True
    ):
        torch.testing.assert_close(kept, theirs)  # all there are
        torch.testing.assert_close(usual * count, torch.cdist(mine, theirs).amin(1).square().mean(), rtol=1e-4, atol=0)
    assert sum(d.mean() for d in near(features.batch([3, 4]))) / 2 == pytest.approx(1, rel=1e-4)
    assert min(d.min() for d in near(features.batch([6]))) > 5


def test_keeps_what_covers_five_times_as_many_cells_of_all_images_best(features: FeatureCache) -> None:
    images = [0, 1, 2, 3, 4]
    near = Neighbours.of(features, images, count=24, seed=1)  # 120 are drawn: of the coarse cells all
    for kept, everything, cells in zip(near.vectors, vectors(features, images), (96, 24), strict=True):
        places = torch.cdist(kept, everything).argmin(1)
        torch.testing.assert_close(kept, everything[places])
        assert len(kept) == len(set(places.tolist())) == 24
        assert len(set((places // cells).tolist())) == 5
    kept = near.vectors[1]
    apart = torch.cdist(kept, kept).fill_diagonal_(torch.inf).amin()
    assert torch.cdist(vectors(features, images)[1], kept).amin(1).max() <= apart + 1e-5  # none is left out that is far
    again = Neighbours.of(features, images, count=24, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(near.vectors, again.vectors, strict=True))


def test_a_coreset_takes_the_farthest_from_those_before() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    for first, then in {0: [3, 2], 1: [3, 0], 2: [3, 0], 3: [0, 2]}.items():
        assert greedy_coreset(x, 3, first).tolist() == [first, *then]
    assert sorted(greedy_coreset(torch.ones(5, 2), 5).tolist()) == [0, 1, 2, 3, 4]  # none twice


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
    with pytest.raises(ValueError, match="twice the cells of the next on each side, got 8 x 8 and 8 x 8"):
        Neighbours([torch.zeros(3, 5)] * 2, usual=[1.0] * 2)([torch.ones(1, 5, 8, 8)] * 2)
    with pytest.raises(ValueError, match=r"\[5, 3\] channels, \[5\] deviations"):
        change([torch.ones(1, 5, 4, 4), torch.ones(1, 3, 2, 2)], [torch.ones(5)], np.random.default_rng(0))
    with pytest.raises(ValueError, match="coreset of 4 rows cannot be chosen from 3"):
        greedy_coreset(torch.ones(3, 2), 4)


def test_a_change_shifts_one_area_an_image_by_half_a_deviation(features: FeatureCache) -> None:
    images = [0, 1] * 150
    given = features.batch(images)
    deviations = [torch.arange(1.0, 1 + x.shape[1]) for x in given]
    changed, areas = change(given, deviations, np.random.default_rng(0))
    shifts = [after - before for before, after in zip(features.batch(images), changed, strict=True)]
    np.testing.assert_array_equal(areas, shifts[0].abs().amax(1) > 0)
    assert torch.equal(given[0], features.batch(images)[0])  # those given stay
    for shift, deviation in zip(shifts, deviations, strict=True):
        for one in shift:
            where = one.abs().amax(0) > 0
            rows, columns = where.any(1).nonzero().flatten(), where.any(0).nonzero().flatten()
            assert where.sum() == len(rows) * len(columns) == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            assert len(rows) <= max(where.shape[0] / 4 + 1, 1)
            torch.testing.assert_close(one[:, where], one[:, where][:, :1].expand(-1, where.sum()), rtol=0, atol=1e-4)
        spread = shift.abs().amax((2, 3)).square().mean(0).sqrt() / deviation
        torch.testing.assert_close(spread, torch.full_like(spread, 0.5), rtol=0.15, atol=0)
    assert (areas.any(0)).all()  # anywhere
    again, _ = change(given, deviations, np.random.default_rng(0))
    assert all(torch.equal(a, b) for a, b in zip(changed, again, strict=True))
