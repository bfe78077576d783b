"""Metrics of one run: written to the journal at once, and from there to MLflow by the relay.

Invariant: a logging call is one write to local disk and constant work; it never uses the network. If a step is computed
again after a resume, its first value is kept.

    tracker = TrainingMetricsTracker(output_dir="logs")
    tracker.log_metrics({"train_loss": 0.44, "grad_norm": 1.2}, step=101, epoch=0)
    tracker.get_summary()["best_metrics"]
    tracker.close()
"""

from __future__ import annotations

import atexit
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mltrack
from mltrack.addresses import redacted
from mltrack.errors import ConfigurationError, TrackingError
from mltrack.journal import (
    DiskFullError,
    Heartbeat,
    JournalLock,
    JournalReader,
    JournalWriter,
    RetainedCheckpoints,
    RunDirectory,
    RunInfo,
    records,
)
from mltrack.journal.records import json_number
from mltrack.journal.shape import LARGEST
from mltrack.tracking.delivery import Delivery, deliver_earlier
from mltrack.tracking.earlier import forget_moved, set_aside
from mltrack.tracking.ending import Ending, leave_exit_code, uncaught
from mltrack.tracking.export import entries_of, write_csv_export, write_json_export
from mltrack.tracking.logged_files import LoggedFiles
from mltrack.tracking.metric_table import MetricTable
from mltrack.tracking.recorded import Recorded
from mltrack.tracking.run_here import name_trainer, run_here
from mltrack.tracking.statistics import MetricSeries, MetricStatistics
from mltrack.tracking.values import (
    as_number,
    checked,
    checked_list,
    checked_mapping,
    checked_name,
    folder_name,
    texts,
    whole_number,
)

LONGEST_EXIT_WAIT_S = 600.0
log = logging.getLogger("mltrack")


