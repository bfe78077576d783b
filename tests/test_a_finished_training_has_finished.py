"""What comes after a training cannot undo it: reports, pictures, exports and old checkpoints fail alone, each with a
line, within bounds of memory.
"""

from __future__ import annotations

import json
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
from tracked_runs import assert_complete, complete, start_script, until

from mltrack import TrainModelRequest, TrainModelUseCase
from mltrack.cli.summary import print_summary
from mltrack.evaluation import figures
from mltrack.journal import RunDirectory
from mltrack.runs import outcome


def test_reports_pictures_and_exports_fail_alone(here, records_file, monkeypatch, capsys):
    uri = ready_store(here)

    def fails(error: BaseException):
        def figure(*_):
            next(here.glob("runs/*/run.json")).with_name("metrics.csv").mkdir(exist_ok=True)
            raise error

        return figure

    monkeypatch.setattr(outcome, "learning_curves_figure", fails(OSError(28, "No space left on device")))
    monkeypatch.setattr(outcome, "token_lengths_figure", fails(SystemExit(3)))
    monkeypatch.setattr(figures, "confusion_matrix_figure", fails(MemoryError()))
    request = TrainModelRequest(
        task="text_classification", dataset_path=str(records_file("text_classification")), model_name="scratch:tiny", epochs=1, max_length=64,
        tracking_uri=uri, output_dir="runs",
    )  # fmt: skip
    response = TrainModelUseCase().execute(request)
    assert (response.success, response.status, response.exit_code, response.errors) == (True, "FINISHED", 0, [])
    run_id, folder = response.run_id, (here / "runs" / response.run_id).resolve()
    assert response.warnings == [
        "learning curves could not be made: OSError: [Errno 28] No space left on device",
        "token lengths could not be made: SystemExit: 3",
        "confusion matrix could not be made: MemoryError",
        f"metrics.csv could not be written: IsADirectoryError: [Errno 21] Is a directory: '{folder}/metrics.csv'",
    ]
    assert_complete(RunDirectory(folder), uri, status="FINISHED")
    client = MlflowClient(uri)
    assert client.get_run(run_id).data.tags["mltrack.warnings"] == "; ".join(response.warnings)
    assert {one.path for one in client.list_artifacts(run_id)} >= {"evaluation", "metrics.json"}
    assert response.registered_model is not None
    assert client.get_model_version_by_alias("mltrack-text_classification", "champion").run_id == run_id
    print_summary(request, response, file=sys.stdout)
    assert [
        line[11:] for line in capsys.readouterr().out.splitlines() if line.startswith("warning    ")
    ] == response.warnings


KILLED = """
import os, sys
from mltrack import TrainModelRequest, TrainModelUseCase
from mltrack.runs import outcome

records, uri, runs, number = sys.argv[1:]
outcome.learning_curves_figure = lambda *_: os.kill(os.getpid(), int(number))
TrainModelUseCase().execute(TrainModelRequest(
    task="text_classification", dataset_path=records, model_name="scratch:tiny", epochs=1, max_length=64, tracking_uri=uri, output_dir=runs))
"""


@pytest.mark.long
def test_killed_in_its_reports_it_has_finished_and_is_registered(tmp_path, records_file):
    """As by the kernel, where memory is short."""
    uri = ready_store(tmp_path)
    process = start_script(KILLED, records_file("text_classification"), uri, tmp_path / "runs", int(signal.SIGKILL))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    (directory,) = map(RunDirectory, (tmp_path / "runs").iterdir())
    until(lambda: complete(directory), "the relay to finish")
    run_id = assert_complete(directory, uri, status="FINISHED")
    version = MlflowClient(uri).get_model_version_by_alias("mltrack-text_classification", "champion")
    assert version.run_id == run_id


MEASURED = """
import re, runpy, sys
sys.argv = ["mltrack", *sys.argv[1:]]
try:
    runpy.run_module("mltrack", run_name="__main__")
finally:  # getrusage would begin with what the process had before its exec: the memory of the tests
    print(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024, file=open("peak-mb", "w"))
"""
MOST_MB = 1500


@pytest.mark.long
def test_three_hundred_classes_within_bounds(tmp_path):
    """The picture alone took 16 to 20 GB; the metrics, tags and the baseline grow with the classes too."""
    classes, records = 300, tmp_path / "records.jsonl"
    lines = [
        {"code": f"def f{i}_{part}(x):\n    return x + {i} * {part}\n", "label": f"class {i}"}
        for i in range(classes)
        for part in range(3)
    ]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    options = (
        "--epochs",
        2,
        "--max-length",
        64,
        "--batch-size",
        32,
        "--model-name",
        "scratch:tiny",
        "--metric-name",
        "eval_f1_class 7",
        "--output",
        "json",
    )
    words = ("train", "--task", "text_classification", "--dataset-path", records, *options)
    ended = commands.run(sys.executable, "-c", MEASURED, *words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert int((tmp_path / "peak-mb").read_text()) < MOST_MB
    response = tiny.last_json_line(ended.stdout)
    assert (response["success"], response["warnings"], response["delivery"]) == (True, [], "complete")
    directory = tmp_path / "mltrack-runs" / response["run_id"]
    assert not (directory / "confusion_matrix.png").exists()
    assert len(json.loads((directory / "classification_report.json").read_text())["classes"]) == classes
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    names = client.get_run(response["run_id"]).data.metrics
    assert sorted(name for name in names if "f1_class" in name) == ["epoch/eval_f1_class 7", "eval_f1_class 7"]
    version = client.get_model_version("mltrack-text_classification", response["registered_model"]["version"])
    assert len(version.tags) < 60
    assert len(version.description) < 5000


BUSY = """
import subprocess, sys, warnings
from pathlib import Path
import torch
from mltrack import CheckpointManager

folder, background = Path(sys.argv[1]), sys.argv[2] == "background"
said = []
warnings.showwarning = lambda message, *_: said.append(str(message))
manager = CheckpointManager(folder, max_checkpoints=1, background=background)
model = torch.nn.Linear(2, 2)

def save(step, loss):
    manager.save_checkpoint(model=model, epoch=0, step=step, metric_value=loss)
    manager.finish()

def busy(path):
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=True)

save(1, 3.0)
busy(folder / "step-00000001" / "read-by-another")       # renamed, and then not empty: as NFS keeps a file that another process has open
save(2, 2.0)
assert [one.step for one in manager.list_checkpoints()] == [2]
(left,) = folder.glob(".deleting-step-00000001-*")
save(3, 1.0)
assert [one.step for one in manager.list_checkpoints()] == [3], "the next ones go"
busy(folder / "step-00000003")                           # cannot even be renamed
save(4, 0.5)
assert len(said) == 1 and "could not be removed" in said[0], said
subprocess.run(["umount", str(left / "read-by-another")], check=True)
subprocess.run(["umount", str(folder / "step-00000003")], check=True)
save(5, 0.1)
assert [one.step for one in manager.list_checkpoints()] == [5]
assert sorted(path.name for path in folder.iterdir()) == ["step-00000005"]
manager.close()
"""


@pytest.mark.parametrize("how", ["background", "foreground"])
def test_an_old_checkpoint_that_cannot_be_removed_costs_a_warning(tmp_path: Path, how: str) -> None:
    words = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            [*words, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no mount namespace for this user")
    ended = commands.run(*words, sys.executable, "-c", BUSY, tmp_path / "checkpoints", how, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
