"""One training on several processes, each with its share of every batch; a process alone is a group of one."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = [
    "batch_mean",
    "first_or_share",
    "from_first",
    "is_first",
    "is_started",
    "launch",
    "own_device",
    "own_range",
    "processes",
    "share",
    "sum_of_all",
    "synchronised",
    "together",
    "wait_for_all",
]

log = logging.getLogger("uflow")

T = TypeVar("T")
Items = TypeVar("Items", Sequence[Any], NDArray[Any])

STARTED_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
WATCHED = "UFLOW_WATCHED"  # set where `launch` says what became of the processes
PATIENCE = timedelta(days=1)  # the others wait while the first makes the memory, and calibrates

_rank, _processes = 0, 1  # of the group that trains together, see `together`


# Who we are -----------------------------------------------------------------------------------------------------------


def processes() -> int:
    """How many processes train together."""
    return _processes


def is_first() -> bool:
    """Whether this is the process that writes, logs and calibrates."""
    return _rank == 0


def is_started() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process among others."""
    return all(name in os.environ for name in STARTED_BY) and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def together() -> Iterator[None]:
    """Meanwhile the processes that torchrun has started train as one; a process alone does as ever.

    Raises:
        RuntimeError: another process of the group has ended.
        SystemExit: this one failed as well as another, which has said why.
    """
    global _rank, _processes
    if not is_started():
        yield
        return
    store, rank, size = next(iter(dist.rendezvous("env://")))  # type: ignore[attr-defined]  # it is in torch's docs
    store = dist.PrefixStore("uflow", store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _quiet_output():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    _rank, _processes = rank, size
    log.disabled = rank > 0
    try:
        yield
    except Exception as error:
        if _is_told(store) or (_is_of_another(error) and WATCHED in os.environ):
            raise SystemExit(1) from error
        if _is_of_another(error):
            raise RuntimeError(
                "another process of this training has ended: the same command goes on from the last whole epoch"
            ) from error
        raise
    finally:
        _rank, _processes = 0, 1
        log.disabled = False
        dist.destroy_process_group()


@contextmanager
def _quiet_output() -> Iterator[None]:
    """Drop what Gloo of torch 2.10 writes to standard output: who is connected, which is no result."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _is_told(store: Any) -> bool:
    """Whether another process has failed before; what it says is not said again."""
    with suppress(RuntimeError):  # who kept the store is gone
        return bool(store.add("failed", 1) > 1)
    return False


def _is_of_another(error: Exception) -> bool:
    """Whether it says that a process does not answer."""
    is_of_gloo = type(error) is RuntimeError and "gloo" in str(error).lower()  # it has no error of its own
    return is_of_gloo or isinstance(error, dist.DistError)


# Shares ---------------------------------------------------------------------------------------------------------------


def share(items: Items) -> Items:
    """Every n-th, for one of n processes; may be empty."""
    return items[_rank::_processes]


def first_or_share(items: Items) -> Items:
    """The same, and the first item where it would be empty: a network takes at least one."""
    own = share(items)
    return own if len(own) else items[:1]


def own_range(count: int) -> range:
    """A share of 0 to count - 1, one after another."""
    return range(_rank * count // _processes, (_rank + 1) * count // _processes)


def own_device(device: torch.device) -> torch.device:
    """Of several GPUs each process has its own.

    Raises:
        ValueError: not as many GPUs as processes of this machine, or a device that several cannot train on.
    """
    if _processes == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise ValueError(f"several processes train on 'cpu', or on 'cuda', a GPU each, not on {str(device)!r}")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise ValueError(f"a process needs a GPU of its own, and there are {torch.cuda.device_count()}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


# Together -------------------------------------------------------------------------------------------------------------


def synchronised(network: nn.Module) -> nn.Module:
    """The network, whose gradients are averaged over all processes on their way back."""
    return network if _processes == 1 else nn.parallel.DistributedDataParallel(network)


def batch_mean(values: Tensor, size: int) -> Tensor:
    """The mean over a batch of which this process has a share.

    Args:
        values: (n,) of `first_or_share` of the batch.
        size: of the whole batch.

    Returns:
        A scalar of the whole batch's mean, the same in all processes; its gradient is that of the own share, so that
        the average over all processes (`synchronised`) is the mean's.
    """
    if _processes == 1:
        return values.mean()
    counted = len(share(range(size)))  # none where the first of the batch stands in
    own = values[:counted].sum() * _processes / size
    return own + (sum_of_all(values[:counted].detach().sum()) / size - own.detach())


def sum_of_all(own: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if _processes > 1:
        own = own.clone()
        dist.all_reduce(own)
    return own


def wait_for_all() -> None:
    """Wait until every process has come here."""
    sum_of_all(torch.zeros(1))


def from_first(function: Callable[[], T]) -> T:
    """What a function gives in the first process; the others wait for it. It can be pickled, and is on the CPU."""
    if _processes == 1:
        return function()
    found = [function() if is_first() else None]
    dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
    return cast(T, found[0])


# Starting -------------------------------------------------------------------------------------------------------------


def launch(count: int, arguments: Sequence[str]) -> None:
    """Run a command of this program in several processes of this machine; they end together.

    Args:
        count: of processes.
        arguments: of the command line.

    Raises:
        SystemExit: it failed, and a process has said why; or this one got SIGTERM, and has ended the others.
        RuntimeError: a process was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("", ".agent.server.api"):  # their words are pages
        logging.getLogger(f"torch.distributed.elastic{name}").setLevel(logging.CRITICAL)
    os.environ[WATCHED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "uflow", *arguments)
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        for rank, code in codes.items():
            if code < 0 and code != -signal.SIGTERM:
                raise RuntimeError(
                    f"process {rank + 1} of {count} was ended by signal {signal.Signals(-code).name}: out of memory? "
                    "The same command goes on from the last whole epoch"
                ) from None
        raise SystemExit(error.get_first_failure()[1].exitcode) from None
