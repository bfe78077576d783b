"""Which checkpoints a run keeps; saving, finding and loading them.

Invariant: the `max_checkpoints` best, the latest and the milestones are kept; only checkpoints of this run are deleted.
With `background=True` a save costs the caller one copy in memory. It writes the state at the moment of the call, at
most one save is in flight, and the next call of any method raises its error.

    manager = CheckpointManager("checkpoints", max_checkpoints=3, metric_name="eval_loss", mode="min")
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=0, step=100, metric_value=0.35)
    checkpoint = manager.load_best_checkpoint()
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from mltrack.checkpoints import directory
from mltrack.checkpoints.background import Background
from mltrack.checkpoints.metadata import CheckpointMetadata, best_first, described, judged_by, latest, reasons_to_keep
from mltrack.checkpoints.parts import Parts, load_directory
from mltrack.checkpoints.shards import MAX_SHARD_BYTES
from mltrack.checkpoints.snapshot import Content, HostBuffers
from mltrack.errors import CheckpointError, ConfigurationError
from mltrack.evaluation.metrics import metric_mode
from mltrack.journal.records import now_ms
from mltrack.store import active_run
from mltrack.tracking import TrainingMetricsTracker
from mltrack.tracking.values import as_number, checked_name, whole_number


class Stateful(Protocol):
    """An object whose state can be saved and resumed."""

    def state_dict(self) -> dict[str, Any]: ...


OnChange = Callable[[Sequence[Mapping[str, Any]], int | None], None]
OnWritten = Callable[[CheckpointMetadata, float], None]


class CheckpointManager:
    """Saves checkpoints of one run into one folder.

    Args:
        checkpoint_dir: created if it does not exist.
        max_checkpoints: how many of the best to keep, beside the latest.
        metric_name: what ranks them.
        mode: "min" or "max"; by default it follows from the metric's name.
        keep_every: also keep each checkpoint whose step is a multiple of it.
        run_id: an MLflow run that gets the kept checkpoints. By default the run that is active in this process, if
            mlflow is imported already and `on_change` is not given.
        tracking_uri: of that run.
        on_change: called after each save with what is kept, instead of an MLflow connection of its own.
        read_only: another run's folder; nothing in it is moved or removed.
        tokenizer: saved with every checkpoint, so that each is a loadable model folder.
        background: a save returns once the state is copied; a thread writes it, decides what is kept, and calls
            `on_written` and `on_change`. The copy's memory is kept for the next save; `close` frees it.
        when_busy: what a save does while the previous one is being written: "wait", or "skip" if it is not required.
        on_written: called with each checkpoint once it is on the disk, and the milliseconds that hashing, writing and
            syncing took.
        max_shard_bytes: larger weights are written in several files, indexed as Transformers reads them.

    Raises:
        ConfigurationError: an option has a wrong value.
    """

    skipped_saves: int
    """Saves that were skipped because the previous one was still being written."""
    damaged: list[Path]
    """Damaged checkpoints that a read-only manager found and left in place, for the caller to set aside."""

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
        background: bool = False,
        when_busy: str = "wait",
        on_written: OnWritten | None = None,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ):
        if when_busy not in ("wait", "skip"):
            raise ConfigurationError(f"when_busy must be wait or skip, not {when_busy!r}")
        if max_shard_bytes < 1:
            raise ConfigurationError(f"max_shard_bytes must be a whole number >= 1, not {max_shard_bytes}")
        if mode not in (None, "min", "max"):
            raise ConfigurationError(f"mode must be min or max, not {mode!r}")
        if max_checkpoints < 1:
            raise ConfigurationError(f"max_checkpoints must be a whole number >= 1, not {max_checkpoints}")
        self.checkpoint_dir = Path(checkpoint_dir).absolute()
        self.max_checkpoints, self.metric_name, self.keep_every = max_checkpoints, metric_name, keep_every
        self.mode = mode or metric_mode(metric_name)
        self.run_id = run_id
        self.tokenizer = tokenizer
        self.skipped_saves = 0
        self.damaged = []
        self._read_only, self._warned = read_only, False
        self._skips, self._on_written = when_busy == "skip", on_written
        self._behind = Background()
        self._buffers = HostBuffers() if background else None
        self._parts = Parts(self.checkpoint_dir, max_shard_bytes)
        self._known: dict[Path, tuple[tuple[int, ...], CheckpointMetadata | None]] = {}
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
        required: bool = True,
    ) -> CheckpointMetadata | None:
        """Save the state of this moment, then delete the checkpoints that are no longer kept.

        Args:
            model: its unwrapped weights are written; with a Hugging Face model its configuration too.
            epoch: 0-based.
            step: optimizer steps taken.
            metric_value: of `metric_name`; None or NaN is never the best.
            metrics: everything else that was evaluated at this moment.
            extra_state: JSON values and tensors.
            required: never skipped, even with `when_busy="skip"`.

        Returns:
            The checkpoint's metadata, in the background without `files`; None if the save was skipped.

        Raises:
            CheckpointError: a value that cannot be saved (named by its key), a full disk, or too little memory for the
                copy; or the error of the previous save, and then this one did nothing.
        """
        assert not self._read_only, self.checkpoint_dir
        if self.leaves_out(required=required):
            self.skipped_saves += 1
            return None
        epoch, step = whole_number("epoch", epoch, CheckpointError), whole_number("step", step, CheckpointError)
        metric_value = None if metric_value is None else as_number(self.metric_name, metric_value, CheckpointError)
        metrics = {
            checked_name("metric", name, CheckpointError): as_number(name, value, CheckpointError)
            for name, value in (metrics or {}).items()
        }
        self.finish()
        others = {
            "scheduler": scheduler.state_dict() if scheduler is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "extra_state": dict(extra_state or {}),
        }
        held = self._parts.split(
            model, optimizer.state_dict() if optimizer is not None else None, others, self.tokenizer
        )
        metadata = CheckpointMetadata(
            epoch=epoch,
            step=step,
            metric_value=metric_value,
            metric_name=self.metric_name,
            path=directory.free_name(self.checkpoint_dir, f"step-{step:08d}"),
            run_id=self.run_id,
            created_ms=now_ms(),
            metrics=metrics,
            aliases=held.aliases,
        )
        if self._buffers is None:
            return self._write(metadata, held.content, held.documents)
        snapshot, documents = self._buffers.take(held.content), held.documents
        # Freeing tensors releases the interpreter's lock: once the thread runs, that would cost milliseconds.
        del held

        def write_snapshot() -> None:
            snapshot.wait()
            self._write(metadata, snapshot.content, documents)

        self._behind.start(write_snapshot)
        return metadata

    def leaves_out(self, *, required: bool) -> bool:
        """True if a save would be skipped now: the previous one is being written, and `when_busy` is "skip"."""
        return self._skips and not required and self._behind.busy

    def finish(self) -> None:
        """Return once the save in flight is on the disk and old checkpoints are deleted.

        Raises:
            CheckpointError: it failed; raised once.
        """
        self._behind.finish()

    def settle(self) -> None:
        """Delete what is not kept and notify the listeners: a process killed after its last save has not done so."""
        self.finish()
        self._keep_what_stays()

    def list_checkpoints(self) -> list[CheckpointMetadata]:
        """This run's complete checkpoints by step; if a step was saved twice, the later one."""
        self.finish()
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

    def load_best_checkpoint(self, *, weights_only: bool = False) -> dict[str, Any] | None:
        """The best intact checkpoint, or None; a damaged one is set aside with a warning and the next one is used.

        Args:
            weights_only: do not read the optimizer's state, which is twice as large; then it and all other states are
                None.
        """
        return self._load_first(best_first(self.list_checkpoints(), self.mode), weights_only)

    def load_latest_checkpoint(self, *, weights_only: bool = False) -> dict[str, Any] | None:
        """The newest intact checkpoint; otherwise like `load_best_checkpoint`."""
        return self._load_first(sorted(self.list_checkpoints(), key=lambda one: -one.step), weights_only)

    def load_checkpoint(self, info: CheckpointMetadata) -> dict[str, Any]:
        """Everything in a checkpoint, on the CPU, after comparing its hashes.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        self.finish()
        problems = directory.verify(info)
        if problems:
            raise CheckpointError(f"{info.path}: damaged: {'; '.join(problems)}")
        return load_directory(info)

    def delete_checkpoint(self, info: CheckpointMetadata) -> None:
        """Remove a checkpoint of this run.

        Raises:
            CheckpointError: it belongs to another run, or cannot be removed.
        """
        self.finish()
        if info.run_id != self.run_id or info.path.parent != self.checkpoint_dir:
            raise CheckpointError(
                f"{info.path}: belongs to run {info.run_id}, not to {self.run_id}; nothing was deleted"
            )
        directory.delete(info.path)

    def set_aside(self, folder: Path) -> None:
        """Rename a checkpoint that another reader found damaged: it is no longer read, counted or deleted."""
        self.finish()
        assert not self._read_only, folder
        assert folder.parent == self.checkpoint_dir, folder
        if folder.exists():
            directory.set_aside(folder)

    def set_aside_all(self) -> None:
        """Move every checkpoint of this run into a folder `earlier-N`, where no reader looks; nothing is deleted."""
        self.finish()
        held = self._all()
        if held:
            aside = directory.free_name(self.checkpoint_dir, "earlier-1")
            aside.mkdir()
            for one in held:
                one.path.rename(aside / one.path.name)

    def close(self) -> None:
        """Wait for the save in flight and, if this manager has its own connection, until MLflow has its data.

        Raises:
            CheckpointError: the save in flight failed.
        """
        try:
            self.finish()
        finally:
            if self._buffers is not None:
                self._buffers = HostBuffers()
            if self._tracker is not None:
                self._tracker.repeat_checkpoints()
                self._tracker.close()

    def _write(
        self, metadata: CheckpointMetadata, content: Content, documents: Mapping[str, Any]
    ) -> CheckpointMetadata:
        started = time.perf_counter()
        texts = {name: json.dumps(held).encode() for name, held in documents.items()}
        saved = directory.write_directory(metadata.path, {**content, **texts}, metadata)
        if self._on_written is not None:
            self._on_written(saved, 1000 * (time.perf_counter() - started))
        self._keep_what_stays()
        return saved

    def _all(self) -> list[CheckpointMetadata]:
        """Every checkpoint of this run; metadata is read again only if its file has changed."""
        known, self._known = self._known, {}
        for folder in self._folders():
            written = directory.when_written(folder)
            held = known.get(folder)
            self._known[folder] = (
                held if held is not None and held[0] == written else (written, directory.read_metadata(folder))
            )
        found = [one for _, one in self._known.values() if one is not None and one.run_id == self.run_id]
        return [judged_by(one, self.metric_name) for one in found]

    def _folders(self) -> list[Path]:
        return [
            path for path in self.checkpoint_dir.glob("*/") if not path.name.startswith((".", directory.DAMAGED_PREFIX))
        ]

    def _keep_what_stays(self) -> None:
        checkpoints = self.list_checkpoints()
        reasons = reasons_to_keep(
            checkpoints, mode=self.mode, max_checkpoints=self.max_checkpoints, keep_every=self.keep_every
        )
        kept = [one for one in checkpoints if one.step in reasons]
        ranked = best_first(kept, self.mode)
        for on_change in self._listeners:
            on_change([described(one, reasons[one.step]) for one in kept], ranked[0].step if ranked else None)
        staying = {one.path for one in kept}
        directory.remove_leftovers(self.checkpoint_dir, [directory.DELETING_PREFIX])
        for one in self._all():
            if one.path not in staying:
                self._let_go(one)

    def _let_go(self, one: CheckpointMetadata) -> None:
        """Delete a checkpoint; if it cannot be removed now (NFS keeps what another process reads), each later save
        tries again.
        """
        try:
            self.delete_checkpoint(one)
        except CheckpointError as error:
            if not self._warned:
                warnings.warn(f"{error}; the training continues and removes it after a later save", stacklevel=2)
            self._warned = True

    def _load_first(self, candidates: Sequence[CheckpointMetadata], weights_only: bool) -> dict[str, Any] | None:
        for path in self._folders():
            if problem := directory.what_is_wrong_with_metadata(path):
                self._set_aside(path, problem)
        for info in candidates:
            problems = directory.verify(
                info, unread=(directory.OPTIMIZER, directory.STATE_TENSORS) if weights_only else ()
            )
            if not problems:
                try:
                    return load_directory(info, weights_only=weights_only)
                except CheckpointError as error:
                    problems = [str(error)]
            self._set_aside(info.path, "; ".join(problems))
        return None

    def _set_aside(self, path: Path, problem: str) -> None:
        if self._read_only:
            self.damaged.append(path)
            warnings.warn(f"{path}: damaged ({problem}); the next one is taken", stacklevel=4)
        else:
            warnings.warn(
                f"{path}: damaged ({problem}); set aside as {directory.set_aside(path).name}, the next one is taken",
                stacklevel=4,
            )
