"""Where a training is: plain numbers, all of them in every checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class TrainingState:
    """The position of a training and what it has seen so far."""

    epoch: int = 0
    """0-based epoch that is running; the number of epochs when all are done."""
    position: int = 0
    """Optimizer steps taken in this epoch."""
    step: int = 0
    """Optimizer steps taken altogether."""
    closed_step: int = 0
    """Last step after which everything that was due (evaluation, epoch's end) has been done."""
    tokens: int = 0
    """Real tokens trained on, without padding."""
    seconds: float = 0.0
    """Time in the loop."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    micro_batch_size: int | None = None
    """Most examples that fit into memory at once, once it ran out; None: a whole micro-batch."""
    stopped_early: bool = False
    best_metric: float | None = None
    best_epoch: int | None = None
    best_step: int | None = None
    epoch_loss_sum: float = 0.0
    """Sum of the losses of this epoch's targets."""
    epoch_targets: int = 0
    epoch_losses: list[float] = field(default_factory=list)
    """Mean loss of each step of this epoch."""
    epoch_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry an evaluation: epoch, step, train_loss, eval_*."""

    def count_step(self, loss_sum: float, targets: int, tokens: int, seconds: float) -> None:
        """One optimizer step was taken."""
        self.skipped_in_a_row = 0
        self.step += 1
        self.position += 1
        self.tokens += tokens
        self.seconds += seconds
        self.epoch_seconds += seconds
        self.epoch_loss_sum += loss_sum
        self.epoch_targets += targets
        self.epoch_losses.append(loss_sum / targets)

    def count_skipped(self, tokens: int, seconds: float) -> None:
        """One optimizer step was left out; its data is behind us all the same."""
        self.step += 1
        self.position += 1
        self.tokens += tokens
        self.seconds += seconds
        self.epoch_seconds += seconds
        self.skipped_steps += 1
        self.skipped_in_a_row += 1

    def offer_best(self, value: float, mode: str) -> bool:
        """Take the metric of an evaluation where it is the best so far; a NaN never is."""
        held = self.best_metric
        if not math.isfinite(value) or (held is not None and (value >= held if mode == "min" else value <= held)):
            return False
        self.best_metric, self.best_epoch, self.best_step = value, self.epoch, self.step
        return True

    def epoch_aggregates(self) -> dict[str, float]:
        """`train_loss` weighted by targets, and its spread over the steps."""
        losses = self.epoch_losses
        if not losses:
            return {"seconds": self.epoch_seconds}
        mean = math.fsum(losses) / len(losses)
        return {
            "train_loss": self.epoch_loss_sum / self.epoch_targets,
            "train_loss_std": math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / len(losses)),
            "train_loss_min": min(losses),
            "train_loss_max": max(losses),
            "seconds": self.epoch_seconds,
        }

    def next_epoch(self) -> None:
        """The running epoch is over."""
        self.epoch += 1
        self.position = 0
        self.epoch_loss_sum, self.epoch_targets, self.epoch_losses, self.epoch_seconds = 0.0, 0, [], 0.0

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        for f in fields(self):
            if f.name in state:  # an older checkpoint has fewer
                setattr(self, f.name, state[f.name])
