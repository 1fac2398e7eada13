"""Train the flow: one loop that reads from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypedDict

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from . import distributed
from .features import TrainingError, TrainingFeatures
from .flow import UFlow
from .images import batches
from .progress import progress_bar
from .recipe import TrainingSettings

__all__ = [
    "Epoch",
    "OnEpoch",
    "TrainingError",
    "TrainingSettings",
    "TrainingState",
    "Watcher",
    "learning_rate",
    "train",
]


class _Selection(TypedDict, total=False):
    selection: float


class Epoch(_Selection):
    """What one epoch gave; likelihoods in nats a dimension, lower is better.

    `selection` is there only where `train` was given a `select`: what that gave, higher is better.
    """

    epoch: int
    train_nll: float
    held_out_nll: float | None  # None where no images are held out
    learning_rate: float
    seconds: float


OnEpoch = Callable[[str, Epoch], None]  # called with which flow it is, and what the epoch gave


@dataclass(frozen=True)
class Watcher:
    """Who looks on while flows are trained.

    Attributes:
        progress: show progress bars; a `Progress` shows them among its own.
        on_epoch: called after each epoch, once its state is saved, see `Detector.fit`.
    """

    progress: bool | Progress = True
    on_epoch: OnEpoch | None = None


@dataclass
class TrainingState:
    """All that is needed to go on after `epoch` epochs: weights, the best weights so far, Adam's moments, history.

    `best_epoch` 0 is the start, before any training; `best_nll` is of held-out images, in nats a dimension, or of those
    learnt from where none are held out.
    """

    epoch: int
    best_epoch: int
    best_nll: float
    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    history: list[Epoch] = field(default_factory=list)


def train(
    flow: UFlow,
    features: TrainingFeatures,
    settings: TrainingSettings,
    *,
    state: TrainingState | None = None,
    on_epoch: Callable[[TrainingState], None] | None = None,
    select: Callable[[], float] | None = None,
    progress: bool | Progress = False,
) -> TrainingState:
    """Maximise the likelihood of the features of good images, and keep the epoch best on held-out good images.

    Where none are held out, the last epoch is kept, unless `select` chooses.

    The loss is ``flow.nll`` (0.5 * sum of squared latents - log|det J|) averaged over the batch (U-Flow, JMIV 2024);
    what is shown and kept in the history is divided by the number of dimensions. The order of images in epoch e depends
    on ``(seed, e)`` alone, so a run resumed from `state` goes the way an unbroken run would have gone.

    Args:
        flow: the flow, trained in place, on the device that it is on; holds the best weights at the end.
        features: what to learn from, and what to select the epoch by.
        settings: how to train.
        state: where an interrupted run had got to, as `on_epoch` received it.
        on_epoch: called with the state after every epoch, to save it.
        select: called after every epoch, with the flow as it then is; the epoch where it gives most is kept, whatever
            the held-out images' likelihood. None selects by these.
        progress: show a bar with rate and time left; a `Progress` shows it among its own.

    Raises:
        TrainingError: the loss is not finite.
    """
    device = next(flow.parameters()).device
    likelihood = _Likelihood(flow, features, settings, device)
    # Adam, its weight decay included: the paper's optimiser.
    optimizer = torch.optim.Adam(flow.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    if state is None:
        # Features of every scale start at mean 0 and variance 1: the first steps need not find their size.
        if len(flow.affines) and settings.count_affine:
            flow.standardise(features.moments)
        # The start is a candidate too: where no epoch is better on held-out images, nothing was learnt.
        start = _copy(flow.state_dict())
        nll = likelihood.of_held_out()
        state = TrainingState(0, 0, math.inf if nll is None else nll, start, best_weights=start, optimizer={})
    else:
        # Weights, Adam's moments and the number of the epoch are all that an epoch depends on.
        flow.load_state_dict(state.weights)
        _restore_optimizer(optimizer, state.optimizer)

    sizes = features.batch_sizes(settings.batch_size)
    with progress_bar(progress) as bar:
        task = bar.add_task("Training", total=settings.epochs * len(sizes), completed=state.epoch * len(sizes))
        while state.epoch < settings.epochs and state.epoch - state.best_epoch < settings.patience:
            started = time.perf_counter()
            # The generator is the epoch's own: resumed or not, it shows the same images in the same order.
            rng = np.random.default_rng((settings.seed, state.epoch))
            flow.train()
            total, images = 0.0, 0
            for step, batch in enumerate(features.epoch(rng, settings.batch_size, device)):
                # The rate first: it depends on the step, not on what the step finds.
                rate = learning_rate(settings, state.epoch, step, len(sizes))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                # Of several processes each has a share of the batch: the loss is the whole batch's, in all of them.
                loss = distributed.batch_mean(likelihood.nll(*batch), sizes[step])
                # Before the step: an infinite loss would spoil the weights, and Adam's moments for good.
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"the loss became {loss.item()} in epoch {state.epoch + 1}; "
                        f"try a lower learning rate than {settings.learning_rate:g}, or precision='float32'"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total, images = total + loss.item() * sizes[step], images + sizes[step]
                bar.advance(task)
            # Held-out images last: they judge the flow as the epoch leaves it.
            result = Epoch(
                epoch=state.epoch + 1,
                train_nll=total / images / likelihood.dimensions,
                held_out_nll=likelihood.of_held_out(),
                learning_rate=rate,
                seconds=time.perf_counter() - started,
            )
            # All processes go by the first one's figures: they must stop together.
            result = distributed.from_first(partial(_with_selection, result, select))
            state = _next_state(state, result, flow, optimizer)
            bar.update(task, description=f"Training, {state.best_nll:.3f} nats/dim")
            if on_epoch is not None:
                on_epoch(state)
    # The best epoch, not the last: held-out images say when a flow begins to learn its images by heart.
    flow.load_state_dict(state.best_weights)
    flow.eval()
    return state


def learning_rate(settings: TrainingSettings, epoch: int, step: int, steps_per_epoch: int) -> float:
    """The rate of a step: it rises to `settings.learning_rate` over the warm-up, and decays linearly all along.

    Args:
        settings: the training's.
        epoch, step: both counted from 0, the step within its epoch.
        steps_per_epoch: how many steps an epoch has.

    >>> settings = TrainingSettings(epochs=2, learning_rate=1.0, warm_up=0.5, final_rate=0.4)
    >>> [round(learning_rate(settings, epoch, step, 2), 2) for epoch in (0, 1) for step in (0, 1)]
    [0.5, 0.85, 0.7, 0.55]
    """
    done = (epoch + step / steps_per_epoch) / settings.epochs
    one_step = 1 / (settings.epochs * steps_per_epoch)
    warm = min(1.0, (done + one_step) / max(settings.warm_up, 1e-9))
    return settings.learning_rate * warm * (1 - (1 - settings.final_rate) * done)


class _Likelihood:
    """The flow's negative log-likelihood of features, in the precision that the settings ask for."""

    def __init__(
        self, flow: UFlow, features: TrainingFeatures, settings: TrainingSettings, device: torch.device
    ) -> None:
        self.flow, self.features, self.device = flow, features, device
        self.synchronised = distributed.synchronised(flow)
        self.batch_size = settings.batch_size
        self.dimensions = features.cache.dimensions(features.indices)
        wants_bfloat16 = settings.precision == "bfloat16"
        self.low_precision = wants_bfloat16 or (settings.precision == "auto" and device.type == "cuda")

    def nll(self, volumes: list[Tensor], inside: list[Tensor] | None) -> Tensor:
        """Of each image, in nats, of the cells that count; to learn by."""
        return self._nll(self.synchronised, volumes, inside)

    def _nll(self, network: nn.Module, volumes: list[Tensor], inside: list[Tensor] | None) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
            latents, log_det = network(volumes, inside)
        return self.flow.nll([z.float() for z in latents], log_det, inside)

    @torch.inference_mode()
    def of_held_out(self) -> float | None:
        """In nats a dimension, averaged over images that are not learnt from; None where there are none."""
        self.flow.eval()
        indices, total = self.features.held_out, 0.0
        if not len(indices):
            return None
        cache = self.features.cache
        for chunk in batches(distributed.share(indices), self.batch_size):
            volumes, inside = cache.normalised(chunk, self.device), cache.cells_inside(chunk, self.device)
            total += float(self._nll(self.flow, volumes, inside).mean()) * len(chunk)
        total = distributed.sum_of_all(torch.tensor(total, dtype=torch.float64)).item()
        return float(total / len(indices) / cache.dimensions(indices))


