"""The matrix of deaths: however a training ends, alone or under `mlflow run`, MLflow says how, and it has every
point.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import tiny
from mlflow import MlflowClient
from ready_store import ready_store
from tracked_runs import assert_complete, client, complete, kill, recorded, start_script, until

from mltrack.journal import RunDirectory, find_run_directories

pytestmark = pytest.mark.long

SIGNALS = [(signal.SIGINT, 130, "KILLED"), (signal.SIGTERM, 143, "KILLED"), (signal.SIGKILL, -9, "FAILED")]
"""Signal, the trainer's exit code, the status that the run deserves."""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return ready_store(tmp_path)


def training(folder: Path, records: Path, *, under_mlflow_run: bool, **options: str) -> list[str]:
    """The words of a training that goes on for long."""
    tiny = dict(zip(commands.TINY[::2], commands.TINY[1::2], strict=True))
    given = {
        **tiny,
        "--dataset-path": str(records),
        "--epochs": "10000",
        "--output-dir": str(folder / "runs"),
        **options,
    }
    if not under_mlflow_run:
        return [
            sys.executable,
            "-m",
            "mltrack",
            "train",
            "--task",
            "code_generation",
            *(word for pair in given.items() for word in pair),
        ]
    return ["mlflow", "run", str(commands.ROOT), "--env-manager", "local"] + [
        word for name, value in given.items() for word in ("-P", f"{name.removeprefix('--').replace('-', '_')}={value}")
    ]


def start(words: list[str], folder: Path, uri: str):
    program = (
        "import os, sys; os.chdir(sys.argv[1]); os.environ['MLFLOW_TRACKING_URI'] = sys.argv[2]; os.execvp(sys.argv[3],"
        " sys.argv[3:])"
    )
    return start_script(program, folder, uri, *words)


def directory_in_training(folder: Path) -> RunDirectory:
    """The run directory, once the loop has made a few steps."""
    return until(
        lambda: next(
            (one for one in find_run_directories(folder / "runs") if one.read_run().trainer_pid and recorded(one) > 12),
            None,
        ),
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
DEATHS = [
    ("exit", "FAILED"),
    ("os-exit", "FAILED"),
    ("exception", "FAILED"),
    ("keyboard", "KILLED"),
    ("none", "FINISHED"),
]


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
        "name: loop\nentry_points:\n  main:\n    parameters:\n      death: string\n    command: python loop.py"
        f" {tmp_path}/run {uri} {{death}}\n"
    )
    finished = commands.run(
        "mlflow",
        "run",
        project,
        "--env-manager",
        "local",
        "-P",
        f"death={death}",
        cwd=tmp_path,
        MLFLOW_TRACKING_URI=uri,
    )
    assert finished.returncode == 1, finished.stderr
    directory = RunDirectory(tmp_path / "run")
    until(lambda: complete(directory), "the relay to finish")
    run_id = assert_complete(directory, uri, status="FAILED")
    assert client(uri).get_run(run_id).data.tags["mltrack.status"] == deserved


# -- own loops that close nothing

OPEN = """
import os, sys
from mltrack import TrainingMetricsTracker

tracker = TrainingMetricsTracker(sys.argv[1], run_id=sys.argv[3], tracking_uri=sys.argv[2])
for step in range(1, 101):
    tracker.log_metric("train_loss", 1 / step, step)
"""
UNCLOSED = {
    "": "FINISHED",
    "sys.exit(1)": "FAILED",
    "raise SystemExit(2)": "FAILED",
    "raise RuntimeError('its own mistake')": "FAILED",
    "import code; code.InteractiveInterpreter().runcode('1 / 0')": (
        "FINISHED"
    ),  # a failed cell of a notebook whose kernel ends well
    "os._exit(0)": "FAILED",
}


@pytest.mark.parametrize(
    ("way_out", "deserved"),
    UNCLOSED.items(),
    ids=["the-end", "exit-1", "system-exit", "exception", "failed-cell", "os-exit"],
)
def test_a_script_that_never_closes_its_tracker(tmp_path, uri, way_out, deserved):
    run_id = MlflowClient(uri).create_run("0").info.run_id
    process = start_script(OPEN + way_out, tmp_path / "run", uri, run_id)
    _, errors = process.communicate(timeout=120)
    directory = RunDirectory(tmp_path / "run")
    until(lambda: complete(directory), "the relay to finish")
    assert assert_complete(directory, uri, status=deserved) == run_id, errors
    failure = client(uri).get_run(run_id).data.tags.get("mltrack.failure")
    assert (failure is None) == (deserved == "FINISHED")


FORK = """
import os, sys
from mltrack import TrainingMetricsTracker

with TrainingMetricsTracker(sys.argv[1], run_id=sys.argv[3], tracking_uri=sys.argv[2]) as tracker:
    tracker.log_metric("train_loss", 1.0, 1)
    for leave in (sys.exit, os._exit):
        child = os.fork()
        if child == 0:
            leave(3)
        os.waitpid(child, 0)
    for step in range(2, 101):
        tracker.log_metric("train_loss", 1 / step, step)
"""


def test_children_that_exit_inside_the_with_end_nothing(tmp_path, uri):
    run_id = MlflowClient(uri).create_run("0").info.run_id
    process = start_script(FORK, tmp_path / "run", uri, run_id)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert assert_complete(RunDirectory(tmp_path / "run"), uri, status="FINISHED") == run_id
    assert len(client(uri).get_metric_history(run_id, "train_loss")) == 100


