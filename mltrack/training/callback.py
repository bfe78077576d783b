"""Hooks by which a user's own class follows a training and may end it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mltrack.training.trainer import AdvancedTrainer


class Callback:
    """The base class of callbacks: methods do nothing unless overridden. An exception in one ends the training.

    `trainer.state` is the training's position; `trainer.stop()` ends it after the step with a checkpoint.
    """

    def on_train_begin(self, trainer: AdvancedTrainer) -> None:
        """The loop begins; a resumed training is at the position where it continues."""

    def on_step(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        """An optimizer step was counted. On a GPU the next one may be under way.

        Args:
            metrics: what was logged: train_loss (nats), grad_norm, learning_rate, tokens_per_second,
                system/data_wait_ms.
        """

    def on_evaluation_batch(self, trainer: AdvancedTrainer, done: int, total: int) -> None:
        """The next batch of an evaluation begins: `done` of `total` are done."""

    def on_evaluation(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        """An evaluation is done and logged; `metrics` by their `eval_` names."""

    def on_epoch(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        """An epoch is over; `trainer.state.epoch` is still its number, 0-based."""

    def on_save(self, trainer: AdvancedTrainer) -> None:
        """A checkpoint was queued to be written."""

    def on_train_end(self, trainer: AdvancedTrainer) -> None:
        """The loop is over and its checkpoints are written."""
