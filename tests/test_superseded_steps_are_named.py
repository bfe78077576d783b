"""Points of steps that a shorter, resumed training never takes again stay in MLflow, which cannot delete them; a tag
names those steps.
"""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from ready_store import ready_store

from mltrack.journal import RunInfo, records
from mltrack.relay import sync
from mltrack.tracking import TrainingMetricsTracker


def test_they_are_named_until_a_longer_training_takes_them(tmp_path: Path) -> None:
    uri = ready_store(tmp_path)
    client = MlflowClient(uri)

    def trained(steps: range, *, resumed: int | None, status: str = "FINISHED") -> tuple[list[int], str | None]:
        tracker = TrainingMetricsTracker(tmp_path / "run", resume=resumed is not None)
        if resumed is None:
            tracker.directory.write_run(RunInfo(local_id="one", tracking_uri=uri, created_ms=records.now_ms()))
        else:
            tracker.resume_from(resumed, epoch=0)
        for step in steps:
            tracker.log_metrics({"train_loss": 1 / step}, step, epoch=0)
        tracker.log_epoch_metric("train_loss", 1.0, epoch=0)
        tracker.end(status)
        tracker.close()
        run_id = sync(tracker.directory).run_id
        assert run_id is not None
        tags = client.get_run(run_id).data.tags
        return [point.step for point in client.get_metric_history(run_id, "train_loss")], tags.get(
            "mltrack.superseded_steps"
        )

    ten = list(range(1, 11))
    assert trained(range(1, 11), resumed=None, status="KILLED") == (ten, None)
    assert trained(range(5, 6), resumed=4, status="KILLED") == (ten, None), "it may still take them"
    assert trained(range(5, 7), resumed=4) == (ten, "7-10")
    assert trained(range(7, 7), resumed=6) == (ten, "7-10")
    assert trained(range(7, 13), resumed=6) == ([*ten, 11, 12], None)
