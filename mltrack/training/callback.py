"""What an own class is told of a training, and how it may end it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mltrack.training.trainer import AdvancedTrainer


class Callback:
    """The base class of callbacks: a method that is not overridden does nothing. What one raises ends the training.

    `trainer.state` says where the training stands, `trainer.stop()` ends it after the step with a checkpoint.
    """

    def on_train_begin(self, trainer: AdvancedTrainer) -> None:
        """The loop begins; a resumed training stands where it goes on."""

    def on_step(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        """An optimizer step was counted. On a GPU the next one may be under way.

        Args:
            metrics: what was logged: train_loss (nats), grad_norm, learning_rate, tokens_per_second,
                system/data_wait_ms.
        """

    def on_evaluation_batch(self, trainer: AdvancedTrainer, done: int, total: int) -> None:
        """An evaluation comes to its next batch: so many of all are done."""

    def on_evaluation(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        """An evaluation is done and logged; `metrics` by their `eval_` names."""

    def on_epoch(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        """An epoch is over; `trainer.state.epoch` is still its number, 0-based."""

    def on_save(self, trainer: AdvancedTrainer) -> None:
        """A checkpoint was handed on to be written."""

    def on_train_end(self, trainer: AdvancedTrainer) -> None:
        """The loop is over and its checkpoints are written."""
