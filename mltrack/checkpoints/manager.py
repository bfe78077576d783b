"""Which checkpoints a run keeps; saving, finding and loading them.

Invariant: the `max_checkpoints` best, the latest and the milestones stay; only checkpoints of this run are ever
deleted. With `background=True` the caller pays for one copy in memory; what is written is the state at the moment of
the call, at most one save is in flight, and its error is raised by the next call of any method.

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
    """Whatever can be resumed."""

    def state_dict(self) -> dict[str, Any]: ...


OnChange = Callable[[Sequence[Mapping[str, Any]], int | None], None]
OnWritten = Callable[[CheckpointMetadata, float], None]


class CheckpointManager:
    """Saves checkpoints of one run into one folder.

    Args:
        checkpoint_dir: made where it does not exist.
        max_checkpoints: how many of the best stay, beside the latest.
        metric_name: what ranks them.
        mode: "min" or "max"; default: told by the metric's name.
        keep_every: each checkpoint whose step is a multiple of it stays too.
        run_id: an MLflow run that gets the kept checkpoints. Without it the run that is active in this process, if
            mlflow is imported here already and `on_change` is not given.
        tracking_uri: of that run.
        on_change: called with what stays after each save, instead of an MLflow connection of its own.
        read_only: another run's folder; nothing in it is moved or removed.
        tokenizer: saved with every checkpoint, so that each is a loadable model folder.
        background: a save returns once the state is copied; a thread writes it, decides what stays, and calls
            `on_written` and `on_change`. It takes one copy of the state in memory, kept for the next save; `close`
            gives it back.
        when_busy: what a save does while the one before is being written: "wait" for it, or "skip" it where it is not
            required.
        on_written: called with each checkpoint that is on the disk and the milliseconds that hashing, writing and
            syncing it took.
        max_shard_bytes: weights beyond it are written in several files, indexed as Transformers reads them.

    Raises:
        ConfigurationError: a mode or a number that is not accepted.
    """

    skipped_saves: int
    """Saves that were left out, because the one before was still being written."""
    damaged: list[Path]
    """What a read-only manager found damaged and left where it is, for whoever may set it aside."""

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
        """Save the state of this moment, then let go of the checkpoints that no longer stay.

        Args:
            model: its unwrapped weights are written; with a Hugging Face model its configuration too.
            epoch: 0-based.
            step: optimizer steps taken.
            metric_value: of `metric_name`; None or NaN is never the best.
            metrics: everything else that was evaluated at this moment.
            extra_state: JSON values and tensors.
            required: never left out, even with `when_busy="skip"`.

        Returns:
            What is known of the checkpoint, in the background without `files`; None where it was left out.

        Raises:
            CheckpointError: a value that cannot be saved (named by its key), a disk that is full, too little memory for
                the copy; or the error of the save before, and then nothing of this one was done.
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
        # Letting go of tensors gives the interpreter's lock away: once the thread runs, that would be a wait of
        # milliseconds.
        del held

        def write_snapshot() -> None:
            snapshot.wait()
            self._write(metadata, snapshot.content, documents)

        self._behind.start(write_snapshot)
        return metadata

    def leaves_out(self, *, required: bool) -> bool:
        """True where a save would be left out now: the one before is being written, and `when_busy` says "skip"."""
        return self._skips and not required and self._behind.busy

    def finish(self) -> None:
        """Return when the save in flight is on the disk and it is decided what stays.

        Raises:
            CheckpointError: it failed; said once.
        """
        self._behind.finish()

    def settle(self) -> None:
        """Let go of what does not stay and tell who listens: a process that was killed behind its last save has told
        nobody of it.
        """
        self.finish()
        self._keep_what_stays()

    def list_checkpoints(self) -> list[CheckpointMetadata]:
        """This run's complete checkpoints by step; of a step that was saved twice the later one."""
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
        """The best intact checkpoint, or None; a damaged one is set aside with a warning and the next is taken.

        Args:
            weights_only: leave the optimizer's state, which is twice as large, on the disk; then it and all other
                states are None.
        """
        return self._load_first(best_first(self.list_checkpoints(), self.mode), weights_only)

    def load_latest_checkpoint(self, *, weights_only: bool = False) -> dict[str, Any] | None:
        """The newest intact checkpoint, as `load_best_checkpoint` gives the best."""
        return self._load_first(sorted(self.list_checkpoints(), key=lambda one: -one.step), weights_only)

    def load_checkpoint(self, info: CheckpointMetadata) -> dict[str, Any]:
        """Everything in a checkpoint, on the CPU, after its hashes were compared.

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
        """Rename a checkpoint that another reader found damaged, so that it is neither read nor kept nor deleted any
        more.
        """
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
        """Wait for the save in flight, and until MLflow has what it gets, where this manager has a connection of its
        own.

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
        """Every checkpoint of this run; what was read once is read again where its file has changed alone."""
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
        """Delete a checkpoint that does not stay; one that cannot be removed now (NFS keeps what another process reads)
        is tried again after each save.
        """
        try:
            self.delete_checkpoint(one)
        except CheckpointError as error:
            if not self._warned:
                warnings.warn(f"{error}; the training goes on, and removes it after a later save", stacklevel=2)
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
