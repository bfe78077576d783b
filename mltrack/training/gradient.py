"""The gradient of one optimizer step, however its micro-batches are split.

Invariant: it is the gradient of the group's summed losses over its number of targets. A micro-batch that does not fit
into memory is halved, and the step starts over with the same random numbers; the size that fits is remembered."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mltrack.checkpoints.state import restore_rng
from mltrack.data.batches import MicroBatch
from mltrack.errors import TrainingError, text_of
from mltrack.hardware.memory import free_memory
from mltrack.hardware.precision import Precision
from mltrack.shortage import is_out_of_memory
from mltrack.training.parallel import Parallel

NO_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""In torch's error if cuBLAS was used before it was set up to repeat its results, or with another value."""
NOT_DETERMINISTIC = "does not have a deterministic implementation"
"""In torch's error for an operation that it refuses."""


class HostCopy:
    """Numbers that a device has computed, read when they are needed.

    Args:
        values: float32 [N]. From a GPU the copy starts at once and blocks nothing.
    """

    def __init__(self, values: torch.Tensor):
        self._host, self._copied = values, None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record()

    def wait(self) -> list[float]:
        """The numbers, once the device has computed them."""
        if self._copied is not None:
            self._copied.synchronize()
        return [float(value) for value in self._host.tolist()]


@dataclass(frozen=True)
class StepGradient:
    """The clipped gradient that the parameters' `.grad` hold now."""

    group: Sequence[MicroBatch]
    targets: int
    """Target tokens or examples of the group."""
    tokens: int
    """Real tokens of the group."""
    measured: HostCopy
    """Loss sum of each micro-batch, then the norm of the whole gradient before it was clipped."""
    not_finite: torch.Tensor
    """float32, 0-dim, on the device: 1 where a loss or the norm is not finite, else 0."""

    @property
    def examples(self) -> int:
        """Examples of the group."""
        return sum(len(batch.records) for batch in self.group)


@dataclass(frozen=True)
class Step:
    """A step that was taken and whose outcome has not been read yet."""

    gradient: StepGradient
    learning_rate: float
    data_wait_ms: float


class GradientAccumulator:
    """Computes the gradient of a step.

    Args:
        micro_batch_size: most rows (examples, unless packed) that are computed at once; None: all of a micro-batch.
        check_stop: called before each part; an exception ends the step.
        on_halved: called with the new size after memory ran out.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        parallel: Parallel,
        precision: Precision,
        *,
        max_grad_norm: float,
        check_stop: Callable[[], None],
        location: Callable[[int], str],
        on_halved: Callable[[int], None],
    ):
        self.model, self.optimizer, self.parallel, self.precision = model, optimizer, parallel, precision
        self.micro_batch_size: int | None = None
        self._max_grad_norm = max_grad_norm
        self._check_stop, self._location, self._on_halved = check_stop, location, on_halved
        self._at: MicroBatch | None = None

    def accumulate(self, group: Sequence[MicroBatch], rng: Mapping[str, Any]) -> StepGradient:
        """The gradient of a group of micro-batches.

        Args:
            rng: the current state of the random number generators, for starting over.

        Raises:
            TrainingError: a single record does not fit into memory, or an operation cannot be repeated although
                `deterministic` is on.
        """
        while True:
            problem = ""
            try:
                return self._computed(group)
            except Exception as error:
                text = text_of(error)
                if NO_WORKSPACE in text:
                    raise TrainingError(
                        f"deterministic: {NO_WORKSPACE} was {os.environ.get(NO_WORKSPACE, 'not set')} when the GPU was"
                        f" first used; set {NO_WORKSPACE}=:4096:8 before the process starts, or use deterministic=false"
                    ) from error
                if NOT_DETERMINISTIC in text:
                    operation = (
                        text.split(NOT_DETERMINISTIC)[0].strip().splitlines()[-1]
                    )  # a replica's error begins with its location
                    raise TrainingError(
                        f"deterministic: {operation} cannot be repeated exactly on {self.precision.device}; use"
                        " deterministic=false"
                    ) from error
                if not is_out_of_memory(error):
                    raise
                said = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
                problem = said[-1 if " in replica " in text else 0]
            # not inside the handler: the traceback would keep the tensors alive
            self._halve(problem)
            restore_rng(rng)

    def _computed(self, group: Sequence[MicroBatch]) -> StepGradient:
        targets = sum(batch.targets for batch in group)
        losses = [self._loss_sum(batch, targets) for batch in group]
        self._at = None
        loss_sums = torch.stack(losses)
        self.precision.unscale(self.optimizer, loss_sums)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        measured = torch.cat([loss_sums, norm.float().reshape(1)])
        not_finite = 1.0 - torch.isfinite(measured).all().float()
        return StepGradient(group, targets, sum(batch.tokens for batch in group), HostCopy(measured), not_finite)

    def _loss_sum(self, batch: MicroBatch, targets: int) -> torch.Tensor:
        """Add the gradient of one micro-batch and return its loss sum, float32, 0-dim."""
        sums = []
        for part in batch.split(self.micro_batch_size):
            self._check_stop()
            self._at = part
            with self.precision.autocast():
                part_sum, _ = self.parallel.sums(self.model, part.to(self.precision.device))
            self.precision.backward(part_sum / targets)
            sums.append(part_sum.detach().float())
        return torch.stack(sums).sum()

    def _halve(self, problem: str) -> None:
        part = self._at
        self.optimizer.zero_grad(set_to_none=True)
        free_memory(self.precision.device)
        if part is None or part.rows == 1:
            single = (
                "a single record"
                if part is None or len(part.records) == 1
                else f"a row of {len(part.records)} packed records"
            )
            what = (
                "the gradient's norm"
                if part is None
                else f"{self._location(part.records[0])}: {single} of {part.tokens:,} tokens"
            )
            smaller = "packing=false, " if part is not None and len(part.records) > 1 else ""
            raise TrainingError(
                f"{what} does not fit into the memory of {self.precision.device}: {problem}; use {smaller}a"
                " smaller max_length, gradient_checkpointing=true, a smaller model, or a device with more memory"
            )
        self.micro_batch_size = (part.rows + 1) // 2
        what = "examples" if part.rows == len(part.records) else "packed rows"
        warnings.warn(
            f"out of memory with {part.rows} {what} at once; the step starts again with {self.micro_batch_size}: the"
            " same sum, to rounding",
            stacklevel=2,
        )
        self._on_halved(self.micro_batch_size)