# -- trainings whose end goes wrong too

DIVERGES = ("--learning-rate", "1e30", "--epochs", "50", "--save-every", "1000000")


def begun(folder: Path, uri: str) -> tuple[str, Path]:
    """(a run that `mlflow run` would have made, its run directory)."""
    run_id = MlflowClient(uri).create_run("0").info.run_id
    path = folder / "runs" / run_id
    path.mkdir(parents=True)
    return run_id, path


def test_a_training_that_diverges_and_cannot_write_its_exports_has_failed(tmp_path, uri, records_file):
    run_id, path = begun(tmp_path, uri)
    (path / "metrics.json").mkdir()
    words = (
        "train",
        "--task",
        "code_generation",
        "--dataset-path",
        records_file("code_generation", 24),
        *commands.TINY,
        *DIVERGES,
        "--output",
        "json",
    )
    ended = commands.mltrack(
        *words, "--output-dir", tmp_path / "runs", cwd=tmp_path, MLFLOW_TRACKING_URI=uri, MLFLOW_RUN_ID=run_id
    )
    response = tiny.last_json_line(ended.stdout)
    assert (ended.returncode, response["status"], response["delivery"]) == (1, "FAILED", "complete"), ended.stderr
    assert "it did not reach the weights" in response["errors"][0]
    assert response["warnings"][:1] == [
        f"metrics.json could not be written: IsADirectoryError: [Errno 21] Is a directory: '{path}/metrics.json'"
    ]
    assert "Traceback" not in ended.stderr
    assert assert_complete(RunDirectory(path), uri, status="FAILED") == run_id
    assert client(uri).get_run(run_id).data.tags["mltrack.failure"] == response["errors"][0][:8000]


HANDLER_FAILS = """
import sys
from mltrack import Callback, CheckpointManager, TrainModelRequest, TrainModelUseCase, TrainingMetricsTracker

records, uri, runs, name, what = sys.argv[1:]
error = {"cuda": RuntimeError("CUDA error: an illegal memory access was encountered"), "memory": MemoryError(), "keyboard": KeyboardInterrupt()}[what]

def fails(*args, **kwargs):
    raise error

class Diverges(Callback):
    def on_step(self, trainer, metrics):
        if trainer.state.step == 3:
            raise error

for whose, names in {CheckpointManager: ["close", "list_checkpoints"], TrainingMetricsTracker: ["export_to_json", "set_tags"]}.items():
    for one in names if what != "keyboard" or whose is CheckpointManager else []:
        setattr(whose, one, fails if one != "set_tags" else (lambda self, values, real=whose.set_tags: fails() if "mltrack.failure" in values else real(self, values)))
request = TrainModelRequest(task="text_classification", dataset_path=records, model_name="scratch:tiny", max_length=64, tracking_uri=uri, output_dir=runs)
response = TrainModelUseCase(callbacks=[Diverges()]).execute(request)
print(response.status, response.exit_code, response.run_id)
"""


@pytest.mark.parametrize(
    ("what", "deserved"), [("cuda", "FAILED 1"), ("memory", "FAILED 1"), ("keyboard", "KILLED 130")]
)
def test_every_step_of_the_failure_handler_may_fail_itself(tmp_path, uri, records_file, what, deserved):
    process = start_script(HANDLER_FAILS, records_file("text_classification", 24), uri, tmp_path / "runs", "x", what)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert out.rpartition(" ")[0].strip() == deserved
    directory = RunDirectory(tmp_path / "runs" / out.split()[-1])
    until(lambda: complete(directory), "the relay to finish")
    assert_complete(directory, uri, status=deserved.split()[0])


FULL = """
import os, sys
from mltrack import Callback, TrainModelRequest, TrainModelUseCase

records, uri, disk = sys.argv[1:]

class Fills(Callback):
    def on_step(self, trainer, metrics):
        if trainer.state.step == 3:
            with open(os.path.join(disk, "fill"), "wb", buffering=0) as file:
                try:
                    while file.write(bytes(1 << 16)):
                        pass
                except OSError:
                    pass

request = TrainModelRequest(task="text_classification", dataset_path=records, model_name="scratch:tiny", max_length=64, learning_rate=2e-3, epochs=50,
                            save_every=1000000, tracking_uri=uri, output_dir=os.path.join(disk, "runs"))
response = TrainModelUseCase(callbacks=[Fills()]).execute(request)
print(response.status, response.exit_code, response.success, response.run_id)
"""


def small_disk(folder: Path) -> list[str]:
    """The words in front of a command that has a file system of 9 MB in `folder`, which is gone with it."""
    folder.mkdir()
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*words, "mount -t tmpfs none $0", str(folder)], capture_output=True, check=False).returncode
    ):
        pytest.skip("no mount namespace for this user")
    return [*words, 'mount -t tmpfs -o size=9m none "$0" && exec "$@"', str(folder)]


def test_a_training_that_ends_on_a_really_full_disk_has_failed(tmp_path, uri, records_file):
    """Neither the failure nor the end can be written: what the journal does not say is no success."""
    small = small_disk(tmp_path / "disk")
    ended = commands.run(
        *small,
        sys.executable,
        "-c",
        FULL,
        records_file("text_classification", 24),
        uri,
        tmp_path / "disk",
        cwd=tmp_path,
    )
    assert ended.stdout.startswith("FAILED 1 False"), (ended.stdout, ended.stderr)
    until(lambda: [run.info.status for run in client(uri).search_runs(["0"])] == ["FAILED"], "the status")