class TrainingMetricsTracker:
    """Records metrics, keeps their statistics, exports them.

    Args:
        output_dir: folder of the journal and of relative export paths. Unless `resume` is True, an earlier run in it is
            set aside as a run directory `earlier-run-1`, `earlier-run-2`, ... in there, from which its undelivered part
            is delivered.
        experiment_name: recorded in the summary and, with MLflow, in run.json.
        auto_save_interval: the journal is forced to the disk after this many logging calls (and every few seconds
            anyway).
        run_id: an MLflow run that gets everything, sent by a separate process. Default: the run that is active in this
            process, if mlflow is already imported.
        tracking_uri: of that run; default: the active run's, else MLFLOW_TRACKING_URI, else the embedded database.
        resume: continue the journal in `output_dir`.
        directions: {metric name: "min" or "max"} if the name does not say.
        timing: names of further metrics that depend on speed.
        on_disk_full: "stop" raises if a record cannot be written, "continue" warns once and goes on without it.
        presumed_failed: the run has FAILED unless `settle` or `end` says otherwise. Without it `close` means FINISHED,
            and a process that ends without `close` is judged by its exit code.
        run: the caller's run, regardless of an active one; its delivery begins with `start_delivery` or `mltrack sync`.
        lock: of the journal in `output_dir`, if the caller already holds it.

    Raises:
        TrackingError: the folder cannot be written, or another process is writing its journal, or is delivering it and
            cannot be ended from here.
    """

    def __init__(
        self,
        output_dir: str | Path = "mltrack-metrics",
        experiment_name: str | None = None,
        auto_save_interval: int = 100,
        *,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        resume: bool = False,
        directions: Mapping[str, str] | None = None,
        timing: Iterable[str] = (),
        on_disk_full: str = "stop",
        presumed_failed: bool = False,
        run: RunInfo | None = None,
        lock: JournalLock | None = None,
    ):
        if auto_save_interval < 1:
            raise ConfigurationError(f"auto_save_interval must be a whole number >= 1, not {auto_save_interval}")
        self.directory = RunDirectory(Path(output_dir).absolute())
        self.experiment_name = experiment_name
        self.delivery: Delivery | None = None
        self._on_disk_full, self.lost_records = on_disk_full, 0
        self._auto_save_interval = auto_save_interval
        self._metrics = MetricTable(directions or {}, timing)
        self._calls = 0
        self._recorded = Recorded()
        self._files = LoggedFiles(self.directory)
        self._retained = RetainedCheckpoints()
        """From this tracker's own records: the first one is a whole set."""
        if not resume and lock is None:
            set_aside(self.directory)
        for record in JournalReader(self.directory.journal).read_new():
            for entry in entries_of(record):
                self._metrics.series(entry.name).add(entry.value, entry.step, entry.epoch, entry.time_ms)
        self._journal = JournalWriter(self.directory.journal, mltrack_version=mltrack.__version__, lock=lock)
        self.directory.exit_code_file.unlink(missing_ok=True)  # of the process before this one
        self._ending = Ending(self._journal, ("FAILED", 1) if presumed_failed else None)
        self._heartbeat: Heartbeat | None = None
        self._tracking_uri: str | None = None
        if not resume and lock is None:
            forget_moved(self.directory)
        if run is not None:
            self._describe(run)
        elif (found := run_here(run_id, tracking_uri, experiment_name)) is not None:
            self._describe(found)
            self.start_delivery()
        deliver_earlier(self.directory, self._tracking_uri)
        atexit.register(self._close_at_exit)

    # -- logging

    def log_metric(self, name: str, value: Any, step: int, epoch: int | None = None) -> None:
        """Record one value at an optimizer step (the first is 1); `epoch` is 0-based."""
        self.log_metrics({name: value}, step, epoch)

    def log_metrics(self, values: Mapping[str, Any], step: int, epoch: int | None = None) -> None:
        """Record several values of one step in one write.

        Raises:
            TrackingError: a value is not a single number, a name is not text, step or epoch is not a whole number of
                64 bits, or the journal cannot be written.
        """
        if type(step) is not int or not -LARGEST <= step <= LARGEST:
            step = whole_number("step", step)
        if epoch is not None and (type(epoch) is not int or not -LARGEST <= epoch <= LARGEST):
            epoch = whole_number("epoch", epoch)
        if type(values) is not dict:
            values = checked_mapping("metric", values)
        points: list[tuple[MetricSeries, float]] = []
        for name, value in values.items():
            number = value if type(value) is float else as_number(name, value)
            points.append((self._metrics.series(name), number))
        if self._recorded.values:
            points, differing = self._recorded.leave_out(step, points)
            if differing:
                self._append(records.drift(step, differing))
            if not points:
                return
        time_ms = records.now_ms()
        deterministic: list[str] = []
        timing: list[str] = []
        for series, value in points:
            (timing if series.timing else deterministic).append(series.json_key + json_number(value))
        self._append(records.metrics_json(step, epoch, time_ms, ",".join(deterministic), ",".join(timing)))
        for series, value in points:
            series.add(value, step, epoch, time_ms)
        self._calls += 1
        if self._calls % self._auto_save_interval == 0:
            self._journal.sync_soon()

    def log_epoch_metric(self, name: str, value: Any, epoch: int) -> None:
        """Record an aggregate of a finished epoch (0-based): `epoch/<name>` at step `epoch + 1`."""
        self.log_epoch_metrics({name: value}, epoch)

    def log_epoch_metrics(self, values: Mapping[str, Any], epoch: int) -> None:
        """Record several aggregates of a finished epoch (0-based) in one write."""
        epoch = whole_number("epoch", epoch)
        named = {
            records.EPOCH_PREFIX + checked_name("metric", name): value
            for name, value in checked_mapping("metric", values).items()
        }
        self.log_metrics(named, step=epoch + 1, epoch=epoch)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record parameters; MLflow keeps them as text and never changes one."""
        self._append(records.params(texts("param", values)))

    def set_tags(self, values: Mapping[str, Any]) -> None:
        """Record tags."""
        self._append(records.tags(texts("tag", values)))

    def log_inputs(self, datasets: Sequence[Mapping[str, Any]]) -> None:
        """Record the data sets that the run reads: name, digest, source, context, profile of each.

        Raises:
            TrackingError: one has no name or digest, or a value that JSON cannot hold.
        """
        self._append(records.inputs(checked_mapping("data set", one) for one in checked_list("data set", datasets)))

    def log_artifact(self, path: str | Path, artifact_path: str = "") -> None:
        """Upload a file into a folder of the run's artifacts; a folder with all its content, under its own name.

        Only files in the run directory are ever uploaded: others are copied to `artifacts/` in it, in their current
        state. Parts of a folder that cannot be copied, and a run directory inside it, are logged and left out.

        Raises:
            TrackingError: there is no such file or folder, it cannot be read or is the run directory itself,
                there is no room for a copy, or `artifact_path` is not a relative path.
        """
        source = self._files.existing(path)
        artifact_path = folder_name("artifact_path", artifact_path)
        self._append(records.artifact(self._files.relative(self._files.inside(source, artifact_path)), artifact_path))

    def log_checkpoints(self, kept: Sequence[Mapping[str, Any]], best_step: int | None) -> None:
        """Record the kept checkpoints, and force everything so far to the disk."""
        named = [checked_mapping("checkpoint", one) for one in checked_list("checkpoint", kept)]
        kept = [{**one, "path": self._files.relative(one.get("path"))} for one in named]
        checked(records.checkpoints(kept, best_step))
        record, lost = self._retained.record_of(kept, best_step), self.lost_records
        self._append(record)
        if self.lost_records == lost:
            self._retained = self._retained.after(record)
        self._journal.sync()

    def repeat_checkpoints(self) -> None:
        """Record the whole set of kept checkpoints if changes were recorded since the last one, so that later damage to
        a change costs nothing.
        """
        if self._retained.num_changes:
            record = records.checkpoints(list(self._retained.kept.values()), self._retained.best_step)
            self._append(record)
            self._retained = self._retained.after(record)

    def log_model(self, **fields: Any) -> None:
        """Record the model to be registered (see `mltrack.journal.records`). Raises DiskFullError like `settle`."""
        if reserved := sorted({"type", "time_ms"} & fields.keys()):
            raise TrackingError(
                f"log_model cannot take a field '{reserved[0]}', which every record has; use another name"
            )
        self._ending.write(redacted(checked(records.model(**fields))), patient=True)

    def resume_from(self, step: int, epoch: int) -> None:
        """From now on compare values that are already recorded instead of recording them again: all after this
        checkpoint, and every rare metric.

        Args:
            step: optimizer steps in the checkpoint.
            epoch: epochs finished in it.
        """
        step, epoch = whole_number("step", step), whole_number("epoch", epoch)
        self._recorded = Recorded.behind(self.directory.journal, self._metrics.by_name, step, epoch)
        self._append(records.resumed(step, epoch))

    def get_statistics(self, name: str) -> MetricStatistics:
        """Statistics of a metric; `epoch/` may be left out.

        Raises:
            TrackingError: no such metric was logged.
        """
        return self._metrics.statistics(name)

    def get_summary(self) -> dict[str, Any]:
        """`best_metrics` {name: {value, step, epoch}}, `statistics` {name: {mean, ...}}, `totals`."""
        return {"experiment_name": self.experiment_name, **self._metrics.summary()}

    def export_to_json(self, path: str | Path = "metrics.json") -> Path:
        """Write the summary and every point; a relative path is under `output_dir`. Returns the path."""
        target = self.directory.path / path
        write_json_export(self.directory.journal, self.get_summary(), target)
        return target

    def export_to_csv(self, path: str | Path = "metrics.csv") -> Path:
        """Write one line per point; a relative path is under `output_dir`. Returns the path."""
        target = self.directory.path / path
        write_csv_export(self.directory.journal, target)
        return target

    def start_delivery(self) -> None:
        """Start the relay, which ends with this process."""
        self.delivery = Delivery(self.directory, self._tracking_uri)

    @property
    def rejected(self) -> str | None:
        """Why MLflow refuses the run itself, once known."""
        return None if self.delivery is None else self.delivery.rejected

    def settle(self, status: str, exit_code: int) -> None:
        """Record the result of the run before its last parts; it counts even if the process dies during those. Raises
        DiskFullError if the disk has no room for it, whatever `on_disk_full` says."""
        checked(records.outcome(status, exit_code))
        self._ending.settle(status, exit_code)

    def end(self, status: str | None = None, exit_code: int = 0) -> None:
        """Record the end of the run, FINISHED, FAILED or KILLED; default: as settled, else FINISHED. Only the first
        call counts, and what is logged after it may not arrive. In a process forked from the one that made the tracker
        it does nothing.

        Raises:
            DiskFullError: the disk has no room for it, whatever `on_disk_full` says; `close` and the exit of the
                process try again.
            TrackingError: the status is another one, or the exit code is not a whole number.
        """
        if status is not None:
            checked(records.end(status, exit_code))
        tags = self._recorded.tags(finished=(status or self._ending.status) == "FINISHED")
        if tags and self._ending.is_ours:
            self._recorded = Recorded()
            with suppress(DiskFullError):
                self.set_tags(tags)
        self._ending.end(None if status is None else (status, exit_code))

    def close(
        self, *, exit_wait_s: float = LONGEST_EXIT_WAIT_S, on_progress: Callable[[dict[str, Any]], None] | None = None
    ) -> str:
        """End the run unless it has ended, release the journal, and wait for the delivery to MLflow. If an exception is
        being handled (as in a `finally`), the run has FAILED or was KILLED. In a process forked from the one that made
        the tracker it does nothing.

        Returns:
            "complete" or "pending"; "complete" too without MLflow.

        Raises:
            DiskFullError: like `end`.
        """
        if not self._ending.is_ours:
            return "pending"
        self.end(*self._ending.after(self._ending.on_its_way()))
        atexit.unregister(self._close_at_exit)
        self._journal.close()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self.delivery is None:
            return "complete"
        return self.delivery.wait(exit_wait_s, on_progress)

    def __enter__(self) -> TrainingMetricsTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.end(*self._ending.after(error))
            self.close()
        except DiskFullError as not_written:
            if error is None:
                raise
            log.error("%s", not_written)  # the error that ends the loop is the one to show

    # -- inside

    def _close_at_exit(self) -> None:
        """Close the tracker at the end of the process; if it is unknown how the run ended, leave that to the exit
        code.
        """
        if not self._ending.is_ours:
            return
        try:
            if self._ending.is_known:
                self.close()
            elif leave_exit_code(self.directory.exit_code_file):
                if uncaught() is KeyboardInterrupt:  # Python then dies by the signal, without an exit code
                    self.settle("KILLED", 130)
                self._journal.close()
                if self.delivery is not None:
                    self.delivery.wait(LONGEST_EXIT_WAIT_S, ended=False)
            else:
                self.end(*(("FINISHED", 0) if uncaught() is None else ("FAILED", 1)))
                self.close()
        except DiskFullError as error:
            log.error("%s", error)

    def _append(self, record: records.Record | str) -> None:
        try:
            if isinstance(record, str):
                self._journal.append_json(record)
            else:
                self._journal.append(redacted(checked(record)))
        except DiskFullError as error:
            if self._on_disk_full == "stop":
                raise
            if not self.lost_records:
                warnings.warn(f"{error}; going on without it, as on_disk_full=continue says", stacklevel=3)
            self.lost_records += 1

    def _describe(self, info: RunInfo) -> None:
        """Write run.json, with this process as the trainer, and begin its heartbeat."""
        name_trainer(info)
        self._tracking_uri = info.tracking_uri
        info.directory = str(self.directory.path)
        self.directory.write_run(info)
        self._heartbeat = Heartbeat(self.directory.heartbeat)
