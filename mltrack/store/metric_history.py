"""The points of a run read back from MLflow.

Invariant: a point comes back with the value, the step and the timestamp that it was sent with; nothing is sampled or
left out."""

from __future__ import annotations

from mltrack.store.connection import Store
from mltrack.store.refusal import translated
from mltrack.store.runs import LOCAL_ID_TAG, Point, RunInfo, list_runs


def points_of(store: Store, run_id: str, *, without: str = "system/") -> list[Point]:
    """Every point of the run, metric by metric.

    Args:
        without: metrics whose names begin so are left out.
    """
    with translated(store, f"reading the metrics of run {run_id}"):
        keys = [key for key in sorted(store.client.get_run(run_id).data.metrics) if not key.startswith(without)]
        found = [point for key in keys for point in store.client.get_metric_history(run_id, key)]
    return [(point.key, float(point.value), int(point.timestamp), int(point.step)) for point in found]


def newest_point_ms(store: Store, run_id: str) -> int:
    """When the run's newest point was recorded, in milliseconds since 1970; 0 where it has none."""
    with translated(store, f"reading the metrics of run {run_id}"):
        return max((int(metric.timestamp) for metric in store.client.get_run(run_id).data._metric_objs), default=0)


def run_of_local_id(store: Store, local_id: str) -> RunInfo | None:
    """The run that was recorded under a local id first, offline; looked for among the newest 1,000."""
    return next((run for run in list_runs(store, max_results=1000) if run.tags.get(LOCAL_ID_TAG) == local_id), None)
