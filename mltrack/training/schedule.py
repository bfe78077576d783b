"""When things happen and how high the learning rate is, in optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mltrack.config import TrainingConfig


@dataclass(frozen=True)
class Every:
    """Every so many optimizer steps, or at each epoch's end."""

    interval: int | str
    """A number of steps, or the word epoch."""

    def due(self, step: int, epoch_over: bool) -> bool:
        """True if it is due after this step (the first is 1)."""
        if isinstance(self.interval, int):
            return step > 0 and step % self.interval == 0
        return epoch_over


@dataclass(frozen=True)
class Plan:
    """How many optimizer steps a training has."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    as_in_0_1: bool = False
    """A run that mltrack 0.1 began: the rate of its first step is 0, and `max_steps` cannot go beyond `epochs`."""

    @classmethod
    def of(
        cls, config: TrainingConfig, num_batches: int, *, step: int = 0, whole_epochs: int = 0, as_in_0_1: bool = False
    ) -> Plan:
        """The plan for this many micro-batches per epoch; an epoch's last group may be smaller and is a step too.

        Args:
            step: of a resumed run, after `whole_epochs`, whose number of steps may have been different.
        """
        steps_per_epoch = math.ceil(num_batches / config.gradient_accumulation_steps)
        total = step + (config.num_epochs - whole_epochs) * steps_per_epoch
        if config.max_steps is not None:
            total = min(total, config.max_steps) if as_in_0_1 else config.max_steps
        warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil(config.warmup_ratio * total)
        return cls(steps_per_epoch, total, warmup, as_in_0_1)


def linear_warmup_decay(optimizer: torch.optim.Optimizer, plan: Plan) -> LambdaLR:
    """Rises to the peak in `warmup_steps` equal steps, reached at the last one, then falls linearly to 0 at
    `total_steps`.
    """
    return LambdaLR(optimizer, _factor(plan))


def _factor(plan: Plan) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < plan.warmup_steps:
            return (step if plan.as_in_0_1 else step + 1) / plan.warmup_steps
        return max(0.0, (plan.total_steps - step) / max(1, plan.total_steps - plan.warmup_steps))

    return factor


def adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and embeddings, never biases and norms (parameters of fewer than two dimensions)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    fused = config.effective_speedups.fused_adamw and all(
        parameter.device.type in ("cpu", "cuda") for parameter in parameters
    )
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, fused=fused or None
    )


def apply_options(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, config: TrainingConfig, plan: Plan) -> None:
    """Apply the current configuration and plan to a loaded optimizer and schedule; equal ones change no bit."""
    scheduler.lr_lambdas = [_factor(plan) for _ in scheduler.lr_lambdas]
    scheduler.base_lrs = [config.learning_rate for _ in scheduler.base_lrs]
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["initial_lr"] = config.learning_rate
        group["lr"] = config.learning_rate * factor(scheduler.last_epoch)
        if group["weight_decay"]:
            group["weight_decay"] = config.weight_decay
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def describe_change(then: Plan | None, now: Plan, step: int, rates: tuple[float, float]) -> str | None:
    """One line if the schedule of a resumed run has changed.

    Args:
        then: of the checkpoint; None if it has none (mltrack 0.1).
        step: optimizer steps taken so far.
        rates: learning rate of the next step, before and now.
    """
    if then is None:
        changed = rates[0] != rates[1]
    else:
        changed = (then.total_steps, then.warmup_steps) != (now.total_steps, now.warmup_steps)
    if step >= now.total_steps or not changed:
        return None
    if then is None:
        what = f"ends at {now.total_steps:,} optimizer steps"
    elif then.total_steps == now.total_steps:
        what = f"has {now.warmup_steps:,} steps of warmup instead of {then.warmup_steps:,}"
    else:
        verb = "stretched" if now.total_steps > then.total_steps else "shortened"
        what = f"is {verb} from {then.total_steps:,} to {now.total_steps:,} optimizer steps"
    before, after = (f"{rate:.4g}" for rate in rates)
    becomes = f"stays {after}" if before == after else f"changes from {before} to {after}"
    return f"the schedule {what}: the learning rate of step {step + 1:,} {becomes}"
