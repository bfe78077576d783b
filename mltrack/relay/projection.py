"""Projects a journal onto an MLflow run.

Invariant: sending is at least once and in order; timestamps were fixed when the point was recorded, so a point that is
sent twice is stored once. Refused values, unreadable files and invalid records are reported and do not hold up the
rest. Files that the artifact store does not take now are deferred and retried; the delivery is complete only when they
are stored. Nothing is sent once the run was resumed elsewhere."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mltrack.errors import MltrackError, described
from mltrack.journal import JournalReader, RunDirectory, records
from mltrack.relay.artifact import upload
from mltrack.relay.delivery_state import Progress
from mltrack.relay.full_values import full_values, is_shortened
from mltrack.relay.isolation import send_isolated
from mltrack.relay.liveness import STARTED_TAG, Life, trainer_of
from mltrack.relay.opening import look_at_run, open_run
from mltrack.relay.pace import Pace
from mltrack.relay.registration import registered
from mltrack.relay.retained_models import RetainedModels
from mltrack.relay.trainers import NOW_AND_THEN_S, Claim, Settled
from mltrack.relay.verdict import closing_tags, verdict_on
from mltrack.store import Store, StoreUnavailable, artifacts, params, ping, runs
from mltrack.store.connection import ServersOwnFolder

WITH_FILES = ("artifact", "checkpoints", "checkpoints_changed", "model")
"""Types of records that need the artifact store, each after the ones before it."""
TAKING_OVER = ("checkpoints", "checkpoints_changed", "model", "resumed")
"""Types of records that may delete something of an earlier trainer."""
DEFERRED_PAUSE_S, LONGEST_DEFERRED_PAUSE_S = 15.0, 300.0
"""The first and the longest pause before deferred files are retried; doubled after each attempt."""
log = logging.getLogger("mltrack.relay")
Point = tuple[str, float, int, int]


class Projection:
    """Delivers the journal of one run directory to one store.

    Args:
        directory: its run.json names the run; an offline one gets its MLflow run here.
        store: the connected tracking server.
        on_progress: called after each acknowledged request.
        pace: the limits of requests to the server.

    Raises:
        Settled: the run was resumed into another directory, or deleted; all methods raise it.
    """

    def __init__(
        self,
        directory: RunDirectory,
        store: Store,
        on_progress: Callable[[Progress], None] | None = None,
        pace: Pace | None = None,
    ):
        self.directory, self.store = directory, store
        self._pace = pace or Pace()
        self._missing: StoreUnavailable | None = None
        """The artifact store's last error; it is asked again when that is due."""
        self._deferred_due, self._deferred_pause_s = 0.0, DEFERRED_PAUSE_S
        self._listeners = [on_progress] if on_progress is not None else []
        self.info = directory.read_run()
        self.progress = Progress.read(directory, store.tracking_uri)
        self._reader = JournalReader(directory.journal, self.progress.offset)
        self._behind = self.progress.offset
        """Everything before this byte is applied or waits in `_points`."""
        self._applied = 0
        """Byte after the record that is being applied."""
        self._points: list[Point] = []
        self.progress.connected_ms, self.progress.complete = records.now_ms(), False
        self._save(acknowledged=False)
        self._run_id = self.progress.run_id = open_run(directory, store, self.info)
        self._claim = Claim(directory, store, self._run_id, self.progress, self._save)
        self._claim.check()
        look_at_run(store, self._run_id, self.info, self.progress)
        told = (self._save_models, self._claim.check, self._report)
        self._retained = RetainedModels(store, self._run_id, directory, self.progress, *told, self.info.upload)
        self.progress.opened_for = self.info.trainer_started
        self._save(acknowledged=False)

    @property
    def run_id(self) -> str:
        """Of the MLflow run."""
        return self._run_id

    def deliver(self, *, all_points: bool = True) -> int:
        """Send what was recorded since the last call; returns the number of records.

        Args:
            all_points: False leaves points for a later call, unless they fill a request. Any other record is sent at
                once, with all points before it.

        Raises:
            StoreUnavailable: the server does not answer; only acknowledged records count as delivered, and a new
                Projection begins after them.
        """
        count = 0
        for record in self._reader.read_new():
            count += 1
            if record["type"] == "metrics":
                self._points.extend(self._points_of(record))
                self.progress.note_infinities(record)
                self._behind = self._reader.offset
                if len(self._points) >= self._pace.batch:
                    self._flush()
                continue
            self._flush()
            self._apply(record, start=self._behind)
            self._behind = self._reader.offset
            self._acknowledge()
        if all_points:
            self._behind = self._reader.offset
            self._flush()
        self._name_odd()
        self._apply_deferred()
        return count

    def _points_of(self, record: records.Record) -> Iterator[Point]:
        for name, value in {**record["values"], **record["timing"]}.items():
            yield self.progress.name_in_mlflow(name), value, record["time_ms"], record["step"]

    def _name_odd(self) -> None:
        """Report what the reader has skipped, each once."""
        if self._reader.unknown:
            types = ", ".join(sorted(self._reader.unknown))
            log.warning("records of types that a later mltrack has added are left out: %s", types)
            self._reader.unknown.clear()
        if self._reader.odd:
            odd, self._reader.odd = self._reader.odd, []
            self._give_up(odd)
            self._save()

    def finish(self) -> None:
        """Set the MLflow run's final status and mark the delivery as complete.

        Does nothing if run.json names another trainer than when this delivery began, or if the trainer is alive and has
        recorded no end.

        Raises:
            StoreUnavailable: the server does not answer, or only deferred files are missing that the artifact store
                does not take.
        """
        missing = self._apply_deferred() or self._stored({"type": "index"}) or self._stored({"type": "full_values"})
        recorded = self.progress.end
        now = self.directory.read_run()
        is_taken_over = (now.trainer_pid, now.trainer_started) != (self.info.trainer_pid, self.info.trainer_started)
        if is_taken_over or (recorded is None and trainer_of(self.directory).life() is Life.ALIVE):
            return
        last = verdict_on(self.progress, self.directory)
        status = last.status
        ends = not self.directory.is_succeeded()
        tags = {"mltrack.status": status, "mltrack.delivery": "pending" if missing else "complete"} if ends else {}
        tags |= closing_tags(self.progress, last.failure if ends else None, self._reader.damaged)
        self._claim.check()
        runs.set_tags(self.store, self._run_id, tags)
        if ends and status == "FINISHED":  # of an earlier attempt
            runs.drop_tag(self.store, self._run_id, "mltrack.failure")
        if ends and (
            self.info.owns_status or (recorded is None and runs.get_run(self.store, self._run_id).status == "RUNNING")
        ):
            shown = last.shown(self.info)
            runs.finish_run(self.store, self._run_id, shown, last.time_ms)
            self.progress.status = shown
        if missing:
            raise missing
        self.progress.complete, self.progress.waiting = True, None
        self._save()

    def _flush(self) -> None:
        """Send the points that wait, in requests of at most the pace's batch."""
        while self._points:
            batch = self._points[: self._pace.batch]
            self._claim.check(within_s=NOW_AND_THEN_S)
            self._send(batch)
            del self._points[: len(batch)]
        if self._behind != self.progress.offset:
            self._acknowledge()

    def _send(self, batch: list[Point]) -> None:
        refused = send_isolated(batch, self._log_points, self._takes_points)
        self._give_up([f"{name} at step {step}: {error}" for (name, _, _, step), error in refused])
        self.progress.sent += len(batch) - len(refused)

    def _log_points(self, points: Sequence[Point]) -> None:
        started = time.monotonic()
        runs.log_points(self.store, self._run_id, points)
        self._pace.answered(time.monotonic() - started)

    def _takes_points(self) -> bool:
        return self._takes_tags() and runs.log_a_point_again(self.store, self._run_id)

    def _takes_tags(self) -> bool:
        """Raise if the run itself takes nothing because it was deleted: then no value is to blame, and none is given
        up.
        """
        runs.set_tags(self.store, self._run_id, {"mltrack.delivery": "pending"})
        return True

    def _apply(self, record: records.Record, start: int) -> None:
        """Apply the record that begins at byte `start`, or defer it."""
        self._applied = self._reader.offset
        if record["type"] in WITH_FILES and (self.progress.deferred or self._stored(record)):
            self.progress.deferred.append(start)
        elif record["type"] not in WITH_FILES:
            self._handle(record)

    def _handle(self, record: records.Record) -> None:
        takes_over = record["type"] in TAKING_OVER or STARTED_TAG in record.get("values", {})
        self._claim.check(within_s=0.0 if takes_over else NOW_AND_THEN_S)
        try:
            handler = getattr(self, f"_apply_{record['type']}", None)
            if handler is not None:
                handler(record)
        except (StoreUnavailable, Settled):
            raise
        except ServersOwnFolder as error:
            self._report(str(error))
        except (MltrackError, OSError) as error:
            self._claim.check()  # a deleted run refuses everything, but nothing is given up
            self._report(f"{record['type']}: {error}")
        except Exception as error:
            # an unforeseen error must not stop the delivery of everything else, the status included
            log.exception("%s", record["type"])
            line = f"{record['type']}: {described(error)}"
            if record["type"] in WITH_FILES:
                raise StoreUnavailable(line) from error
            self._report(line)

    def _stored(self, record: records.Record) -> StoreUnavailable | None:
        """None if stored; else the error, if only the artifact store is unavailable and not the tracking server: points
        need not wait for it.
        """
        try:
            self._handle(record)
        except StoreUnavailable as error:
            ping(self.store)
            log.info("deferred for %.0f s: %s: %s", self._deferred_pause_s, record["type"], error)
            self._deferred_due = time.monotonic() + self._deferred_pause_s
            self._deferred_pause_s = min(LONGEST_DEFERRED_PAUSE_S, 2 * self._deferred_pause_s)
            self.progress.waiting = f"{record['type']}: {error}"
            self._save(acknowledged=False)
            self._missing = error
            return error
        return None

    def _apply_deferred(self) -> StoreUnavailable | None:
        """Retry deferred records in order, if due; None once all are stored."""
        if self._missing is not None and time.monotonic() < self._deferred_due:
            return self._missing
        self._missing = None
        while self.progress.deferred:
            reader = JournalReader(self.directory.journal, self.progress.deferred[0])
            for record in reader.read_new():
                self._applied = reader.offset
                if missing := self._stored(record):
                    return missing
                break
            del self.progress.deferred[0]
            self.progress.waiting, self._deferred_pause_s = None, DEFERRED_PAUSE_S
            self._save()
        failure = self._stored({"type": "leftovers"}) if self._retained.has_leftovers else None
        if failure is None and self.progress.waiting is not None:
            self.progress.waiting = None
            self._save()
        return failure

    def _apply_leftovers(self, _: Mapping[str, Any]) -> None:
        """Not a record of the journal: remove half-done work of earlier relays once nothing newer is known."""
        self._retained.settle()

    def _apply_index(self, _: Mapping[str, Any]) -> None:
        """Not a record either: the final list of the kept checkpoints."""
        self._retained.store_index(now=True)

    def _apply_full_values(self, _: Mapping[str, Any]) -> None:
        """Not a record either: written at the end of the run, for values that MLflow holds in another form."""
        if self.progress.renamed or self.progress.shortened:
            artifacts.put_text(
                self.store, self._run_id, json.dumps(full_values(self.directory.journal), indent=1), "full_values.json"
            )

    def _apply_params(self, record: Mapping[str, Any]) -> None:
        different: dict[str, tuple[str, str]] = {}

        def send(some: Sequence[tuple[str, str]]) -> None:
            different.update(params.log_params(self.store, self._run_id, dict(some)))

        self._send_values("param", record["values"], params.MAX_PARAM_LENGTH, send)
        if different:
            shown = "; ".join(f"{name}: {value}" for name, value in different.items())
            runs.set_tags(self.store, self._run_id, {"mltrack.param_differences": shown})

    def _apply_tags(self, record: Mapping[str, Any]) -> None:
        self._send_values(
            "tag",
            record["values"],
            runs.MAX_TAG_LENGTH,
            lambda some: runs.set_tags(self.store, self._run_id, dict(some)),
        )
        if STARTED_TAG in record["values"]:  # a trainer begins
            self._claim.confirm()
            if self.info.owns_status:  # the run is open, however an earlier trainer ended
                runs.reopen_run(self.store, self._run_id)

    def _send_values(
        self, kind: str, values: Mapping[str, str], limit: int, send: Callable[[Sequence[tuple[str, str]]], None]
    ) -> None:
        self.progress.shortened |= any(is_shortened(text, limit) for text in values.values())
        refused = send_isolated(
            [(self.progress.name_in_mlflow(name), value) for name, value in values.items()], send, self._takes_tags
        )
        self._give_up([f"{kind} {name}: {error}" for (name, _), error in refused])

    def _apply_inputs(self, record: Mapping[str, Any]) -> None:
        for dataset in record["datasets"]:
            if dataset.get("context") == "evaluation":
                self.progress.evaluation_set = {name: str(dataset[name]) for name in ("name", "digest")}
        refused = send_isolated(
            record["datasets"], lambda some: runs.log_inputs(self.store, self._run_id, some), self._takes_tags
        )
        self._give_up([f"data set {dataset.get('name')}: {error}" for dataset, error in refused])

    def _apply_artifact(self, record: Mapping[str, Any]) -> None:
        upload(self.store, self._run_id, self.directory, record["path"], record["artifact_path"], self._report)

    def _apply_checkpoints(self, _: Mapping[str, Any]) -> None:
        if self.progress.renamed:  # needed to resume from this checkpoint without the journal
            runs.set_tags(self.store, self._run_id, {"mltrack.renamed": self.progress.renamed_json()})
        self._retained.reconcile(self._applied)

    _apply_checkpoints_changed = _apply_checkpoints

    def _apply_model(self, record: Mapping[str, Any]) -> None:
        later = JournalReader(self.directory.journal, self._applied).read_new()
        if any(one["type"] == "model" for one in later):  # the resumed training ended with that one
            return
        self.progress.registered = None  # the version of an earlier attempt may be gone
        if self._retained.forget_missing() or str(record["step"]) not in self.progress.models:
            self._retained.reconcile(self._applied)
        model_id = self.progress.models.get(str(record["step"]))
        if model_id is None:
            self._report(f"model of step {record['step']}: its checkpoint was not delivered")
            return
        self.progress.uploading = f"version of {record['registered_name']}"
        self._save(acknowledged=False)
        try:
            self.progress.registered = registered(self.store, self._run_id, model_id, record)
        finally:
            self.progress.uploading = None

    def _apply_resumed(self, record: Mapping[str, Any]) -> None:
        self.progress.outcome = self.progress.end = self.progress.registered = None
        self._retained.forget_missing()  # they may have been deleted since
        if self.info.owns_status:  # the previous trainer's relay may have ended it meanwhile
            runs.reopen_run(self.store, self._run_id)
        for tag in ("mltrack.failure", "mltrack.warnings", "mltrack.superseded_steps"):
            runs.drop_tag(self.store, self._run_id, tag)
        runs.set_tags(self.store, self._run_id, {"mltrack.resumed_from_step": str(record["step"])})

    def _apply_drift(self, record: Mapping[str, Any]) -> None:
        log.warning("step %s had other values when it was computed again: %s", record["step"], record["values"])

    def _apply_outcome(self, record: records.Record) -> None:
        self.progress.outcome = record

    def _apply_end(self, record: records.Record) -> None:
        self.progress.end = record

    def _give_up(self, lines: Sequence[str]) -> None:
        if lines:
            runs.set_tags(
                self.store, self._run_id, {"mltrack.refused": "something; delivery.json in the run directory names it"}
            )
        for line in lines:
            self._report(line)

    def _report(self, line: str) -> None:
        line = line.encode("utf-8", "backslashreplace").decode()  # a file name may hold half a character
        if line not in self.progress.failed:
            log.error("refused: %s", line)
            self.progress.failed.append(line)

    def _acknowledge(self) -> None:
        self.progress.offset = self._behind
        self._save()

    def _save_models(self) -> None:
        """Save; during an upload the server has not answered yet."""
        self._save(acknowledged=self.progress.uploading is None)

    def _save(self, acknowledged: bool = True) -> None:
        self.progress.write(self.directory, acknowledged=acknowledged)
        for on_progress in self._listeners:
            on_progress(self.progress)