def _with_selection(result: Epoch, select: Callable[[], float] | None) -> Epoch:
    """What an epoch gave, and what it is selected by if not by held-out images."""
    return result if select is None else {**result, "selection": select()}


def _next_state(state: TrainingState, result: Epoch, flow: UFlow, optimizer: torch.optim.Optimizer) -> TrainingState:
    """The state after an epoch, whose weights are the best so far or not."""
    if "selection" in result:
        best = max((epoch["selection"] for epoch in state.history), default=-math.inf)
        better = result["selection"] > best
    elif result["held_out_nll"] is not None:
        better = not state.best_nll <= result["held_out_nll"]  # also where the start's is not a number
    else:
        better = True  # nothing says which epoch is best: the last is kept
    nll = result["train_nll"] if result["held_out_nll"] is None else result["held_out_nll"]
    weights = _copy(flow.state_dict())
    return replace(
        state,
        epoch=result["epoch"],
        best_epoch=result["epoch"] if better else state.best_epoch,
        best_nll=nll if better else state.best_nll,
        weights=weights,
        best_weights=weights if better else state.best_weights,
        optimizer=_optimizer_tensors(optimizer),
        history=[*state.history, result],
    )


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(x).detach().cpu().clone() for i, s in state.items() for name, x in s.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    whole = optimizer.state_dict()
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        whole["state"].setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(whole)
