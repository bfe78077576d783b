"""Reads the points of a run from MLflow.

Invariant: a point has the value, step and timestamp that it was sent with; nothing is sampled or left out."""

from __future__ import annotations

from mltrack.journal import records
from mltrack.store.connection import Store
from mltrack.store.refusal import translated
from mltrack.store.runs import LOCAL_ID_TAG, Point, RunInfo, list_runs


def points_of(store: Store, run_id: str) -> list[Point]:
    """Every point that the run's journal recorded, metric by metric: without what relays measured of the machine."""
    with translated(store, f"reading the metrics of run {run_id}"):
        held = sorted(store.client.get_run(run_id).data.metrics)
        keys = [key for key in held if not key.startswith("system/") or key in records.COSTS]
        found = [point for key in keys for point in store.client.get_metric_history(run_id, key)]
    return [(point.key, float(point.value), int(point.timestamp), int(point.step)) for point in found]


def newest_point_ms(store: Store, run_id: str) -> int:
    """When the run's newest point was recorded, in milliseconds since 1970; 0 if it has none."""
    with translated(store, f"reading the metrics of run {run_id}"):
        return max((int(metric.timestamp) for metric in store.client.get_run(run_id).data._metric_objs), default=0)


def run_of_local_id(store: Store, local_id: str) -> RunInfo | None:
    """The run that was first recorded offline under this local id; searched among the newest 1,000."""
    return next((run for run in list_runs(store, max_results=1000) if run.tags.get(LOCAL_ID_TAG) == local_id), None)
