"""Features: computed once, kept in memory or on the disk, and shown to a training in an order that a seed decides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from uflow import features as room
from uflow.features import (
    Batch,
    FeatureCache,
    FeatureStream,
    ImageFeatures,
    TrainingFeatures,
    cache_size,
    channel_moments,
    compute_features,
    describe_images,
    fits_somewhere,
    image_tensor,
)
from uflow.tile_reader import turned_copies

SHAPES = [(4, 8, 8), (8, 4, 4)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(room.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def features() -> FeatureCache:
    """Of 12 images; image i is about i."""
    rng = np.random.default_rng(0)
    cache = FeatureCache(12, SHAPES)
    for array in cache.arrays:
        array[:] = np.arange(12)[:, None, None, None] + 0.1 * rng.normal(size=array.shape)
    return cache


class MeanColours:
    """In the place of a backbone: the mean colours of cells of 4 and 8 pixels."""

    image_size, strides, channels, sizes = (16, 16), (4, 8), (3, 3), ((4, 4), (2, 2))

    def __init__(self, size: tuple[int, int] = (16, 16), layer_norm: bool = False) -> None:
        self.image_size, self.layer_norm, self.mean = size, layer_norm, torch.zeros(3, 1, 1)
        self.sizes = tuple((size[0] // s, size[1] // s) for s in self.strides)

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, stride) for stride in self.strides]


def images_of(count: int, size: tuple[int, int] = (16, 16)) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (count, *size, 3), np.uint8))


def compute(
    sources: Any,
    *,
    size: tuple[int, int] = (16, 16),
    tile: bool = False,
    copies: bool = False,
    layer_norm: bool = False,
) -> Any:
    return ImageFeatures.compute(MeanColours(size, layer_norm), sources, tile, False, copies)


def numbers_shown(epoch: Iterator[Batch]) -> list[list[int]]:
    """Which images each batch shows, of those of `features`."""
    return [batch.volumes[0].mean((1, 2, 3)).round().int().tolist() for batch in epoch]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


# The cache ------------------------------------------------------------------------------------------------------------


def test_a_cache_larger_than_its_share_of_memory_is_on_disk(folder: Path) -> None:
    cache = FeatureCache(3, SHAPES, memory_share=0.0)
    assert all(isinstance(array, np.memmap) for array in cache.arrays)
    cache.arrays[1][2] = 7
    assert cache.batch([2, 0])[1][0].eq(7).all()
    assert len(list(folder.glob("*/scale*.npy"))) == 2
    cache.close()
    assert not list(folder.iterdir())
    assert not any(isinstance(array, np.memmap) for array in FeatureCache(3, SHAPES).arrays)


def has_free(disk: int, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make believe that so many bytes are free."""
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": disk})())
    monkeypatch.setattr(room, "_free_memory", lambda: memory)


