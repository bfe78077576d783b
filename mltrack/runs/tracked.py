"""The MLflow run of a training from its first record to its end.

Invariant: once there is a tracker, the run gets its end, whatever happens. The outcome is recorded first, and any later
step may fail alone.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import mltrack
from mltrack.addresses import redact
from mltrack.config import TrainModelResponse
from mltrack.errors import Interrupted, MltrackError, TrackingError, alone, described
from mltrack.journal import RunDirectory, RunInfo, write_json
from mltrack.runs.description import describe_run
from mltrack.runs.frontend import Frontend
from mltrack.runs.prepare import Prepared
from mltrack.runs.provenance import take, take_over
from mltrack.shortage import shortage_of
from mltrack.tracking import TrainingMetricsTracker

log = logging.getLogger("mltrack")

AFTER_SIGNAL_S = 2.0
"""The wait after a signal is short, since a second one or SIGKILL follows soon: the relay delivers the rest alone."""


@dataclass(kw_only=True)
class TrackedRun:
    """A run that is recorded: `with tracked:` ends it and fills in the response."""

    prepared: Prepared
    frontend: Frontend
    response: TrainModelResponse
    directory: RunDirectory
    info: RunInfo
    tracker: TrainingMetricsTracker
    restarted: bool
    """The same MLflow run was started before and has no checkpoint: its recorded values are kept."""
    began_at: float = math.inf
    """Bytes of the journal before this trainer's own records."""
    on_failure: list[tuple[str, Callable[[], Any]]] = field(default_factory=list)
    """(warning if the action fails, action) to run after a failure was recorded."""
    results: list[Callable[[TrainModelResponse], None]] = field(default_factory=list)
    """Functions that fill in the response."""

    made_by: int = field(default_factory=os.getpid)
    """The process that trains; a fork of it ends nothing."""

    def __enter__(self) -> TrackedRun:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if os.getpid() != self.made_by:
            return False
        warnings = self.response.warnings
        if error is not None:  # any error: the run must still get its end
            with alone(warnings, "the failure was not handled to its end"):
                self._fail(error)
        with alone(warnings, "the response is not complete"):
            self.frontend.begin("respond")
            self._respond()
        return True

    def stop_requested(self) -> int | None:
        """The signal that requested a stop, if any.

        Raises:
            TrackingError: MLflow refuses the run itself.
        """
        if self.tracker.rejected is not None:
            raise TrackingError(self.tracker.rejected)
        return self.frontend.stop_requested()

    def _fail(self, error: BaseException) -> None:
        response, tracker, warnings = self.response, self.tracker, self.response.warnings
        if response.success:
            warnings.append(described(error))
            return
        explain(error, response, self.frontend)
        with suppress(BaseException):  # a run without an outcome has FAILED
            tracker.settle(response.status, response.exit_code)
        with suppress(BaseException):
            tracker.set_tags({"mltrack.failure": response.errors[0]})
        with alone(warnings, "the traceback could not be shown"):
            show_traceback(error, debug=self.prepared.request.debug)
        for what, action in self.on_failure:
            with alone(warnings, what):
                action()
        with alone(warnings, "delivery"):
            if tracker.delivery is None and not self.prepared.request.offline:
                tracker.start_delivery()
        with alone(warnings, "metrics.json could not be written"):
            tracker.export_to_json("metrics.json")

    def _respond(self) -> None:
        """Fill in the response, end the run and wait for its delivery; each as far as possible."""
        response, directory, tracker, warnings = self.response, self.directory, self.tracker, self.response.warnings
        with alone(warnings, "the results are not complete"):
            for fill_in in self.results:
                fill_in(response)
        metrics_file = directory.path / "metrics.json"
        response.model_path = str(directory.model) if directory.model.exists() else None
        response.metrics_file = str(metrics_file) if metrics_file.is_file() else None
        with alone(warnings, "the end of the run could not be recorded"):
            if warnings and response.success:
                tracker.set_tags({"mltrack.warnings": "; ".join(warnings)})
            tracker.end(response.status, response.exit_code)
            response.delivery = self._delivered()
        delivery, info = directory.read_delivery(), directory.read_run()
        response.run_id, response.experiment_id = info.run_id or info.local_id, info.experiment_id
        if response.success and tracker.rejected is not None:
            response.success, response.exit_code, response.errors = False, TrackingError.exit_code, [tracker.rejected]
        if delivery.get("opened_for") == info.trainer_started:
            warnings += delivery.get("notices", [])
        if delivery.get("offset", 0) < self.began_at:
            return  # it names an earlier trainer's models
        best = delivery.get("best_model_id")
        response.model_uri = (best if best.startswith("runs:/") else f"models:/{best}") if best else None
        response.registered_model = delivery.get("registered")

    def _delivered(self) -> str:
        """Close the tracker and wait for MLflow; a signal ends only the wait.

        Returns:
            "complete" or "pending".
        """
        frontend, request = self.frontend, self.prepared.request
        stopped = self.response.status == "KILLED" or frontend.stop_requested() is not None

        def report(delivery: dict[str, Any]) -> None:
            if not stopped:
                frontend.check_stop()
            if frontend.on_delivery is not None:
                frontend.on_delivery(delivery)

        wait_s = min(request.exit_wait, AFTER_SIGNAL_S) if stopped else request.exit_wait
        try:
            found = self.tracker.close(exit_wait_s=wait_s, on_progress=report)
        except (Interrupted, KeyboardInterrupt) as error:
            self.response.warnings.append(
                f"the training had ended when it was {described(error)}; MLflow gets the rest in the background"
            )
            return "pending"
        return "pending" if request.offline else found


