"""Which checkpoints a run keeps; saving, finding and loading them.

Invariant: the `max_checkpoints` best, the latest and the milestones stay; only checkpoints of this run are ever deleted.

    manager = CheckpointManager("checkpoints", max_checkpoints=3, metric_name="eval_loss", mode="min")
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=0, step=100, metric_value=0.35)
    checkpoint = manager.load_best_checkpoint()
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from mltrack.checkpoints import directory, state
from mltrack.checkpoints.metadata import CheckpointMetadata, best_first, latest, reasons_to_keep
from mltrack.errors import CheckpointError, ConfigurationError
from mltrack.journal.records import now_ms
from mltrack.store import active_run
from mltrack.tasks.metrics import metric_mode
from mltrack.tracking import TrainingMetricsTracker


class Stateful(Protocol):
    """Whatever can be resumed."""

    def state_dict(self) -> dict[str, Any]: ...


OnChange = Callable[[Sequence[Mapping[str, Any]], int | None], None]


class CheckpointManager:
    """Saves checkpoints of one run into one folder.

    Args:
        checkpoint_dir: made where it does not exist.
        max_checkpoints: how many of the best stay, beside the latest.
        metric_name: what ranks them.
        mode: "min" or "max"; default: told by the metric's name.
        keep_every: each checkpoint whose step is a multiple of it stays too.
        run_id: an MLflow run that gets the kept checkpoints. Without it the run that is active in this process, if mlflow is
            imported here already and `on_change` is not given.
        tracking_uri: of that run.
        on_change: called with what stays after each save, instead of an MLflow connection of its own.
        read_only: another run's folder; nothing in it is moved or removed.
        tokenizer: saved with every checkpoint, so that each is a loadable model folder.

    Raises:
        ConfigurationError: a mode or a number that is not accepted.
    """

    def __init__(
        self,
        checkpoint_dir: str | Path,
        max_checkpoints: int = 3,
        metric_name: str = "eval_loss",
        mode: str | None = None,
        *,
        keep_every: int | None = None,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        on_change: OnChange | None = None,
        tokenizer: Any = None,
        read_only: bool = False,
    ):
        if mode not in (None, "min", "max"):
            raise ConfigurationError(f"mode: seen {mode!r}; accepted: min, max")
        if max_checkpoints < 1:
            raise ConfigurationError(f"max_checkpoints: seen {max_checkpoints}; accepted: a whole number >= 1")
        self.checkpoint_dir = Path(checkpoint_dir).absolute()
        self.max_checkpoints, self.metric_name, self.keep_every = max_checkpoints, metric_name, keep_every
        self.mode = mode or metric_mode(metric_name)
        self.run_id = run_id
        self.tokenizer = tokenizer
        self._read_only = read_only
        if not read_only:
            self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
            directory.remove_leftovers(self.checkpoint_dir)
        self._listeners: list[OnChange] = [on_change] if on_change is not None else []
        self._tracker: TrainingMetricsTracker | None = None
        if on_change is None and (run_id is not None or active_run() is not None):
            self._tracker = TrainingMetricsTracker(self.checkpoint_dir, run_id=run_id, tracking_uri=tracking_uri)
            self._listeners.append(self._tracker.log_checkpoints)

    def save_checkpoint(
        self,
        *,
        model: nn.Module,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        scaler: Stateful | None = None,
        epoch: int,
        step: int,
        metric_value: float | None = None,
        metrics: Mapping[str, float] | None = None,
        extra_state: Mapping[str, Any] | None = None,
    ) -> CheckpointMetadata:
        """Write a checkpoint, then let go of those that no longer stay.

        Args:
            model: its unwrapped weights are written; with a Hugging Face model its configuration too.
            epoch: 0-based.
            step: optimizer steps taken.
            metric_value: of `metric_name`; None or NaN is never the best.
            metrics: everything else that was evaluated at this moment.
            extra_state: JSON values and tensors.

        Raises:
            CheckpointError: a value that cannot be saved (named by its key), or a disk that is full.
        """
        tensors, aliases = state.split_model(model)
        metadata = CheckpointMetadata(
            epoch=int(epoch),
            step=int(step),
            metric_value=None if metric_value is None else float(metric_value),
            metric_name=self.metric_name,
            path=self.checkpoint_dir,
            run_id=self.run_id,
            created_ms=now_ms(),
            metrics=dict(metrics or {}),
            aliases=aliases,
        )
        state_tensors: state.Tensors = {}
        others = {
            "scheduler": scheduler.state_dict() if scheduler is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "extra_state": dict(extra_state or {}),
        }
        content = {name: state.flatten(value, name, state_tensors) for name, value in others.items()}
        optimizer_content, optimizer_tensors = state.split_optimizer(optimizer.state_dict()) if optimizer is not None else ({}, {})

        def write(folder: Path) -> None:
            directory.write_tensors(folder / directory.MODEL, tensors)
            self._write_model_files(state.unwrapped(model), folder)
            if optimizer is not None:
                directory.write_tensors(folder / directory.OPTIMIZER, optimizer_tensors)
                (folder / directory.OPTIMIZER_JSON).write_text(json.dumps(optimizer_content), encoding="utf-8")
            if state_tensors:
                directory.write_tensors(folder / directory.STATE_TENSORS, state_tensors)
            (folder / directory.STATE).write_text(json.dumps(content), encoding="utf-8")

        assert not self._read_only, self.checkpoint_dir
        target = directory.free_name(self.checkpoint_dir, f"step-{metadata.step:08d}")
        saved = directory.write_directory(target, write, metadata)
        self._keep_what_stays()
        return saved

    def list_checkpoints(self) -> list[CheckpointMetadata]:
        """This run's complete checkpoints by step; of a step that was saved twice the later one."""
        newest: dict[int, CheckpointMetadata] = {}
        for one in self._all():
            held = newest.get(one.step)
            if held is None or (held.created_ms, held.path.name) < (one.created_ms, one.path.name):
                newest[one.step] = one
        return sorted(newest.values(), key=lambda one: one.step)

    def get_best_checkpoint_info(self) -> CheckpointMetadata | None:
        """The best by the recorded metric, or None."""
        ranked = best_first(self.list_checkpoints(), self.mode)
        return ranked[0] if ranked else None

    def get_latest_checkpoint_info(self) -> CheckpointMetadata | None:
        """The one with the most steps, or None."""
        return latest(self.list_checkpoints())

    def load_best_checkpoint(self) -> dict[str, Any] | None:
        """The best intact checkpoint, or None; a damaged one is set aside with a warning and the next is taken."""
        return self._load_first(best_first(self.list_checkpoints(), self.mode))

    def load_latest_checkpoint(self) -> dict[str, Any] | None:
        """The newest intact checkpoint, or None; a damaged one is set aside with a warning and the next is taken."""
        return self._load_first(sorted(self.list_checkpoints(), key=lambda one: -one.step))

    def load_checkpoint(self, info: CheckpointMetadata) -> dict[str, Any]:
        """Everything in a checkpoint, on the CPU, after its hashes were compared.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        problems = directory.verify(info)
        if problems:
            raise CheckpointError(f"{info.path}: damaged: {'; '.join(problems)}")
        return load_directory(info)

    def delete_checkpoint(self, info: CheckpointMetadata) -> None:
        """Remove a checkpoint of this run.

        Raises:
            CheckpointError: it belongs to another run.
        """
        if info.run_id != self.run_id or info.path.parent != self.checkpoint_dir:
            raise CheckpointError(f"{info.path}: belongs to run {info.run_id}, not to {self.run_id}; nothing was deleted")
        gone = info.path.with_name(f"{directory.TEMPORARY_PREFIX}{info.path.name}-{os.getpid()}")
        info.path.rename(gone)
        shutil.rmtree(gone)

    def set_aside_all(self) -> None:
        """Move every checkpoint of this run into a folder `earlier-N`, where no reader looks; nothing is deleted."""
        held = self._all()
        if held:
            aside = directory.free_name(self.checkpoint_dir, "earlier-1")
            aside.mkdir()
            for one in held:
                one.path.rename(aside / one.path.name)

    def close(self) -> None:
        """Wait until MLflow has what it gets, where this manager has a connection of its own."""
        if self._tracker is not None:
            self._tracker.close()

    def _all(self) -> list[CheckpointMetadata]:
        folders = [path for path in self.checkpoint_dir.glob("*/") if not path.name.startswith(".")]
        return [one for one in map(directory.read_metadata, folders) if one is not None and one.run_id == self.run_id]

    def _write_model_files(self, model: nn.Module, folder: Path) -> None:
        config: Any = getattr(model, "config", None)
        if config is not None:
            config.architectures = [type(model).__name__]
        for described in (config, getattr(model, "generation_config", None), self.tokenizer):
            if described is not None and hasattr(described, "save_pretrained"):
                described.save_pretrained(folder)

    def _keep_what_stays(self) -> None:
        checkpoints = self.list_checkpoints()
        reasons = reasons_to_keep(checkpoints, mode=self.mode, max_checkpoints=self.max_checkpoints, keep_every=self.keep_every)
        kept = [one for one in checkpoints if one.step in reasons]
        ranked = best_first(kept, self.mode)
        for on_change in self._listeners:
            on_change([_described(one, reasons[one.step]) for one in kept], ranked[0].step if ranked else None)
        staying = {one.path for one in kept}
        for one in self._all():
            if one.path not in staying:
                self.delete_checkpoint(one)

    def _load_first(self, candidates: Sequence[CheckpointMetadata]) -> dict[str, Any] | None:
        for info in candidates:
            problems = directory.verify(info)
            if not problems:
                return load_directory(info)
            if self._read_only:
                continue
            aside = directory.set_aside(info)
            warnings.warn(f"{info.path}: damaged ({'; '.join(problems)}); set aside as {aside.name}, the next one is taken", stacklevel=3)
        return None


def load_directory(info: CheckpointMetadata) -> dict[str, Any]:
    """The content of a checkpoint folder that was verified."""
    content = directory.read_json(info.path / directory.STATE)
    tensors = directory.read_tensors(info.path / directory.STATE_TENSORS)
    held = {name: state.unflatten(value, tensors) for name, value in content.items()}
    optimizer_content = directory.read_json(info.path / directory.OPTIMIZER_JSON)
    optimizer_tensors = directory.read_tensors(info.path / directory.OPTIMIZER)
    return {
        "model_state_dict": state.join_model(directory.read_tensors(info.path / directory.MODEL), info.aliases),
        "optimizer_state_dict": state.join_optimizer(optimizer_content, optimizer_tensors) if optimizer_content else None,
        "scheduler_state_dict": held.get("scheduler"),
        "scaler_state_dict": held.get("scaler"),
        "epoch": info.epoch,
        "step": info.step,
        "metric_value": info.metric_value,
        "extra_state": held.get("extra_state", {}),
        "metadata": info,
    }


def _described(info: CheckpointMetadata, reasons: Sequence[str]) -> dict[str, Any]:
    return {
        "step": info.step,
        "epoch": info.epoch,
        "metric_name": info.metric_name,
        "metric_value": info.metric_value,
        "metrics": info.metrics,
        "path": str(info.path),
        "created_ms": info.created_ms,
        "reasons": list(reasons),
    }
