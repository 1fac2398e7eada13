"""Train the flow: features computed once and cached, then one loop that reads from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict, cast

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from .features import FeatureCache, TrainingError, channel_moments
from .flow import Affine, UFlow
from .images import batches
from .progress import progress_bar

AUGMENTED = 400  # images: with more, copies take long, and are not needed
LEAST = 64  # images an epoch shows where augmentation is tried: a small set passes several times
GAIN = 0.02  # nats a dimension that copies must be worth: a flow that has seen them is blind to a wrong orientation
NOISE = 1.5  # over the root of the number of images: standard deviations of the features' noise


class _Selection(TypedDict, total=False):
    selection: float


class Epoch(_Selection):
    """What one epoch gave; likelihoods in nats a dimension, lower is better.

    `selection` is there only where `train` was given a `select`: what that gave, higher is better.
    """

    epoch: int
    train_nll: float
    held_out_nll: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainingSettings:
    """How the flow is trained.

    The paper's own settings are ``epochs=200, learning_rate=1e-4`` (tuned per category from 3e-5 to 6e-3),
    ``batch_size`` 8 to 30 and ``warm_up=0``, no early stop, ``augment=False, neighbours=0``; the defaults are for
    training in minutes on a CPU. `augment` and `neighbours` concern pyramids of feature maps only, not `mcait`.
    """

    epochs: int = 16
    batch_size: int = 16
    learning_rate: float = 2e-3
    warm_up: float = 0.2  # share of the steps over which the rate rises from 0, so that a good start is not shaken
    final_rate: float = 0.4  # the rate decays linearly to this share of its start
    weight_decay: float = 1e-5
    patience: int = 10  # epochs without a better held-out likelihood before training stops
    seed: int = 0
    precision: str = "auto"  # float32 | bfloat16 | auto: bfloat16 convolutions on CUDA, float32 elsewhere
    augment: bool = True  # up to `AUGMENTED` images: also train with turned copies and noise, and keep the better flow
    neighbours: int = 2000  # vectors of good images a scale, the distance to which joins the map; 0: latents alone

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.neighbours < 0:
            raise ValueError(f"neighbours is a number of vectors, 0 for none, got {self.neighbours}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up is a share of the steps, at least 0 and below 1, got {self.warm_up}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision must be 'auto', 'float32' or 'bfloat16', got {self.precision!r}")


@dataclass
class TrainingState:
    """All that is needed to go on after `epoch` epochs: weights, the best weights so far, Adam's moments, history.

    `best_epoch` 0 is the start, before any training; `best_nll` is of held-out images, in nats a dimension.
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
    features: FeatureCache,
    train_indices: Sequence[int],
    held_out_indices: Sequence[int],
    settings: TrainingSettings,
    *,
    device: torch.device | str = "cpu",
    state: TrainingState | None = None,
    on_epoch: Callable[[TrainingState], None] | None = None,
    select: Callable[[], float] | None = None,
    copies: int = 1,
    noise: float = 0.0,
    passes: int = 1,
    progress: bool | Progress = False,
) -> TrainingState:
    """Maximise the likelihood of the features of good images, and keep the epoch best on held-out good images.

    The loss is ``flow.nll`` (0.5 * sum of squared latents - log|det J|) averaged over the batch (U-Flow, JMIV 2024);
    what is shown and kept in the history is divided by the number of dimensions. A `UFlow` with `affine` starts with
    every channel of the training images at mean 0 and variance 1. The rate warms up and decays linearly, weight decay
    is Adam's. The order of images in epoch e depends on ``(seed, e)`` alone, so a run resumed from `state` goes the way
    an unbroken run would have gone.

    Args:
        flow: the flow, trained in place; holds the best weights at the end.
        features: cached features of all images.
        train_indices, held_out_indices: which images to learn from, and which good images to select by.
        state: where an interrupted run had got to, as `on_epoch` received it.
        on_epoch: called with the state after every epoch, to save it.
        select: called after every epoch, with the flow as it then is; the epoch where it gives most is kept, whatever
            the held-out images' likelihood. None selects by these.
        copies: entry i of `train_indices` stands for the features i to i + copies - 1, copies of one image: each time
            one of them is taken at random.
        noise: standard deviation of the noise on what is learnt from, in standard deviations of each channel.
        passes: how often an epoch passes over the images.
        progress: show a bar with rate and time left; a `Progress` shows it among its own.

    Raises:
        TrainingError: the loss is not finite.
    """
    device = torch.device(device)
    flow.to(device)
    dimensions = sum(array[0].size for array in features.arrays)
    optimizer = torch.optim.Adam(flow.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    low_precision = settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")

    def held_out_nll() -> float:
        flow.eval()
        with torch.inference_mode():
            chunks = batches(held_out_indices, settings.batch_size)
            total = sum(float(mean_nll(chunk)) * len(chunk) for chunk in chunks)
        return float(total / len(held_out_indices) / dimensions)

    def mean_nll(indices: Sequence[int], noise_of: np.random.Generator | None = None) -> Tensor:
        volumes = features.batch(indices, device)
        if noise_of is not None:
            for x, (_, std) in zip(volumes, moments, strict=True):
                draw = torch.from_numpy(noise_of.standard_normal(x.shape, np.float32)).to(device)
                x.addcmul_(draw, (noise * std).float().to(device).view(-1, 1, 1))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low_precision):
            latents, log_det = flow(volumes)
        return flow.nll([z.float() for z in latents], log_det).mean()

    # Reads all features once: only where something is made of them.
    moments = channel_moments(features, train_indices) if noise or (state is None and len(flow.affines)) else []
    if state is None:
        for affine, (mean, std) in zip(flow.affines, moments, strict=False):  # a flow without affine has none
            cast(Affine, affine).standardise(mean, std)
        start = _copy(flow.state_dict())
        state = TrainingState(
            epoch=0, best_epoch=0, best_nll=held_out_nll(), weights=start, best_weights=start, optimizer={}
        )
    else:
        flow.load_state_dict(state.weights)
        _restore_optimizer(optimizer, state.optimizer)

    batches_per_epoch = -(-passes * len(train_indices) // settings.batch_size)
    with progress_bar(progress) as bar:
        task = bar.add_task(
            "Training", total=settings.epochs * batches_per_epoch, completed=state.epoch * batches_per_epoch
        )
        for epoch in range(state.epoch, settings.epochs):
            started = time.perf_counter()
            if epoch - state.best_epoch >= settings.patience:
                break
            rng = np.random.default_rng((settings.seed, epoch))
            order = np.concatenate([rng.permutation(np.asarray(train_indices)) for _ in range(passes)])
            order += rng.integers(copies, size=len(order))
            flow.train()
            total = 0.0
            for number, batch in enumerate(np.array_split(order, batches_per_epoch)):
                done = (epoch + number / batches_per_epoch) / settings.epochs
                warm = min(1.0, (done + 1 / (settings.epochs * batches_per_epoch)) / max(settings.warm_up, 1e-9))
                rate = settings.learning_rate * warm * (1 - (1 - settings.final_rate) * done)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = mean_nll(batch.tolist(), rng if noise else None)
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"the loss became {loss.item()} in epoch {epoch + 1}; "
                        f"try a lower learning rate than {settings.learning_rate:g}, or precision='float32'"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item() * len(batch)
                bar.advance(task)
            result = Epoch(
                epoch=epoch + 1,
                train_nll=total / len(order) / dimensions,
                held_out_nll=held_out_nll(),
                learning_rate=rate,
                seconds=time.perf_counter() - started,
            )
            if select is None:
                better = not state.best_nll <= result["held_out_nll"]  # also where the start's is not a number
            else:
                result["selection"] = select()
                better = result["selection"] > max((e["selection"] for e in state.history), default=-math.inf)
            weights = _copy(flow.state_dict())
            state = replace(
                state,
                epoch=epoch + 1,
                best_epoch=epoch + 1 if better else state.best_epoch,
                best_nll=result["held_out_nll"] if better else state.best_nll,
                weights=weights,
                best_weights=weights if better else state.best_weights,
                optimizer=_optimizer_tensors(optimizer),
                history=[*state.history, result],
            )
            bar.update(task, description=f"Training, held-out {state.best_nll:.3f} nats/dim")
            if on_epoch is not None:
                on_epoch(state)
    flow.load_state_dict(state.best_weights)
    flow.eval()
    return state


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