@pytest.mark.parametrize(
    ("disk", "memory", "fits"), [(0, 10_000, True), (3000, 0, True), (2500, 9000, False), (0, 9000, False)]
)
def test_where_features_fit(disk: int, memory: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the memory, or a disk with a tenth to spare."""
    assert cache_size(3, SHAPES) == 3 * 2 * (4 * 64 + 8 * 16) == 2304
    has_free(disk, memory, monkeypatch)
    assert fits_somewhere(3, SHAPES) == fits


@pytest.mark.parametrize(("layer_norm", "tile"), [(True, False), (False, True)])
def test_features_that_fit_nowhere_are_computed_anew(
    layer_norm: bool, tile: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = images_of(2, (40, 16))
    kept = compute(images, tile=tile, copies=True, layer_norm=layer_norm)
    has_free(0, 0, monkeypatch)
    anew = compute(images, tile=tile, copies=True, layer_norm=layer_norm)
    assert "more than memory and disk hold: they are computed anew" in caplog.text
    assert isinstance(anew.cache, FeatureStream)
    assert (len(anew.cache), anew.cache.shapes) == (len(kept.cache), kept.cache.shapes)
    numbers = [0, 9, 3, len(kept.cache) - 1, 9]
    for found, wanted in zip(anew.cache.batch(numbers), kept.cache.batch(numbers), strict=True):
        torch.testing.assert_close(found, wanted, rtol=2**-11, atol=0)
    anew.cache.close()


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("noise_std", [0.0, 0.1])
def test_a_flow_learns_from_features_computed_anew(layer_norm: bool, noise_std: float) -> None:
    images = images_of(4)
    stream = FeatureStream(MeanColours(layer_norm=layer_norm), 4, images.__getitem__)
    learnt = TrainingFeatures(stream, [0, 2], [1, 3], noise_std=noise_std)
    weight = torch.ones(3, 3, 1, 1, requires_grad=True)
    for volumes, _ in learnt.epoch(np.random.default_rng(0), 2):
        F.conv2d(volumes[0], weight).square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_a_batch_is_a_copy(features: FeatureCache) -> None:
    first, _ = features.batch([3, 1])
    assert (first.shape, first.dtype, len(features)) == ((2, 4, 8, 8), torch.float32, 12)
    first.zero_()
    assert features.arrays[0][3].min() > 2


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_features_do_not_depend_on_the_batch(batch_size: int) -> None:
    images = images_of(7)
    cache = compute_features(MeanColours(), images, 7, batch_size=batch_size)
    for found, wanted in zip(cache.batch(range(7)), MeanColours()(image_tensor(np.stack(images))), strict=True):
        torch.testing.assert_close(found, wanted, rtol=2**-11, atol=0)  # half precision keeps 11 bits


def test_the_flow_takes_them_normalised_and_the_memory_as_they_are() -> None:
    images = images_of(3)
    for layer_norm in (True, False):
        cache = compute_features(MeanColours(layer_norm=layer_norm), images, 3)
        assert cache.layer_norm == layer_norm
        for raw, normalised in zip(cache.batch([0, 2]), cache.normalised([0, 2]), strict=True):
            wanted = F.layer_norm(raw, raw.shape[1:]) if layer_norm else raw
            torch.testing.assert_close(normalised, wanted)


def test_an_image_that_cannot_be_read_leaves_nothing_on_the_disk(folder: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield images_of(1)[0]
        raise ValueError("cannot read it")

    with pytest.raises(ValueError, match="cannot read it"):
        compute_features(MeanColours(), broken(), 2, batch_size=1, memory_share=0.0)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("layer_norm", [True, False])
def test_moments_are_of_what_the_flow_takes_of_the_images_asked_for(features: FeatureCache, layer_norm: bool) -> None:
    features.layer_norm = layer_norm
    volumes = features.normalised([2, 5, 9])
    for (mean, std), volume in zip(channel_moments(features, [2, 5, 9]), volumes, strict=True):
        cells = volume.double().numpy()
        assert mean.dtype == std.dtype == torch.float64
        np.testing.assert_allclose(mean, cells.mean((0, 2, 3)), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(std, cells.std((0, 2, 3)), rtol=1e-6)


def test_descriptions_are_means_and_deviations_of_the_second_scale() -> None:
    images = [images_of(1, size)[0] for size in ((16, 16), (40, 16), (16, 40))]
    with compute(images, tile=True) as found:
        descriptions = describe_images(found)
        tiles = found.cache.batch(found.tiles([1]))[1].double()
    assert (descriptions.shape, descriptions.dtype) == ((3, 6), np.float64)
    wanted = [*tiles.mean((0, 2, 3)), *tiles.std((0, 2, 3), correction=0)]
    np.testing.assert_allclose(descriptions[1], wanted, rtol=1e-9)


def test_image_tensors_are_in_0_to_1() -> None:
    images = np.stack(images_of(2))
    tensor = image_tensor(images)
    assert (tensor.shape, tensor.dtype) == ((2, 3, 16, 16), torch.float32)
    np.testing.assert_allclose(tensor.permute(0, 2, 3, 1), images / 255, rtol=1e-6)


# Images, tiles and copies ---------------------------------------------------------------------------------------------


def test_copies_keep_the_shape_of_the_network() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    for image, count in ((wide, 4), (wide[:, :4], 8)):
        copies = turned_copies(image)
        np.testing.assert_array_equal(copies[0], image)
        assert [copy.shape for copy in copies] == [image.shape] * count
        assert len({copy.tobytes() for copy in copies}) == count


@pytest.mark.parametrize(("size", "count"), [((16, 16), 8), ((16, 24), 4)])
def test_a_tiles_copies_follow_it(size: tuple[int, int], count: int) -> None:
    images = images_of(3, size)
    with compute(images, size=size, copies=True) as found:
        assert (found.copies, len(found.cache)) == (count, 3 * count)
        assert found.tiles([0, 2]) == [0, 2 * count]
        for i, image in enumerate(images):
            wanted = MeanColours(size)(image_tensor(np.stack(turned_copies(image))))
            for array, own in zip(found.cache.arrays, wanted, strict=True):
                np.testing.assert_allclose(array[i * count : (i + 1) * count], own, rtol=2**-11)


def test_many_images_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_COPIED_TILES", 3)
    with compute(images_of(3), copies=True) as few, compute(images_of(4), copies=True) as many:
        assert (few.copies, many.copies) == (8, 1)


def test_tiles_of_images_of_several_sizes() -> None:
    images = [images_of(1, size)[0] for size in ((16, 16), (40, 16), (16, 40))]
    with compute(images, tile=True) as found:
        assert found.sizes == [(16, 16), (40, 16), (16, 40)]
        assert [len(t) for t in found.tilings] == [1, 4, 4]
        assert found.tiles([1]) == [1, 2, 3, 4]
        assert found.tiles([2, 0]) == [5, 6, 7, 8, 0]
        # Cells of 4 pixels know nothing of their neighbours: stitched, they are those of the whole image.
        whole = found.tilings[1].stitch([found.cache.arrays[0][i, 0] for i in found.tiles([1])])
        np.testing.assert_allclose(whole, F.avg_pool2d(image_tensor(images[1][None]), 4)[0, 0], rtol=2**-11)


def test_sizes_are_the_images_own_whatever_the_network_sees() -> None:
    with compute(images_of(2, (20, 30))) as found:
        assert found.sizes == [(20, 30)] * 2
        assert [len(t) for t in found.tilings] == [1, 1]


def test_leaving_it_closes_the_cache() -> None:
    with compute(images_of(2)) as found:
        assert len(found.cache.arrays) == 2
    assert found.cache.arrays == []


def test_what_is_learnt_from_with_copies_and_without() -> None:
    with compute(images_of(10), copies=True) as found:
        held_out = [0, 2, 5, 6, 7, 9]
        assert found.others(held_out) == [1, 3, 4, 8]
        plain, augmented = (found.without(held_out, augmented) for augmented in (False, True))
        assert plain.indices == augmented.indices == [8, 24, 32, 64]
        assert plain.held_out == augmented.held_out == [0, 16, 40, 48, 56, 72]  # themselves, and none of their copies
        assert (plain.copies, plain.noise_std, augmented.copies) == (1, 0.0, 8)
        assert augmented.noise_std == pytest.approx(1.5 / math.sqrt(4))
        assert plain.passes == augmented.passes == 16  # 64 images shown: the two are compared
    with compute(images_of(4)) as found:
        assert found.without([0, 2], False) == TrainingFeatures(found.cache, [1, 3], [0, 2])


# An epoch -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_an_epoch_shows_each_image_once_in_batches_of_about_equal_size(features: FeatureCache, batch_size: int) -> None:
    learnt = TrainingFeatures(features, [0, 2, 3, 5, 7, 8, 11], [])
    shown = numbers_shown(learnt.epoch(np.random.default_rng(0), batch_size))
    assert sorted(flat(shown)) == list(learnt.indices)
    assert len(shown) == len(learnt.batch_sizes(batch_size)) == math.ceil(7 / batch_size)
    assert max(map(len, shown)) - min(map(len, shown)) <= 1
    assert max(map(len, shown)) <= batch_size


def test_the_generator_alone_decides_the_order(features: FeatureCache) -> None:
    learnt = TrainingFeatures(features, range(12), [], noise_std=0.1)
    first, again, other = (list(learnt.epoch(np.random.default_rng(seed), 4)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x[0], y[0], strict=True))
    assert numbers_shown(iter(first)) != numbers_shown(iter(other))


def test_several_passes_show_each_image_as_often(features: FeatureCache) -> None:
    learnt = TrainingFeatures(features, [1, 4, 6], [], passes=5)
    shown = numbers_shown(learnt.epoch(np.random.default_rng(0), 4))
    assert len(shown) == len(learnt.batch_sizes(4)) == 4
    assert sorted(flat(shown)) == sorted([1, 4, 6] * 5)


def test_any_copy_of_an_image_is_shown_and_no_other(features: FeatureCache) -> None:
    """Entries 4 and 8 stand for 4, 5, 6 and 8, 9, 10."""
    learnt = TrainingFeatures(features, [4, 8], [], copies=3)
    shown = [flat(numbers_shown(learnt.epoch(np.random.default_rng(seed), 2))) for seed in range(40)]
    assert {number for epoch in shown for number in epoch} == {4, 5, 6, 8, 9, 10}
    assert all(sorted(number // 4 for number in epoch) == [1, 2] for epoch in shown)


def test_noise_is_on_what_is_shown_and_measured_in_each_channels_deviations(features: FeatureCache) -> None:
    before = [array.copy() for array in features.arrays]
    learnt = TrainingFeatures(features, [3], [], noise_std=0.5, passes=200)
    ((volumes, _),) = learnt.epoch(np.random.default_rng(0), 200)
    for x, array, (_, std) in zip(volumes, features.arrays, learnt.moments, strict=True):
        noise = x - torch.from_numpy(array[3]).float()
        np.testing.assert_allclose(noise.std((0, 2, 3)), 0.5 * std, rtol=0.05)
        np.testing.assert_allclose(noise.mean((0, 2, 3)), 0, atol=0.02)
    assert all(np.array_equal(a, b) for a, b in zip(before, features.arrays, strict=True))
