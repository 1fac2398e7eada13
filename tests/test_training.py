"""The training loop: it learns, selects by held-out images, resumes as if never broken, and stops clearly."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from uflow.features import FeatureCache, TrainingFeatures, channel_moments
from uflow.flow import UFlow
from uflow.training import TrainingError, TrainingSettings, TrainingState, learning_rate, train

SHAPES = [(4, 8, 8), (8, 4, 4)]
TRAIN, HELD_OUT = list(range(24)), list(range(24, 32))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def features() -> FeatureCache:
    """Correlated features of 32 images, far from standard normal."""
    rng = np.random.default_rng(0)
    cache = FeatureCache(32, SHAPES)
    for array in cache.arrays:
        mix = rng.normal(size=(array.shape[1],) * 2)
        array[:] = 3 * np.einsum("dc,nchw->ndhw", mix, rng.normal(size=array.shape)) + 1
    return cache


def make_flow() -> UFlow:
    return UFlow([s[0] for s in SHAPES], [s[1:] for s in SHAPES], steps=2, seed=1)


def learnt(
    features: FeatureCache, indices: Sequence[int] = TRAIN, held_out: Sequence[int] = HELD_OUT, **options: Any
) -> TrainingFeatures:
    return TrainingFeatures(features, indices, held_out, **options)


def test_learns_and_keeps_the_epoch_best_on_held_out_images(features: FeatureCache) -> None:
    flow = make_flow()
    state = train(flow, learnt(features), TrainingSettings(epochs=15, batch_size=8, learning_rate=0.01))
    held_out = [epoch["held_out_nll"] for epoch in state.history]
    assert held_out[-1] < held_out[0] - 1
    assert state.best_epoch == 1 + int(np.argmin(held_out))
    assert state.best_nll == min(held_out)
    with torch.inference_mode():
        latents, log_det = flow(features.batch(HELD_OUT))
        nll = float(flow.nll(latents, log_det).mean()) / (4 * 64 + 8 * 16)
    assert nll == pytest.approx(min(held_out), rel=1e-5)
    assert not flow.training


def test_rate_warms_up_and_decays_linearly(features: FeatureCache) -> None:
    settings = TrainingSettings(epochs=4, batch_size=24, learning_rate=1e-3, final_rate=0.4, warm_up=0.5)
    state = train(make_flow(), learnt(features), settings)
    assert [e["learning_rate"] for e in state.history] == pytest.approx([5e-4, 8.5e-4, 7e-4, 5.5e-4])
    rates = [learning_rate(settings, epoch, 0, steps_per_epoch=1) for epoch in range(4)]
    assert rates == pytest.approx([5e-4, 8.5e-4, 7e-4, 5.5e-4])
    paper = TrainingSettings(epochs=2, batch_size=24, learning_rate=1e-3, final_rate=0.4, warm_up=0)
    state = train(make_flow(), learnt(features), paper)
    assert [e["learning_rate"] for e in state.history] == pytest.approx([1e-3, 7e-4])


def learn_from_copies(features: FeatureCache, spoiled: int | None) -> list[float]:
    """Likelihoods of images held out, each image there four times; one copy may hold no numbers."""
    cache = FeatureCache(32, SHAPES)
    for array, original in zip(cache.arrays, features.arrays, strict=True):
        array[:] = original[:8].repeat(4, axis=0)
        if spoiled is not None:
            array[spoiled] = np.nan
    settings = TrainingSettings(epochs=4, batch_size=4, learning_rate=0.01)
    copied = learnt(cache, [0, 4, 8, 12, 16], [20, 24, 28], copies=4, passes=3)
    state = train(make_flow(), copied, settings)
    assert len(state.history) == 4
    return [epoch["held_out_nll"] for epoch in state.history]


def test_learns_from_any_copy_but_holds_out_the_images_themselves(features: FeatureCache) -> None:
    """Entries 4 i + 1 to 4 i + 3 are copies: held-out images' may be wrong, training images' may not."""
    assert learn_from_copies(features, spoiled=21) == learn_from_copies(features, spoiled=None)
    with pytest.raises(TrainingError):
        learn_from_copies(features, spoiled=1)


def test_noise_is_on_what_is_learnt_only_and_the_same_each_time(features: FeatureCache) -> None:
    settings = TrainingSettings(epochs=3, batch_size=8, learning_rate=1e-9)
    clean = train(make_flow(), learnt(features), settings).history
    noisy, again = (train(make_flow(), learnt(features, noise_std=1.0), settings).history for _ in range(2))
    assert [e["train_nll"] for e in noisy] == [e["train_nll"] for e in again]
    assert noisy[0]["train_nll"] > clean[0]["train_nll"] + 0.1
    assert noisy[0]["held_out_nll"] == pytest.approx(clean[0]["held_out_nll"], abs=1e-4)


def test_a_small_set_is_passed_several_times_an_epoch(features: FeatureCache) -> None:
    seen: list[int] = []
    batch = features.batch
    features.batch = lambda indices, device="cpu": seen.extend(indices) or batch(indices, device)
    train(make_flow(), learnt(features, TRAIN[:5], HELD_OUT[:1], passes=3), TrainingSettings(epochs=1, batch_size=4))
    assert sorted(seen) == sorted([0, 1, 2, 3, 4] * 3 + HELD_OUT[:1] * 2)


def test_training_starts_from_standardised_channels(features: FeatureCache) -> None:
    shapes = [s[0] for s in SHAPES], [s[1:] for s in SHAPES]
    flow = UFlow(*shapes, steps=2, affine=True)
    moments = channel_moments(features, TRAIN)
    for affine, volume, (mean, std) in zip(flow.affines, features.batch(TRAIN), moments, strict=True):
        affine.standardise(mean, std)
        y = affine(volume)[0]
        torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(y.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(y.shape[1]), rtol=1e-4, atol=0)
    settings = TrainingSettings(epochs=2, batch_size=8)
    state = train(UFlow(*shapes, steps=2, affine=True), learnt(features), settings)
    assert state.best_nll < train(make_flow(), learnt(features), settings).best_nll - 0.5


class Scripted:
    """A selection with an answer for each epoch, which notes how the flow was when it was asked."""

    def __init__(self, flow: UFlow, answers: list[float]) -> None:
        self.flow, self.answers = flow, answers
        self.asked: list[tuple[bool, dict[str, torch.Tensor]]] = []

    def __call__(self) -> float:
        self.asked.append((self.flow.training, {name: x.clone() for name, x in self.flow.state_dict().items()}))
        return self.answers[len(self.asked) - 1]


def test_select_decides_which_epoch_is_kept_and_changes_nothing_else(features: FeatureCache) -> None:
    settings = TrainingSettings(epochs=4, batch_size=8, learning_rate=0.01)
    plain = train(make_flow(), learnt(features), settings)
    flow, values = make_flow(), [0.7, float("nan"), 0.9, 0.9]
    select = Scripted(flow, values)
    chosen = train(flow, learnt(features), settings, select=select)
    assert (plain.best_epoch, chosen.best_epoch) == (4, 3)
    assert chosen.best_nll == chosen.history[2]["held_out_nll"] > plain.best_nll
    assert [e["selection"] for e in chosen.history] == pytest.approx(values, nan_ok=True)
    assert not any(was_training for was_training, _ in select.asked)
    assert all(torch.equal(tensor, select.asked[2][1][name]) for name, tensor in flow.state_dict().items())
    for name, tensor in plain.weights.items():
        assert torch.equal(tensor, chosen.weights[name]), name
    assert "selection" not in plain.history[0]


def test_selection_goes_on_where_it_was_broken_off(features: FeatureCache) -> None:
    settings = TrainingSettings(epochs=4, batch_size=8)
    saved: list[TrainingState] = []
    values = iter([0.9, 0.5])
    begun = TrainingSettings(epochs=2, batch_size=8)
    train(make_flow(), learnt(features), begun, on_epoch=saved.append, select=values.__next__)
    values = iter([0.8, 0.7])
    resumed = train(make_flow(), learnt(features), settings, state=saved[-1], select=values.__next__)
    assert resumed.best_epoch == 1


def test_a_start_that_training_only_spoils_is_kept(features: FeatureCache) -> None:
    flow = UFlow([s[0] for s in SHAPES], [s[1:] for s in SHAPES], steps=2, affine=True)
    settings = TrainingSettings(epochs=3, batch_size=2, learning_rate=0.5, warm_up=0)
    state = train(flow, learnt(features, TRAIN[:4]), settings)
    assert state.best_epoch == 0
    assert state.best_nll < min(e["held_out_nll"] for e in state.history)
    assert all(torch.equal(tensor, state.best_weights[name]) for name, tensor in flow.state_dict().items())
    assert not all(torch.equal(tensor, state.weights[name]) for name, tensor in flow.state_dict().items())


class KilledError(Exception):
    pass


class KillAfterTwo:
    def __init__(self) -> None:
        self.saved: list[TrainingState] = []

    def __call__(self, state: TrainingState) -> None:
        self.saved.append(state)
        if state.epoch == 2:
            raise KilledError


def test_resumed_run_equals_an_unbroken_one(features: FeatureCache) -> None:
    settings = TrainingSettings(epochs=5, batch_size=8, learning_rate=5e-3, seed=3)
    whole = train(make_flow(), learnt(features), settings)
    kill = KillAfterTwo()
    with pytest.raises(KilledError):
        train(make_flow(), learnt(features), settings, on_epoch=kill)
    resumed = train(make_flow(), learnt(features), settings, state=kill.saved[-1])
    assert resumed.epoch == 5
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, resumed.weights[name]), name
    assert [e["held_out_nll"] for e in resumed.history] == [e["held_out_nll"] for e in whole.history]


def test_stops_early_when_held_out_images_no_longer_gain(features: FeatureCache) -> None:
    for array in features.arrays:  # four images of noise: soon there is nothing left to learn but these four
        array[:] = np.random.default_rng(1).normal(size=array.shape)
    settings = TrainingSettings(epochs=200, batch_size=4, learning_rate=0.02, patience=3)
    state = train(make_flow(), learnt(features, TRAIN[:4]), settings)
    assert state.epoch == state.best_epoch + 3 < 200


def test_seed_decides_the_result(features: FeatureCache) -> None:
    runs = [
        train(make_flow(), learnt(features), TrainingSettings(epochs=2, batch_size=8, seed=seed)) for seed in (0, 0, 1)
    ]
    first, same, other = (run.history[-1]["held_out_nll"] for run in runs)
    assert first == same
    assert first != other


def test_bfloat16_learns_nearly_the_same(features: FeatureCache) -> None:
    results = {}
    for precision in ("float32", "bfloat16"):
        settings = TrainingSettings(epochs=5, batch_size=8, learning_rate=5e-3, precision=precision)
        results[precision] = train(make_flow(), learnt(features), settings).history[-1]["held_out_nll"]
    assert results["bfloat16"] != results["float32"]
    assert results["bfloat16"] == pytest.approx(results["float32"], abs=0.05)


def test_non_finite_loss_stops_with_advice(features: FeatureCache) -> None:
    features.arrays[0][5, 0, 0, 0] = np.nan
    with pytest.raises(TrainingError, match=r"became nan in epoch 1; try a lower learning rate"):
        train(make_flow(), learnt(features), TrainingSettings(epochs=1))


def test_the_last_batch_is_even_or_the_remainder(features: FeatureCache) -> None:
    sizes = {}
    for last_batch in ("even", "remainder"):
        shown = learnt(features, list(range(10)), last_batch=last_batch)
        batches = list(shown.epoch(np.random.default_rng(0), 4))
        sizes[last_batch] = [len(volumes[0]) for volumes, _ in batches]
        assert len(batches) == len(shown.batch_sizes(4)) == 3
        images = torch.cat([volumes[0] for volumes, _ in batches]).flatten(1).sum(dim=1).sort().values
        assert torch.equal(images, features.batch(range(10))[0].flatten(1).sum(dim=1).sort().values)
    assert sizes == {"even": [4, 3, 3], "remainder": [4, 4, 2]}


def test_the_published_objective_takes_the_layer_norm_for_a_part_of_the_features() -> None:
    """The same steps as nn.LayerNorm before a flow without affine part, by Adam, with the published schedule."""
    rng = np.random.default_rng(3)
    cache = FeatureCache(6, SHAPES, layer_norm=True, exact=True)
    for array in cache.arrays:
        array[:] = 3 * rng.normal(size=array.shape) + 1
    settings = TrainingSettings(
        epochs=2, batch_size=4, learning_rate=1e-2, warm_up=0, last_batch="remainder", count_affine=False
    )
    flow = UFlow([s[0] for s in SHAPES], [s[1:] for s in SHAPES], steps=2, affine=True, seed=1)
    flow.count_affine = False
    state = train(flow, learnt(cache, range(6), [], last_batch="remainder"), settings)

    norms = torch.nn.ModuleList(torch.nn.LayerNorm(shape) for shape in SHAPES)
    behind = make_flow()
    optimizer = torch.optim.Adam([*norms.parameters(), *behind.parameters()], lr=1e-2, weight_decay=1e-5)
    total, first = 0.0, True
    for epoch in range(2):
        order = np.random.default_rng((0, epoch)).permutation(range(6))
        order += np.random.default_rng(0).integers(1, size=6)
        for step, batch in enumerate((order[:4], order[4:])):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - 0.6 * (epoch + step / 2) / 2)
            latents, log_det = behind([norm(x) for norm, x in zip(norms, cache.batch(batch), strict=True)])
            loss = behind.nll(latents, log_det).mean()
            total += loss.item() * len(batch) * first
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        first = False
    assert state.history[0]["train_nll"] == pytest.approx(total / 6 / (4 * 64 + 8 * 16), rel=1e-5)
    for affine, norm in zip(flow.affines, norms, strict=True):
        torch.testing.assert_close(affine.weight, norm.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(affine.bias, norm.bias, rtol=1e-4, atol=1e-5)
        assert not torch.equal(norm.weight, torch.ones_like(norm.weight))
    for ours, theirs in zip(flow.stages.parameters(), behind.stages.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
