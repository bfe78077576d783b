"""A journal projected onto an MLflow run.

Invariant: sending is at least once and in order; timestamps were fixed when the point was recorded, so that a point sent twice is
stored once. What the server refuses is reported and does not hold up the rest.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from mltrack.errors import MltrackError
from mltrack.journal import JournalReader, RunDirectory, records
from mltrack.relay.kept_models import KeptModels
from mltrack.relay.progress import Progress
from mltrack.store import Store, StoreRejected, StoreUnavailable, artifacts, params, registry, runs

BATCH_POINTS = 1000
MAX_INFINITIES_NAMED = 50
MAX_RENAMED_TOLD = 100
log = logging.getLogger("mltrack.relay")

Point = tuple[str, float, int, int]


class Projection:
    """Delivers the journal of one run directory to one store.

    Args:
        directory: its run.json names the run; an offline one gets its MLflow run here.
        store: the connected tracking server.
        on_progress: called after each acknowledged request.
    """

    def __init__(self, directory: RunDirectory, store: Store, on_progress: Callable[[Progress], None] | None = None):
        self.directory, self.store = directory, store
        self._listeners = [on_progress] if on_progress is not None else []
        self.info = directory.read_run()
        self.progress = Progress.read(directory, store.tracking_uri)
        self._reader = JournalReader(directory.journal, self.progress.offset)
        self._behind = self.progress.offset
        """Everything before this byte is applied or waits in `_points`."""
        self._points: list[Point] = []
        self._run_id = self._open_run()
        self._kept = KeptModels(store, self._run_id, directory, self.progress, self._save)
        self._save(acknowledged=False)

    def deliver(self) -> int:
        """Send everything that was recorded since the last call; returns the number of records.

        Raises:
            StoreUnavailable: the server does not answer; nothing that it has not acknowledged is counted as delivered, and the next
                call of a new Projection begins there.
        """
        count = 0
        for record in self._reader.read_new():
            count += 1
            if record["type"] == "metrics":
                self._points.extend(self._named(_points(record)))
                self._note_infinities(record)
                self._behind = self._reader.offset
                if len(self._points) >= BATCH_POINTS:
                    self._flush()
                continue
            self._flush()
            self._apply(record)
            self._behind = self._reader.offset
            self._acknowledge()
        self._flush()
        return count

    def finish(self) -> None:
        """Give the MLflow run its final status and mark the delivery as complete."""
        recorded = self.progress.end
        end = recorded or {"status": "FAILED", "exit_code": 1, "time_ms": records.now_ms()}
        status = end["status"]
        tags = {"mltrack.status": status, "mltrack.delivery": "complete"}
        if recorded is None:
            tags["mltrack.failure"] = "the trainer ended without saying so"
        if self.progress.infinite:
            tags["mltrack.infinite_values"] = "; ".join(self.progress.infinite)
        if self.progress.renamed:
            tags["mltrack.renamed"] = json.dumps(self.progress.renamed)
        if self._reader.damaged:
            tags["mltrack.journal_damage"] = ", ".join(f"bytes {start}-{stop}" for start, stop in self._reader.damaged)
        runs.set_tags(self.store, self._run_id, tags)
        if self.info.owns_status or (recorded is None and runs.get_run(self.store, self._run_id).status == "RUNNING"):
            shown = "FAILED" if self.info.under_mlflow_run and status == "KILLED" else status
            runs.finish_run(self.store, self._run_id, shown, end["time_ms"])
            self.progress.status = shown
        self.progress.complete = True
        self._save()

    def _note_infinities(self, record: Mapping[str, Any]) -> None:
        """MLflow stores an infinity as the largest finite number; a tag says where."""
        for name, value in {**record["values"], **record["timing"]}.items():
            if math.isinf(value) and len(self.progress.infinite) < MAX_INFINITIES_NAMED:
                self.progress.infinite.append(f"{name} at step {record['step']}: {value}")

    def _named(self, points: list[Point]) -> list[Point]:
        return [(self._name(name), value, time_ms, step) for name, value, time_ms, step in points]

    def _name(self, name: str) -> str:
        shown = name_in_mlflow(name)
        if shown != name and len(self.progress.renamed) < MAX_RENAMED_TOLD:
            self.progress.renamed[shown] = name
        return shown

    def _open_run(self) -> str:
        info = self.info
        if info.run_id is None or not self._is_here(info.run_id):
            run = runs.create_run(
                self.store,
                experiment_name=info.experiment_name,
                run_name=info.run_name,
                tags=info.tags,
                idempotency_key=info.local_id,
                start_time_ms=info.created_ms,
            )
            belongs_elsewhere = info.run_id is not None
            info.run_id, info.experiment_id, info.tracking_uri = run.run_id, run.experiment_id, self.store.tracking_uri
            if not belongs_elsewhere:
                self.directory.write_run(info)
        assert info.run_id is not None
        self.progress.run_id = info.run_id
        self.progress.complete = False
        return info.run_id

    def _is_here(self, run_id: str) -> bool:
        """False where this is another store than the run's own and does not hold it."""
        if self.store.tracking_uri == self.info.tracking_uri:
            return True
        try:
            runs.get_run(self.store, run_id)
        except StoreRejected:
            return False
        return True

    def _flush(self) -> None:
        """Send the points that wait, in requests of at most `BATCH_POINTS`."""
        while self._points:
            batch = self._points[:BATCH_POINTS]
            self._send(batch)
            del self._points[: len(batch)]
        if self._behind != self.progress.offset:
            self._acknowledge()

    def _send(self, batch: list[Point]) -> None:
        try:
            runs.log_points(self.store, self._run_id, batch)
            self.progress.sent += len(batch)
        except StoreRejected as error:
            # raises where it is the run that takes nothing, deleted by somebody: then no point is to blame, and none is given up
            runs.set_tags(self.store, self._run_id, {"mltrack.refused": "some points; delivery.json in the run directory names them"})
            if len(batch) == 1:
                self._report(f"{batch[0][0]} at step {batch[0][3]}: {error}")
                return
            half = len(batch) // 2
            self._send(batch[:half])
            self._send(batch[half:])

    def _apply(self, record: records.Record) -> None:
        try:
            handler = getattr(self, f"_apply_{record['type']}", None)
            if handler is not None:
                handler(record)
        except StoreUnavailable:
            raise
        except (MltrackError, OSError) as error:
            self._report(f"{record['type']}: {error}")

    def _apply_params(self, record: Mapping[str, Any]) -> None:
        different = params.log_params(self.store, self._run_id, {self._name(name): value for name, value in record["values"].items()})
        if different:
            shown = "; ".join(f"{name}: {value}" for name, value in different.items())
            runs.set_tags(self.store, self._run_id, {"mltrack.param_differences": shown})

    def _apply_tags(self, record: Mapping[str, Any]) -> None:
        runs.set_tags(self.store, self._run_id, record["values"])

    def _apply_inputs(self, record: Mapping[str, Any]) -> None:
        runs.log_inputs(self.store, self._run_id, record["datasets"])

    def _apply_artifact(self, record: Mapping[str, Any]) -> None:
        path = self.directory.path / record["path"]
        if path.exists():
            artifacts.put_file(self.store, self._run_id, path, record["artifact_path"] or None)
        else:
            self._report(f"artifact {record['path']}: no such file in {self.directory.path}")

    def _apply_checkpoints(self, record: Mapping[str, Any]) -> None:
        self._kept.reconcile(record)

    def _apply_model(self, record: Mapping[str, Any]) -> None:
        model_id = self.progress.models.get(str(record["step"]))
        if model_id is None:
            self._report(f"model of step {record['step']}: its checkpoint was not delivered")
            return
        name = record["registered_name"]
        version = registry.register(self.store, name, model_id, tags=record["tags"], description=record["description"])
        aliases = ["challenger"]
        has_champion = registry.get_alias(self.store, name, "champion") not in (None, version)
        if record["promote"] == "always" or (record["promote"] == "auto" and not has_champion):
            aliases.append("champion")
        for alias in aliases:
            registry.set_alias(self.store, name, alias, version)
        self.progress.registered = {"name": name, "version": str(version), "aliases": aliases}

    def _apply_resumed(self, record: Mapping[str, Any]) -> None:
        self.progress.end = None
        runs.drop_tag(self.store, self._run_id, "mltrack.failure")
        runs.set_tags(self.store, self._run_id, {"mltrack.resumed_from_step": str(record["step"])})

    def _apply_drift(self, record: Mapping[str, Any]) -> None:
        log.warning("step %s came out otherwise when it was computed again: %s", record["step"], record["values"])

    def _apply_end(self, record: records.Record) -> None:
        self.progress.end = record

    def _report(self, line: str) -> None:
        log.error("refused: %s", line)
        self.progress.failed.append(line)

    def _acknowledge(self) -> None:
        self.progress.offset = self._behind
        self._save()

    def _save(self, acknowledged: bool = True) -> None:
        self.progress.write(self.directory, acknowledged=acknowledged)
        for on_progress in self._listeners:
            on_progress(self.progress)


def name_in_mlflow(name: str) -> str:
    """`name`, or where MLflow refuses it a legal one that no other name is given: its checksum is at the end."""
    legal = runs.legal_name(name)
    if legal == name:
        return name
    return f"{legal[: runs.MAX_NAME_LENGTH - 9]}-{zlib.crc32(name.encode()):08x}"


def _points(record: Mapping[str, Any]) -> list[Point]:
    values = {**record["values"], **record["timing"]}
    return [(name, value, record["time_ms"], record["step"]) for name, value in values.items()]
