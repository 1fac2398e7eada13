"""The memory of good images: distances equal to brute force, vectors of all images that cover them best."""

import numpy as np
import pytest
import torch

from uflow import memory as room
from uflow.features import FeatureCache
from uflow.memory import MemoryBank, greedy_coreset


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


def vectors_of(features: FeatureCache, images: list[int]) -> list[torch.Tensor]:
    fine, own = (around(x) for x in features.batch(images)[:2])
    four = (fine[:, ::2, ::2] + fine[:, 1::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, 1::2]) / 4
    return [fine.flatten(0, 2), torch.cat([four, own], dim=3).flatten(0, 2)]


def test_is_the_squared_distance_to_the_nearest(features: FeatureCache) -> None:
    kept, cells = vectors_of(features, [0, 1]), vectors_of(features, [2, 6])
    memory = MemoryBank(kept)
    found = memory(features.batch([2, 6]))
    assert [(d.shape, d.dtype) for d in found] == [((2, 8, 12), torch.float32), ((2, 4, 6), torch.float32)]
    for d, mine, theirs in zip(found, cells, kept, strict=True):
        expected = torch.cdist(mine.double(), theirs.double()).amin(1).square()
        torch.testing.assert_close(d.flatten().double(), expected, rtol=1e-4, atol=1e-4)
    for d in memory(features.batch([0])):
        assert d.min() >= 0  # not below 0, whatever the rounding
        assert d.max() < 1e-3


def test_parts_of_many_cells_are_put_together_in_order() -> None:
    x = torch.randn(2, 3, 20, 31, generator=torch.Generator().manual_seed(0))
    (found,) = MemoryBank([torch.zeros(1, 3)])([x])
    torch.testing.assert_close(found.flatten(), around(x).square().sum(3).flatten())


def test_an_unusual_image_is_far(features: FeatureCache) -> None:
    memory = MemoryBank.from_features(features, [0, 1, 2], 1000)
    near, far = memory(features.batch([3])), memory(features.batch([6]))
    assert all(f.min() > 3 * n.mean() for n, f in zip(near, far, strict=True))


def test_keeps_all_cells_where_there_are_few(features: FeatureCache) -> None:
    memory = MemoryBank.from_features(features, [0, 1, 2], 1000)
    for kept, wanted in zip(memory.vectors, vectors_of(features, [0, 1, 2]), strict=True):
        assert len(kept) == len(wanted)
        assert torch.cdist(wanted.double(), kept.double()).amin(1).max() < 1e-6


def test_keeps_what_covers_cells_of_all_images_best(features: FeatureCache) -> None:
    images = [0, 1, 2, 3, 4]
    memory = MemoryBank.from_features(features, images, 24, seed=1)
    for kept, everything, cells in zip(memory.vectors, vectors_of(features, images), (96, 24), strict=True):
        places = torch.cdist(kept, everything).argmin(1)
        torch.testing.assert_close(kept, everything[places])
        assert len(kept) == len(set(places.tolist())) == 24
        assert len(set((places // cells).tolist())) == 5
        apart = torch.cdist(kept, kept).fill_diagonal_(torch.inf).amin()
        assert torch.cdist(everything, kept).amin(1).max() <= apart + 1e-5  # none is left out that is far
    again = MemoryBank.from_features(features, images, 24, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(memory.vectors, again.vectors, strict=True))


def test_as_many_cells_of_each_image_are_drawn(features: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "POOL_SIZE", 40)
    images = [0, 1, 2, 3, 6]
    memory = MemoryBank.from_features(features, images, 1000)
    for kept, everything, cells in zip(memory.vectors, vectors_of(features, images), (96, 24), strict=True):
        of_image = torch.cdist(kept, everything).argmin(1) // cells
        assert of_image.bincount().tolist() == [8] * 5


def test_many_channels_are_chosen_from_in_a_projection() -> None:
    """Random directions keep distances to some tenths: clusters stay apart, and each is remembered."""
    cache = FeatureCache(1, [(200, 10, 10)])
    centres = np.random.default_rng(0).normal(size=(200, 5, 1)).repeat(2, axis=1)
    cache.arrays[0][0] = 100 * centres  # two rows of cells of each of five kinds
    (kept,) = MemoryBank.from_features(cache, [0], 10).vectors
    borders = around(cache.batch([0])[0])[0, ::2, 5]
    assert kept.shape == (10, 200)
    assert torch.cdist(borders, kept).amin(1).max() < 0.5 * torch.cdist(borders, borders).fill_diagonal_(1e9).amin()


def test_a_coreset_takes_the_farthest_from_those_before() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    for first, then in {0: [3, 2], 1: [3, 0], 2: [3, 0], 3: [0, 2]}.items():
        assert greedy_coreset(x, 3, first).tolist() == [first, *then]
    assert sorted(greedy_coreset(torch.ones(5, 2), 5).tolist()) == [0, 1, 2, 3, 4]  # none twice


def test_features_of_another_net_are_one_line() -> None:
    with pytest.raises(ValueError, match="features of 4 channels, and the vectors of good images have 5"):
        MemoryBank([torch.zeros(3, 5)])([torch.ones(1, 4, 2, 2)])
    with pytest.raises(ValueError, match="features of 1 scales, and the vectors of good images are of 2"):
        MemoryBank([torch.zeros(3, 5)] * 2)([torch.ones(1, 5, 2, 2)])
    with pytest.raises(ValueError, match="twice the cells of the next on each side, got 8 x 8 and 8 x 8"):
        MemoryBank([torch.zeros(3, 5)] * 2)([torch.ones(1, 5, 8, 8)] * 2)
    with pytest.raises(ValueError, match="coreset of 4 rows cannot be chosen from 3"):
        greedy_coreset(torch.ones(3, 2), 4)


def test_further_images_join_with_what_is_unknown() -> None:
    generator = torch.Generator().manual_seed(0)
    kept = [torch.randn(30, 3, generator=generator), torch.randn(20, 7, generator=generator)]
    features = [torch.randn(1, 3, 8, 8, generator=generator), torch.randn(1, 4, 4, 4, generator=generator)]
    memory = MemoryBank(kept)
    before = memory(features)
    radii = [float(distance.median()) for distance in before]
    more = memory.with_unknown_cells(features, radii)
    for old, new, distance, radius in zip(kept, more.vectors, before, radii, strict=True):
        torch.testing.assert_close(new[: len(old)], old)
        assert len(new) == len(old) + int((distance > radius).sum())
    for distance, known, radius in zip(before, more(features), radii, strict=True):
        assert float(known[distance > radius].max()) < 1e-4
        assert float(known.max()) <= radius
    again = more.with_unknown_cells(features, radii)
    assert [len(v) for v in again.vectors] == [len(v) for v in more.vectors]
