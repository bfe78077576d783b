"""A run in MLflow's trash: every command says how it is restored, its delivery is settled, and what waited arrives once
it is restored.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import commands
import pytest
from artifact_stores import ArtifactStore, artifact_store
from hf_folders import encoder_folder
from mlflow import MlflowClient
from ready_store import ready_store
from retained_checkpoints import RetainedRun

from mltrack.errors import TrackingError
from mltrack.relay import sync
from mltrack.relay.sync import run as be_the_relay
from mltrack.runs.provenance import undelivered


@pytest.fixture
def run(tmp_path: Path):
    with artifact_store("local", tmp_path / "store") as there:
        made = RetainedRun(tmp_path / "runs" / "one", there, encoder_folder(tmp_path / "encoder" / "step-1"))
        made.keep(1)
        yield made, there


def test_a_complete_delivery_stays_complete(run: tuple[RetainedRun, ArtifactStore], tmp_path: Path) -> None:
    one, there = run
    one.end()
    assert sync(one.directory).complete
    MlflowClient(there.uri).delete_run(one.run_id)
    again = commands.mltrack("sync", one.directory.path, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "one: complete" in again.stdout
    assert f"mlflow runs restore --run-id {one.run_id}" in again.stdout
    assert undelivered(tmp_path / "runs") == []


@pytest.mark.parametrize("whole_experiment", [False, True], ids=["run", "experiment"])
def test_what_had_not_arrived_is_settled_and_arrives_once_it_is_restored(
    whole_experiment, run: tuple[RetainedRun, ArtifactStore], tmp_path: Path
) -> None:
    one, there = run
    assert sync(one.directory).status == "FAILED"
    one.keep(1, 2)
    one.end()
    client = MlflowClient(there.uri)
    experiment = client.get_run(one.run_id).info.experiment_id
    client.delete_experiment(experiment) if whole_experiment else client.delete_run(one.run_id)
    remedy = (
        f"mlflow experiments restore --experiment-id {experiment}"
        if whole_experiment
        else f"mlflow runs restore --run-id {one.run_id}"
    )
    assert undelivered(tmp_path / "runs") == [one.directory]
    refused = commands.mltrack("sync", one.directory.path, cwd=tmp_path)
    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    command = line.partition("'")[2].partition("'")[0]
    assert command.endswith(remedy)
    assert undelivered(tmp_path / "runs") == [], "no training tries again"
    listed = commands.mltrack("runs", "--output-dir", tmp_path / "runs", cwd=tmp_path)
    assert "deleted (" in listed.stdout
    restored = commands.run("sh", "-c", command, cwd=tmp_path)
    assert restored.returncode == 0, restored.stderr
    assert sync(one.directory).complete
    one.assert_store_holds(1, 2)
    assert undelivered(tmp_path / "runs") == []


def test_a_run_that_is_gone_for_good_is_settled_too(run: tuple[RetainedRun, ArtifactStore], tmp_path: Path) -> None:
    one, there = run
    run_id = sync(one.directory).run_id
    one.keep(1, 2)
    MlflowClient(there.uri).delete_run(run_id)
    cleaned = commands.run(
        "mlflow",
        "gc",
        "--backend-store-uri",
        there.uri,
        "--run-ids",
        run_id,
        cwd=tmp_path,
        MLFLOW_TRACKING_URI=there.uri,
    )
    assert cleaned.returncode == 0, cleaned.stderr
    for _ in range(2):
        with pytest.raises(TrackingError, match=f"run {run_id} is gone"):
            sync(one.directory)
    assert undelivered(tmp_path / "runs") == []
    other = ready_store(tmp_path, "other.db")
    assert sync(one.directory, other).run_id != run_id


def test_a_trainer_that_resumes_it_is_told(run: tuple[RetainedRun, ArtifactStore]) -> None:
    one, there = run
    sync(one.directory)
    MlflowClient(there.uri).delete_run(one.run_id)
    info = one.directory.read_run()
    one.directory.write_run(replace(info, trainer_started=(info.trainer_started or 0) + 1))
    one.keep(1, 2)
    be_the_relay(one.directory)
    assert f"mlflow runs restore --run-id {one.run_id}" in one.directory.read_delivery()["rejected"]
