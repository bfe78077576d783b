"""Saves checkpoints; if one cannot be written, the training stops or goes on without it, as the user chose.

Invariant: an error of a save, in the background too, is raised or reported once, never lost.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mltrack.checkpoints import CheckpointManager
from mltrack.errors import CheckpointError
from mltrack.tracking import TrainingMetricsTracker

if TYPE_CHECKING:
    from mltrack.training.trainer import AdvancedTrainer


def whole_state(trainer: AdvancedTrainer) -> dict[str, Any]:
    """Everything that a training needs to continue from here."""
    state = trainer.state
    return {
        "model": trainer.model,
        "optimizer": trainer.optimizer,
        "scheduler": trainer.scheduler,
        "scaler": trainer.precision,
        "step": state.step,
        "extra_state": {
            "decisive": trainer.fingerprint,
            "training": state.state_dict(),
            "early_stopping": trainer.early_stopping.state_dict(),
            "order": trainer.batches.state_dict(state.epoch, state.examples),
            "plan": asdict(trainer.plan),
            "metric": trainer.metric._asdict(),
            "rng": trainer.random_state(),
        },
    }


class Saving:
    """The checkpoints of one training.

    Args:
        whole_state: gives the current arguments of `save_checkpoint` except epoch and metrics.
        on_disk_full: "stop" raises, "continue" warns and goes on without the checkpoint.
    """

    def __init__(
        self,
        manager: CheckpointManager,
        tracker: TrainingMetricsTracker,
        whole_state: Callable[[], Mapping[str, Any]],
        *,
        metric_name: str,
        on_disk_full: str,
    ):
        self._manager, self._tracker, self._whole_state = manager, tracker, whole_state
        self._metric_name, self._goes_on = metric_name, on_disk_full == "continue"

    def save(self, epoch: int, metrics: Mapping[str, float], *, required: bool = True) -> float | None:
        """Save the current state; returns the seconds that the training waited, or None if the save is left out.

        Args:
            epoch: 0-based, in which the last step was taken.
            metrics: of the evaluation after that step; empty if there was none.
            required: not left out while the previous save is still being written.

        Raises:
            CheckpointError: this save or the previous one failed; not with on_disk_full="continue".
        """
        started = time.perf_counter()
        if self._manager.leaves_out(required=required):
            return None
        if self._goes_on:
            self.finish()  # else the previous save's error would cost this one too
        state = self._whole_state()
        try:
            self._manager.save_checkpoint(
                **state, epoch=epoch, metric_value=metrics.get(self._metric_name), metrics=metrics, required=required
            )
        except CheckpointError as error:
            self._refuse_or_warn(error)
        seconds = time.perf_counter() - started
        self._tracker.log_metrics({"system/checkpoint_stall_ms": 1000 * seconds}, step=state["step"])
        return seconds

    def finish(self) -> None:
        """Wait for the save in flight.

        Raises:
            CheckpointError: it failed; not with on_disk_full="continue".
        """
        try:
            self._manager.finish()
        except CheckpointError as error:
            self._refuse_or_warn(error)

    def save_where_it_stands(self, epoch: int, step: int) -> None:
        """Write a checkpoint of the last whole step, unless there is one, and wait until it is on the disk."""
        self.finish()
        held = self._manager.get_latest_checkpoint_info()
        if held is None or held.step != step:
            self.save(epoch, {})
            self.finish()

    def _refuse_or_warn(self, error: CheckpointError) -> None:
        if not self._goes_on:
            raise error
        warnings.warn(f"{error}; going on without this checkpoint, as on_disk_full=continue says", stacklevel=3)
