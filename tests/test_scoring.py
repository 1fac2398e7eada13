"""The anomaly map equals its formula, for arrays and tensors, any size."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from uflow.scoring import (
    Blend,
    Evidence,
    EvidenceWeights,
    anomaly_map,
    anomaly_map_from_energies,
    squash,
)


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


# All evidence: one field ----------------------------------------------------------------------------------------------


def good_evidence(count: int, seed: int = 0) -> list[Evidence]:
    """Two scales of energies over 6 and 9 channels, one of distances."""
    rng = np.random.default_rng(seed)
    return [
        Evidence(
            [rng.chisquare(6, (1, 8, 12)).astype(np.float32), rng.chisquare(9, (1, 4, 6)).astype(np.float32)],
            [(50 + 7 * rng.normal(size=(1, 8, 12))).astype(np.float32)],
        )
        for _ in range(count)
    ]


def test_evidence_is_told_apart_again() -> None:
    evidence = good_evidence(1)[0]
    doubled = evidence.with_maps([2 * x for x in evidence.maps])
    assert (len(doubled.energies), len(doubled.distances)) == (2, 1)
    np.testing.assert_array_equal(doubled.distances[0], 2 * evidence.distances[0])


def test_each_source_counts_by_how_far_it_reaches_on_good_images() -> None:
    evidence = good_evidence(41)
    weights = EvidenceWeights.from_good_images(evidence)
    assert weights.energy_means == pytest.approx((6, 9), rel=0.03)
    latents = EvidenceWeights(weights.energy_means, weights.latents)
    largest = [latents.field(Evidence(image.energies)).max() for image in evidence]
    assert np.median(largest) == pytest.approx(1, rel=1e-5)
    largest = [weights.distances[0] * image.distances[0].max() for image in evidence]
    assert np.median(largest) == pytest.approx(1, rel=1e-5)


def test_a_distance_of_two_scales_counts_twice() -> None:
    evidence = [
        Evidence(image.energies, [*image.distances, image.distances[0][:, ::2, ::2]]) for image in good_evidence(9)
    ]
    weights = EvidenceWeights.from_good_images(evidence)
    for k, weight in enumerate(weights.distances):
        assert np.median([weight * image.distances[k].max() for image in evidence]) == pytest.approx(k + 1, rel=1e-5)


def test_one_odd_image_does_not_decide_the_weights() -> None:
    evidence = good_evidence(15)
    before = EvidenceWeights.from_good_images(evidence)
    evidence[3] = evidence[3].with_maps([100 * x for x in evidence[3].maps])
    after = EvidenceWeights.from_good_images(evidence)
    for found, wanted in zip(asdict(after).values(), asdict(before).values(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0.1)


@pytest.mark.parametrize("size", [(8, 12), (20, 31)])
def test_the_map_is_the_field_squashed(size: tuple[int, int]) -> None:
    evidence, weights = good_evidence(1)[0], EvidenceWeights((5.0, 10.0), 0.5, (0.25,))
    fine, coarse, distance = (torch.from_numpy(x).double()[:, None] for x in evidence.maps)
    likely = [torch.exp(-fine / 10), F.interpolate(torch.exp(-coarse / 20), (8, 12), mode="bilinear")]
    field = -torch.log(sum(likely) / 2) + 0.25 * distance
    np.testing.assert_allclose(weights.field(evidence), field[:, 0], rtol=1e-4)
    wanted = F.interpolate(field, size, mode="bilinear")[:, 0].numpy()
    found = Blend(weights, reference=30.0).anomaly_map(evidence, size)
    assert (found.shape, found.dtype) == ((1, *size), np.float32)
    np.testing.assert_allclose(found, wanted / (wanted + 30), rtol=1e-4)


def test_with_the_means_of_standard_normals_the_field_is_the_papers_map() -> None:
    evidence = good_evidence(1)[0]
    field = EvidenceWeights((6.0, 9.0), 1.0).field(Evidence(evidence.energies))
    np.testing.assert_allclose(
        1 - np.exp(-field / 2), anomaly_map_from_energies(evidence.energies, [6, 9], (8, 12)), atol=1e-5
    )


def test_outlines_are_drawn_on_the_distances_where_there_are_any() -> None:
    evidence, weights = good_evidence(1)[0], EvidenceWeights((5.0, 10.0), 0.5, (0.25,))
    np.testing.assert_allclose(weights.drawing(evidence), 0.25 * evidence.distances[0], rtol=1e-6)
    latents = Evidence(evidence.energies)
    alone = EvidenceWeights((5.0, 10.0), 0.5)
    np.testing.assert_array_equal(alone.drawing(latents), alone.field(latents))


def test_a_typical_good_image_has_a_score_of_one_half() -> None:
    evidence = good_evidence(41)
    blend = Blend.from_good_images(evidence)
    scores = [blend.anomaly_map(image, (8, 12)).max() for image in evidence]
    assert np.median(scores) == pytest.approx(0.5, abs=1e-6)
    assert len(set(scores)) == 41


@pytest.mark.parametrize(("input_cells", "count"), [(1, 1), (1024, 2), (3136, 6), (10**9, 48)])
def test_the_score_is_of_the_mean_of_the_largest_cells(input_cells: int, count: int) -> None:
    energies = [np.random.default_rng(0).chisquare(20, (3, 8, 6)).astype(np.float32)]
    blend = Blend(EvidenceWeights((20.0,), 1.0), reference=30.0)
    evidence = Evidence(energies)
    cells = np.sort(blend.weights.field(evidence).reshape(3, 48), axis=1)
    means = cells[:, -count:].mean(axis=1)
    np.testing.assert_allclose(blend.scores(evidence, input_cells), means / (means + 30), rtol=1e-6)


def test_order_is_kept_however_large() -> None:
    values = np.array([0, 1, 1e3, 1e4, 1e5], np.float32)
    assert (np.diff(squash(values, 5.0)) > 0).all()
    assert squash(np.float32(0), 5.0) == 0
    torch.testing.assert_close(squash(torch.tensor([5.0]), 5.0), torch.tensor([0.5]))


def test_a_blend_survives_json() -> None:
    blend = Blend.from_good_images(good_evidence(5))
    assert Blend.from_dict(json.loads(json.dumps(blend.to_dict()))) == blend


def test_bad_evidence_is_one_line() -> None:
    good = good_evidence(3)
    weights = EvidenceWeights.from_good_images(good)
    with pytest.raises(ValueError, match="not finite"):
        weights.field(good[0].with_maps([x * np.nan for x in good[0].maps]))
    with pytest.raises(ValueError, match="1 distances are weighed, and the evidence has 0"):
        weights.field(Evidence(good[0].energies))
    for factor in (0, np.nan):
        with pytest.raises(ValueError, match="good images' evidence is nought, or is not finite"):
            EvidenceWeights.from_good_images([image.with_maps([factor * x for x in image.maps]) for image in good])
    for number in (0.0, -1.0, np.nan, np.inf):
        for arguments in (((1.0, number), 1.0), ((1.0,), number), ((1.0,), 1.0, (number,))):
            with pytest.raises(ValueError, match="means and weights of evidence must be positive and finite"):
                EvidenceWeights(*arguments)
        with pytest.raises(ValueError, match="the map's reference must be positive and finite"):
            Blend(weights, number)
    whole = asdict(weights)
    for damaged in (None, {}, {**whole, "more": 1}, {**whole, "latents": None}, {**whole, "distances": 3}):
        with pytest.raises(ValueError, match="the blend is damaged: it: weights"):
            Blend.from_dict({"weights": damaged, "reference": 1.0})
    for content in (None, {}, {"weights": whole}, {"weights": whole, "reference": None}):
        with pytest.raises(ValueError, match="the blend is damaged"):
            Blend.from_dict(content)
