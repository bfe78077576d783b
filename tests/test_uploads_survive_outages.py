"""Models and artifacts through a server that fails in the middle: everything arrives once, one READY logged model a
step, and the points do not wait.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy, faulty_proxy
from hf_folders import encoder_folder
from tracked_runs import (
    assert_complete,
    client,
    held_points,
    journal_points,
    kill,
    relay_pid,
    start_script,
    sync,
    until,
)

from mltrack import relay
from mltrack.journal import RunDirectory, RunInfo, records
from mltrack.store import StoreUnavailable, artifacts, connect, models_of_run
from mltrack.tracking import TrainingMetricsTracker

STEPS = (1, 2)
WEIGHTS = "model.safetensors"


def proxied(server: str, matching: str = "") -> Iterator[FaultyProxy]:
    with faulty_proxy(server, matching=matching) as proxy:
        yield proxy


@pytest.fixture
def proxy(server: str) -> Iterator[FaultyProxy]:
    """Faults meet every request."""
    yield from proxied(server)


@pytest.fixture
def files_proxy(server: str) -> Iterator[FaultyProxy]:
    """Faults meet the transfers of files alone."""
    yield from proxied(server, "mlflow-artifacts")


def kept_checkpoint(folder: Path, step: int) -> dict[str, object]:
    """A checkpoint on disk, as the journal names it."""
    path = encoder_folder(folder / "checkpoints" / f"step-{step:08d}")
    values = {
        "metric_name": "eval_loss",
        "metric_value": 1 / step,
        "metrics": {"eval_loss": 1 / step},
        "reasons": ["best"],
    }
    return {"step": step, "epoch": 0, "path": path, "created_ms": records.now_ms(), **values}


def ended_run(folder: Path, uri: str) -> RunDirectory:
    """A run directory with points, two kept checkpoints and a report, of which nothing was delivered."""
    tracker = TrainingMetricsTracker(
        folder, run=RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms())
    )
    kept = []
    for step in STEPS:
        tracker.log_metrics({"train_loss": 2 / step, "eval_loss": 1 / step}, step)
        kept.append(kept_checkpoint(folder, step))
        tracker.log_checkpoints(kept, best_step=step)
    (folder / "report.txt").write_text("as it was written")
    tracker.log_artifact(folder / "report.txt", "reports")
    tracker.log_metric("train_loss", 0.5, step=3)
    tracker.close()
    return tracker.directory


def assert_everything_is_there_once(directory: RunDirectory, server: str, folder: Path) -> None:
    run_id = assert_complete(directory, server, status="FINISHED")
    store = connect(server)
    models = models_of_run(store, run_id)
    folder.mkdir()
    assert [(one["step"], one["status"], one["metrics"]) for one in models] == [
        (step, "READY", {"eval_loss": 1 / step}) for step in STEPS
    ]
    for one in models:
        fetched = artifacts.repository(store, one["artifact_location"]).download_artifacts(WEIGHTS, str(folder))
        assert digest(Path(fetched)) == digest(directory.path / "checkpoints" / f"step-{one['step']:08d}" / WEIGHTS)
    outputs = client(server).get_run(run_id).outputs.model_outputs
    assert sorted((one.model_id, one.step) for one in outputs) == sorted(
        (one["model_id"], one["step"]) for one in models
    )
    stored = artifacts.list_files(store, run_id)
    assert stored["reports/report.txt"] == len("as it was written")
    assert {f"checkpoints/{step}/state/optimizer.safetensors" for step in STEPS} <= set(stored)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


EVERY = 3
"""The fault meets the first request of a delivery, the fourth, ...: all of them would take minutes."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ["cut", "lose_reply"])
def test_a_fault_before_in_and_after_everything_that_is_asked(
    tmp_path: Path, proxy: FaultyProxy, server: str, fault: str
):
    prepared = ended_run(tmp_path / "prepared", proxy.uri)
    for position in range(0, 300, EVERY):
        directory = RunDirectory(shutil.copytree(prepared.path, tmp_path / f"run{position}"))
        info = directory.read_run()
        info.local_id = uuid.uuid4().hex
        directory.write_run(info)
        proxy.next_faults.extend(["none"] * position + [fault])
        while not directory.read_delivery().get("complete"):
            with suppress(StoreUnavailable):
                relay.sync(directory)
        over = bool(proxy.next_faults)
        proxy.next_faults.clear()
        assert_everything_is_there_once(directory, server, tmp_path / f"back{position}")
        if over:  # the delivery took fewer requests
            break
    assert proxy.count(fault) > 10


def test_points_and_status_do_not_wait_for_an_artifact_store_that_is_away(
    tmp_path: Path, files_proxy: FaultyProxy, server: str
):
    directory = ended_run(tmp_path / "run", files_proxy.uri)
    files_proxy.fault = "unavailable"
    for _ in range(2):
        refused = sync(directory)
        assert refused.returncode == 1
        assert "Traceback" not in refused.stderr
    progress = directory.read_delivery()
    assert not progress["complete"]
    assert progress["failed"] == []
    run = client(server).get_run(progress["run_id"])
    assert (run.info.status, run.data.tags["mltrack.delivery"]) == ("FINISHED", "pending")
    assert {name: len(points) for name, points in held_points(server, run.info.run_id).items()} == {
        name: len(points) for name, points in journal_points(directory).items()
    }
    files_proxy.fault = "none"
    finished = sync(directory)
    assert finished.returncode == 0, finished.stderr
    assert_everything_is_there_once(directory, server, tmp_path / "back")


def test_a_slow_transfer_is_waited_for(tmp_path: Path, files_proxy: FaultyProxy, server: str):
    directory = ended_run(tmp_path / "run", files_proxy.uri)
    files_proxy.delay_s = 6.0
    files_proxy.next_faults.append("slow")
    relay.sync(directory)
    assert files_proxy.count("slow") == 1
    assert_everything_is_there_once(directory, server, tmp_path / "back")


CHECKPOINT = """
import json, os, sys, time
from mltrack.journal import RunInfo, records
from mltrack.tracking import TrainingMetricsTracker

folder, uri, kept = sys.argv[1:]
tracker = TrainingMetricsTracker(folder, run=RunInfo(local_id=os.urandom(8).hex(), tracking_uri=uri, created_ms=records.now_ms()))
tracker.start_delivery()
tracker.log_metric("eval_loss", 1.0, step=1)
while not os.path.exists(folder + "/go"):
    time.sleep(0.02)
tracker.log_checkpoints([json.loads(kept)], best_step=1)
print(tracker.close(), flush=True)
"""


def test_an_upload_to_a_dead_server_costs_ten_seconds_at_the_end(tmp_path: Path, proxy: FaultyProxy, server: str):
    directory = RunDirectory(tmp_path / "run")
    kept = {**kept_checkpoint(directory.path, 1), "path": str(directory.path / "checkpoints" / "step-00000001")}
    process = start_script(CHECKPOINT, directory.path, proxy.uri, json.dumps(kept))
    until(lambda: directory.read_delivery().get("sent"), "the first point")
    proxy.fault = "cut"
    started = time.monotonic()
    (directory.path / "go").touch()
    out, errors = process.communicate(timeout=60)
    assert out == "pending\n", errors
    assert time.monotonic() - started < 20
    kill(relay_pid(directory))
    proxy.fault = "none"
    finished = sync(directory)
    assert finished.returncode == 0, finished.stderr
    run_id = assert_complete(directory, server, status="FINISHED")
    assert [(one["step"], one["status"]) for one in models_of_run(connect(server), run_id)] == [(1, "READY")]
