"""How one micro-batch is computed: on one device, or split over replicas.

Invariant: a strategy gives the sum of the losses and the number of targets of the whole micro-batch, however it was
split."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import nn

from mltrack.errors import ConfigurationError
from mltrack.hardware import visible_gpus
from mltrack.tasks.contract import Objective

Batch = dict[str, torch.Tensor]

RANKS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Environment variables in which launchers give the number of processes that they started."""


class Parallel(Protocol):
    """What the loop needs of a strategy."""

    rank: int
    world: int
    replicates: bool
    """Whether copies of the model are made in this process."""

    def sums(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss_sum float32, count int64), both without dimensions."""
        ...


class SingleDevice:
    """The whole micro-batch at once."""

    rank, world, replicates = 0, 1, False

    def __init__(self, task: Objective):
        self._task = task

    def sums(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Parallel.sums`."""
        return self._task.sums(model, batch)


class _ReplicaSums(nn.Module):
    """A model whose forward pass gives its sums shaped [1]: DataParallel gathers along a first dimension."""

    mixed: torch.dtype | None = None
    """The caller's autocast type, which DataParallel does not pass on to its threads."""

    def __init__(self, model: nn.Module, task: Objective):
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        kind = next(iter(batch.values())).device.type
        with torch.autocast(kind, dtype=self.mixed) if self.mixed is not None else nullcontext():
            loss_sum, count = self._task.sums(self.model, batch)
        return loss_sum.reshape(1), count.reshape(1)


class DataParallelReplicas:
    """The micro-batch split over all visible GPUs of this process.

    Args:
        task: computes the sums on each replica.
        wrap: `nn.DataParallel`, or a class that splits, runs and gathers like it.
    """

    rank, world, replicates = 0, 1, True

    def __init__(self, task: Objective, wrap: Callable[[nn.Module], Any] = nn.DataParallel):
        self._task, self._wrap = task, wrap
        self._wrapped: tuple[nn.Module, _ReplicaSums, Any] | None = None

    def sums(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Parallel.sums`."""
        if self._wrapped is None or self._wrapped[0] is not model:
            inner = _ReplicaSums(model, self._task)
            self._wrapped = (model, inner, self._wrap(inner))
        _, inner, wrapped = self._wrapped
        kind = next(iter(batch.values())).device.type
        inner.mixed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        loss_sums, counts = wrapped(batch)
        return loss_sums.sum(), counts.sum()


def choose_parallel(name: str, device: torch.device, task: Objective, *, compiled: bool = False) -> Parallel:
    """The strategy that `auto`, `none`, `dp` or `ddp` means here; a compiled model cannot be replicated.

    `auto` is one device: DataParallel has not run on a machine with several GPUs yet, so it is used only with `dp`.

    Raises:
        ConfigurationError: the strategy does not work here.
    """
    gpus = visible_gpus() if device.type == "cuda" else 0
    for variable in RANKS:
        if (number := os.environ.get(variable, "")).isdigit() and int(number) > 1:
            raise ConfigurationError(
                f"this process is one of {number} ({variable}), and each would train everything; start one, without"
                " torchrun, mpirun or srun"
            )
    if name == "ddp":
        raise ConfigurationError("parallel=ddp is not supported by this version; use auto, none or dp")
    if name == "dp" and gpus < 2:
        raise ConfigurationError(
            f"parallel=dp needs two or more visible GPUs, not {gpus}; use parallel=auto or parallel=none"
        )
    if name == "dp" and compiled:
        raise ConfigurationError(
            "parallel=dp does not work with compile=true: all replicas would compute on the first GPU; use"
            " parallel=auto, parallel=none or compile=false"
        )
    if name == "dp":
        return DataParallelReplicas(task)
    if name == "auto" and gpus > 1:
        say_one_of(gpus, compiled=compiled)
    return SingleDevice(task)


@lru_cache
def say_one_of(gpus: int, *, compiled: bool) -> None:
    """Warn once per process that the other GPUs are idle."""
    remedy = "--parallel dp --compile false" if compiled else "--parallel dp"
    warnings.warn(
        f"{gpus} GPUs are visible and one is used; {remedy} uses all of them, which has not been tried on such a"
        " machine yet",
        stacklevel=2,
    )
