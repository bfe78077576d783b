"""The matrix of deaths: however a training ends, alone or under `mlflow run`, MLflow says how, and it has every point."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import commands
import pytest
from tracked_runs import assert_complete, client, complete, kill, recorded, start_script, until

from mltrack.journal import RunDirectory, find_run_directories

pytestmark = pytest.mark.long

SIGNALS = [(signal.SIGINT, 130, "KILLED"), (signal.SIGTERM, 143, "KILLED"), (signal.SIGKILL, -9, "FAILED")]
"""Signal, the trainer's exit code, the status that the run deserves."""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def training(folder: Path, records: Path, *, under_mlflow_run: bool, **options: str) -> list[str]:
    """The words of a training that goes on for long."""
    tiny = dict(zip(commands.TINY[::2], commands.TINY[1::2], strict=True))
    given = {**tiny, "--dataset-path": str(records), "--epochs": "10000", "--output-dir": str(folder / "runs"), **options}
    if not under_mlflow_run:
        return [sys.executable, "-m", "mltrack", "train", "--task", "code_generation", *(word for pair in given.items() for word in pair)]
    return ["mlflow", "run", str(commands.ROOT), "--env-manager", "local"] + [
        word for name, value in given.items() for word in ("-P", f"{name.removeprefix('--').replace('-', '_')}={value}")
    ]


def start(words: list[str], folder: Path, uri: str):
    program = "import os, sys; os.chdir(sys.argv[1]); os.environ['MLFLOW_TRACKING_URI'] = sys.argv[2]; os.execvp(sys.argv[3], sys.argv[3:])"
    return start_script(program, folder, uri, *words)


def directory_in_training(folder: Path) -> RunDirectory:
    """The run directory, once the loop has made a few steps."""
    return until(
        lambda: next((one for one in find_run_directories(folder / "runs") if one.read_run().trainer_pid and recorded(one) > 12), None),
        "the first steps",
    )


@pytest.mark.parametrize("under_mlflow_run", [False, True], ids=["bare", "mlflow-run"])
@pytest.mark.parametrize(("number", "exit_code", "deserved"), SIGNALS, ids=["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_signal(tmp_path, uri, records_file, number, exit_code, deserved, under_mlflow_run):
    records = records_file("code_generation", 24)
    process = start(training(tmp_path, records, under_mlflow_run=under_mlflow_run), tmp_path, uri)
    try:
        directory = directory_in_training(tmp_path)
        trainer = directory.read_run().trainer_pid
        assert (trainer != process.pid) == under_mlflow_run
        os.kill(trainer, number)
        _, errors = process.communicate(timeout=120)
    finally:
        kill(process.pid)
    assert process.returncode == (1 if under_mlflow_run else exit_code), errors
    until(lambda: complete(directory), "the relay to finish")
    run_id = assert_complete(directory, uri, status="FAILED" if under_mlflow_run else deserved)
    tags = client(uri).get_run(run_id).data.tags
    assert tags["mltrack.status"] == deserved
    assert tags["mltrack.delivery"] == "complete"
    assert ("checkpoint" in errors) == (number != signal.SIGKILL)


@pytest.mark.parametrize("under_mlflow_run", [False, True], ids=["bare", "mlflow-run"])
def test_an_exception_in_the_loop(tmp_path, uri, records_file, under_mlflow_run):
    """A learning rate that makes the loss non-finite after the first step."""
    records = records_file("code_generation", 24)
    words = training(tmp_path, records, under_mlflow_run=under_mlflow_run, **{"--learning-rate": "1e30"})
    process = start(words, tmp_path, uri)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    (directory,) = find_run_directories(tmp_path / "runs")
    until(lambda: complete(directory), "the relay to finish")
    run_id = assert_complete(directory, uri, status="FAILED")
    tags = client(uri).get_run(run_id).data.tags
    assert tags["mltrack.status"] == "FAILED"
    assert tags["mltrack.failure"]


LOOP = """
import os, sys
from mltrack.journal import RunInfo, records
from mltrack.tracking import TrainingMetricsTracker

folder, uri, death = sys.argv[1:]
given = os.environ.get("MLFLOW_RUN_ID")
tracker = TrainingMetricsTracker(folder, run=RunInfo(local_id="loop", run_id=given, tracking_uri=uri, created_ms=records.now_ms()))
tracker.start_delivery()
with tracker:
    for step in range(1, 101):
        tracker.log_metric("train_loss", 1 / step, step)
    if death == "exit":
        sys.exit(1)
    if death == "os-exit":
        os._exit(1)
    if death == "exception":
        raise RuntimeError("the loop's own mistake")
    if death == "keyboard":
        raise KeyboardInterrupt
"""
DEATHS = [("exit", "FAILED"), ("os-exit", "FAILED"), ("exception", "FAILED"), ("keyboard", "KILLED"), ("none", "FINISHED")]


@pytest.mark.parametrize(("death", "deserved"), DEATHS, ids=[death for death, _ in DEATHS])
def test_the_end_of_anyones_loop(tmp_path, uri, death, deserved):
    process = start_script(LOOP, tmp_path / "run", uri, death)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode == 0) == (death == "none"), errors
    directory = RunDirectory(tmp_path / "run")
    until(lambda: complete(directory), "the relay to finish")
    run_id = assert_complete(directory, uri, status=deserved)
    assert client(uri).get_run(run_id).data.tags["mltrack.status"] == deserved


@pytest.mark.parametrize(("death", "deserved"), [("exit", "FAILED"), ("keyboard", "KILLED")], ids=["exit", "keyboard"])
def test_the_end_of_anyones_loop_under_mlflow_run(tmp_path, uri, death, deserved):
    project = tmp_path / "project"
    project.mkdir()
    (project / "loop.py").write_text(LOOP)
    (project / "MLproject").write_text(
        f"name: loop\nentry_points:\n  main:\n    parameters:\n      death: string\n    command: python loop.py {tmp_path}/run {uri} {{death}}\n"
    )
    finished = commands.run("mlflow", "run", project, "--env-manager", "local", "-P", f"death={death}", cwd=tmp_path, MLFLOW_TRACKING_URI=uri)
    assert finished.returncode == 1, finished.stderr
    directory = RunDirectory(tmp_path / "run")
    until(lambda: complete(directory), "the relay to finish")
    run_id = assert_complete(directory, uri, status="FAILED")
    assert client(uri).get_run(run_id).data.tags["mltrack.status"] == deserved
