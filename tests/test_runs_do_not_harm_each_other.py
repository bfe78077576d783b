"""Resuming, forking and starting twice: what is there already stays as it is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import commands
import pytest
import tiny
from conftest import write_records
from mlflow import MlflowClient
from ready_store import ready_store

from mltrack import AdvancedTrainer, CheckpointManager
from mltrack.checkpoints import directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, run id, client, words) of a finished training of two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    uri, records = ready_store(folder), write_records(folder / "records.jsonl")
    words = commands.training(records, "--epochs", "2", "--output", "json")
    finished = commands.mltrack(*words, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder, tiny.last_json_line(finished.stdout)["run_id"], MlflowClient(uri), words


def _snapshot(folder, run_id, client):
    run = client.get_run(run_id)
    path = folder / "mltrack-runs" / run_id
    return (
        run.info.status,
        run.data.tags,
        run.data.params,
        (path / "journal").read_bytes(),
        (path / "config.json").read_text(),
    )


def test_a_refused_resume_touches_nothing(trained):
    folder, run_id, client, _ = trained
    before = _snapshot(folder, run_id, client)
    finished = commands.mltrack("train", "--resume", run_id, "--batch-size", "4", "--epochs", "3", cwd=folder)
    assert finished.returncode == 2
    assert (
        "cannot resume: batch_size changed from 8 to 4; use the old value, or --strict-resume false" in finished.stderr
    )
    assert _snapshot(folder, run_id, client) == before


def test_a_resume_with_nothing_left_says_so_and_doubles_nothing(trained):
    folder, run_id, client, _ = trained
    finished = commands.mltrack("train", "--resume", run_id, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    assert "is reached already" in finished.stderr
    assert "use larger epochs or max_steps" in finished.stderr
    for name in client.get_run(run_id).data.metrics:
        steps = [metric.step for metric in client.get_metric_history(run_id, name)]
        assert len(steps) == len(set(steps)), name


def test_a_fork_is_a_run_of_its_own_judged_by_its_own_evaluations(trained):
    folder, run_id, client, _ = trained
    before = _snapshot(folder, run_id, client)
    finished = commands.mltrack(
        "train", "--resume", run_id, "--new-run", "true", "--epochs", "3", "--output", "json", cwd=folder
    )
    assert finished.returncode == 0, finished.stderr
    response = tiny.last_json_line(finished.stdout)
    assert response["run_id"] != run_id
    assert client.get_run(response["run_id"]).data.tags["mltrack.forked_from"] == run_id
    evaluated = [metric.value for metric in client.get_metric_history(response["run_id"], "eval_loss")]
    assert response["best_metric"] == pytest.approx(min(evaluated))
    assert _snapshot(folder, run_id, client) == before


def test_a_run_that_is_being_trained_cannot_be_resumed(trained):
    folder, run_id, _, _ = trained
    path = folder / "mltrack-runs" / run_id / "run.json"
    content = path.read_text()
    import psutil

    path.write_text(
        json.dumps(
            {**json.loads(content), "trainer_pid": os.getpid(), "trainer_started": psutil.Process().create_time()}
        )
    )
    try:
        finished = commands.mltrack("train", "--resume", run_id, "--epochs", "5", cwd=folder)
    finally:
        path.write_text(content)
    assert finished.returncode == 2
    assert (
        f"cannot resume {path.resolve().parent.name}: process {os.getpid()} on {socket.gethostname()} is training it;"
        " wait" in finished.stderr
    )


def test_the_same_mlflow_run_started_twice_has_each_number_once(tmp_path, records_file):
    uri = ready_store(tmp_path)
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    records = records_file("text_classification", 40)
    words = commands.training(records, "--epochs", "1", "--save-every", "1000")
    for steps in ("2", "4"):
        finished = commands.mltrack(
            *words, "--max-steps", steps, cwd=tmp_path, MLFLOW_RUN_ID=run_id, MLFLOW_TRACKING_URI=uri
        )
        assert finished.returncode == 0, finished.stderr
    for name in ("train_loss", "learning_rate", "eval_loss"):
        steps = [metric.step for metric in client.get_metric_history(run_id, name)]
        assert len(steps) == len(set(steps)), name
    assert float(client.get_run(run_id).data.params["baseline_majority_accuracy"]) > 0
    finished = commands.mltrack(
        *words, "--resume", "never", cwd=tmp_path, MLFLOW_RUN_ID=run_id, MLFLOW_TRACKING_URI=uri
    )
    assert finished.returncode == 2
    assert "resume=never" in finished.stderr
    assert f"run {run_id}" in finished.stderr


def test_what_a_living_process_writes_is_no_leftover(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        living, dead = (tmp_path / f"{directory.TEMPORARY_PREFIX}step-1-{pid}" for pid in (other.pid, 2**22 + 1))
        living.mkdir()
        dead.mkdir()
        CheckpointManager(tmp_path)
        assert living.exists()
        assert not dead.exists()
    finally:
        other.kill()
        other.wait()


def test_a_second_training_sets_the_first_ones_checkpoints_aside(tmp_path, records_file):
    source, train, evaluation = tiny.data(records_file("text_classification", 40), "text_classification")
    for _ in range(2):
        AdvancedTrainer(
            tiny.model(source, train), train, evaluation, output_dir=tmp_path / "out", num_epochs=1, device="cpu"
        ).train()
    manager = CheckpointManager(tmp_path / "out")
    assert len(manager.list_checkpoints()) == 1
    assert [path.name for path in (tmp_path / "out" / "earlier-1").iterdir()] == [
        manager.get_latest_checkpoint_info().path.name
    ]


SCRIPT = """
import mlflow, sys
from mltrack import TrainingMetricsTracker
with mlflow.start_run() as run:
    tracker = TrainingMetricsTracker("logs")
    for step in range(1, 51):
        tracker.log_metric("train_loss", 1 / step, step=step)
    print(run.info.run_id)
"""


def test_a_script_that_never_closes_its_tracker_keeps_its_own_status(tmp_path):
    uri = ready_store(tmp_path)
    finished = commands.run(sys.executable, "-c", SCRIPT, cwd=tmp_path, MLFLOW_TRACKING_URI=uri)
    assert finished.returncode == 0, finished.stderr
    run_id, client = finished.stdout.strip().splitlines()[-1], MlflowClient(uri)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run_id, "train_loss")] == list(range(1, 51))
