"""The position of a training: plain numbers, all of them in every checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class TrainingState:
    """The position of a training and its sums so far."""

    epoch: int = 0
    """0-based epoch that is running; the number of epochs when all are done."""
    examples: int = 0
    """Examples of this epoch taken so far."""
    step: int = 0
    """Optimizer steps taken in all."""
    closed_step: int = 0
    """Last step after which everything due (evaluation, epoch's end) was done."""
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
    epoch_steps: int = 0
    """Optimizer steps of this epoch that were not skipped; of their mean losses:"""
    epoch_loss_mean: float = 0.0
    epoch_loss_squares: float = 0.0
    """Sum of the squared distances from the mean."""
    epoch_loss_min: float | None = None
    epoch_loss_max: float | None = None
    epoch_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry per evaluation: epoch, step, train_loss, eval_*."""

    def count_step(self, loss_sum: float, targets: int, examples: int, tokens: int, seconds: float) -> None:
        """One optimizer step was taken."""
        self._count(examples, tokens, seconds)
        self.skipped_in_a_row = 0
        self.epoch_loss_sum += loss_sum
        self.epoch_targets += targets
        self._count_loss(loss_sum / targets)

    def count_skipped(self, examples: int, tokens: int, seconds: float) -> None:
        """One optimizer step was left out; its data counts as taken all the same."""
        self._count(examples, tokens, seconds)
        self.skipped_steps += 1
        self.skipped_in_a_row += 1

    def _count(self, examples: int, tokens: int, seconds: float) -> None:
        self.step += 1
        self.examples += examples
        self.tokens += tokens
        self.seconds += seconds
        self.epoch_seconds += seconds

    def _count_loss(self, loss: float) -> None:
        """Welford's update of mean and squares."""
        self.epoch_steps += 1
        distance = loss - self.epoch_loss_mean
        self.epoch_loss_mean += distance / self.epoch_steps
        self.epoch_loss_squares += distance * (loss - self.epoch_loss_mean)
        self.epoch_loss_min = loss if self.epoch_loss_min is None else min(loss, self.epoch_loss_min)
        self.epoch_loss_max = loss if self.epoch_loss_max is None else max(loss, self.epoch_loss_max)

    def offer_best(self, value: float, mode: str) -> bool:
        """Take the metric of an evaluation if it is the best so far; a NaN never is."""
        held = self.best_metric
        if not math.isfinite(value) or (held is not None and (value >= held if mode == "min" else value <= held)):
            return False
        self.best_metric, self.best_epoch, self.best_step = value, self.epoch, self.step
        return True

    def epoch_aggregates(self) -> dict[str, float]:
        """`train_loss` weighted by targets, and its spread over the steps."""
        if self.epoch_loss_min is None or self.epoch_loss_max is None:
            return {"seconds": self.epoch_seconds}
        return {
            "train_loss": self.epoch_loss_sum / self.epoch_targets,
            "train_loss_std": math.sqrt(self.epoch_loss_squares / self.epoch_steps),
            "train_loss_min": self.epoch_loss_min,
            "train_loss_max": self.epoch_loss_max,
            "seconds": self.epoch_seconds,
        }

    def next_epoch(self) -> None:
        """The running epoch is over."""
        self.epoch += 1
        for f in fields(self):
            if f.name == "examples" or f.name.startswith("epoch_"):
                setattr(self, f.name, f.default)

    def reset_best(self) -> None:
        """No evaluation so far counts: the next one is the best."""
        self.best_metric = self.best_epoch = self.best_step = None
        self.stopped_early = False

    def results(self) -> dict[str, Any]:
        """The results so far."""
        return {
            "best_metric": self.best_metric,
            "best_epoch": self.best_epoch,
            "best_step": self.best_step,
            "epochs_run": self.epoch + (1 if self.examples else 0),
            "steps_run": self.step,
            "training_time": self.seconds,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
            "stopped_early": self.stopped_early,
            "history": self.history,
        }

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; for an older one, which counts steps, the caller sets `examples`."""
        for f in fields(self):
            if f.name in state:  # an older checkpoint has fewer
                setattr(self, f.name, state[f.name])
        if "epoch_losses" in state:  # mltrack 0.1 kept them all
            for loss in state["epoch_losses"]:
                self._count_loss(loss)