def track(prepared: Prepared, frontend: Frontend, response: TrainModelResponse) -> TrackedRun:
    """Step 4: the run directory and its tracker.

    Raises:
        ConfigurationError: the run is being trained.
        TrackingError: the journal cannot be written, or the named run cannot be used.
    """
    request, continued = prepared.request, prepared.continued
    lock = continued.lock if continued is not None else None
    try:
        frontend.begin("open_tracker")
        resumed = None if prepared.resumed is None else prepared.resumed.directory
        info = describe_run(request, resumed, frontend.notice)
        take(info.run_id)
        response.run_id = info.run_id or info.local_id
        directory = RunDirectory(Path(request.output_dir).absolute() / response.run_id)
        if continued is not None:
            directory = continued.directory
        restarted = continued is None and directory.journal.exists()
        if lock is None:
            with frontend.at_once():
                lock = take_over(directory, force=request.force, notice=frontend.notice)
        made = {
            "mltrack_version": mltrack.__version__,
            "parent": prepared.parent.uri if prepared.parent else None,
            "class_names": prepared.records is not None and prepared.records.loader.class_names,
            **prepared.source.origin,
        }
        write_json(directory.path / "config.json", {**made, **request.options()})
        tracker = TrainingMetricsTracker(
            directory.path,
            request.experiment_name,
            resume=continued is not None or restarted,
            on_disk_full=request.on_disk_full,
            presumed_failed=True,
            run=info,
            lock=lock,
        )
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return TrackedRun(
        prepared=prepared,
        frontend=frontend,
        response=response,
        directory=directory,
        info=info,
        tracker=tracker,
        restarted=restarted,
    )


def explain(error: BaseException, response: TrainModelResponse, frontend: Frontend) -> None:
    """Describe the end of a training that did not succeed in the response."""
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted(signal.SIGINT)
        with suppress(BaseException):  # it is the caller's function
            error = Interrupted(frontend.stop_requested() or signal.SIGINT)
    error = shortage_of(error) or error
    response.status = "KILLED" if isinstance(error, Interrupted) else "FAILED"
    response.exit_code = error.exit_code if isinstance(error, MltrackError) else 1
    response.errors = [redact(described(error))]


def show_traceback(error: BaseException, *, debug: bool) -> None:
    """Log a traceback; with `debug` also write it to stderr."""
    log.debug("%s", trace := redact("".join(traceback.format_exception(error))))
    if debug:
        sys.stderr.write(trace)
