"""The relay makes the MLflow run; a training asks MLflow nothing before its first step, and is told where MLflow
refuses the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import tiny
from ready_store import ready_store
from tracked_runs import assert_complete

from mltrack.journal import RunDirectory, find_run_directories, find_run_directory

TRAIN = ("train", "--task", "text_classification", *commands.TINY, "--output", "json")


def test_a_trainer_never_imports_mlflow(tmp_path: Path, records_file) -> None:
    """The whole training, with its run in MLflow."""
    uri = ready_store(tmp_path)
    script = (
        "import sys\nfrom mltrack import TrainModelRequest, TrainModelUseCase\nr ="
        " TrainModelUseCase().execute(TrainModelRequest(task='text_classification',"
        f" dataset_path={str(records_file('text_classification'))!r}, model_name='scratch:tiny', max_steps=2,"
        f" batch_size=4, tracking_uri={uri!r}, output_dir={str(tmp_path / 'runs')!r}))\nassert"
        " r.success, r.errors\nassert r.delivery == 'complete'\nprint(sorted(name for name in sys.modules if"
        " name.split('.')[0] in ('mlflow', 'sqlalchemy')))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.strip().splitlines()[-1] == "[]"


def test_a_run_is_found_by_the_id_that_mlflow_gave_it_and_listed_once(tmp_path: Path, records_file) -> None:
    uri = ready_store(tmp_path)
    finished = commands.mltrack(
        *TRAIN, "--dataset-path", records_file("text_classification"), "--max-steps", "2", cwd=tmp_path
    )
    response = tiny.last_json_line(finished.stdout)
    (directory,) = find_run_directories(tmp_path / "mltrack-runs")
    info = directory.read_run()
    assert info.run_id == response["run_id"] != info.local_id == directory.path.name
    assert find_run_directory(tmp_path / "mltrack-runs", response["run_id"]) == directory
    assert find_run_directory(tmp_path, str(tmp_path / "mltrack-runs" / response["run_id"])) == directory
    assert assert_complete(directory, uri, status="FINISHED") == response["run_id"]
    listed = commands.mltrack("runs", cwd=tmp_path).stdout
    assert listed.count(response["run_id"][:8]) == 1
    assert info.local_id not in listed


@pytest.mark.parametrize("steps", [2, 100_000], ids=["ended before the answer", "in training"])
def test_a_run_that_mlflow_does_not_hold_ends_the_training_in_one_line(
    tmp_path: Path, records_file, steps: int
) -> None:
    uri = ready_store(tmp_path)
    words = (
        "--dataset-path",
        records_file("text_classification"),
        "--max-steps",
        steps,
        "--epochs",
        100_000,
        "--eval-every",
        100_000,
        "--save-every",
        100_000,
    )
    finished = commands.mltrack(*TRAIN, *words, cwd=tmp_path, MLFLOW_RUN_ID="0" * 32, MLFLOW_TRACKING_URI=uri)
    response = tiny.last_json_line(finished.stdout)
    assert (finished.returncode, response["success"], response["delivery"]) == (1, False, "pending")
    assert len(response["errors"]) == 1
    assert "0" * 32 in response["errors"][0]
    assert RunDirectory(tmp_path / "mltrack-runs" / ("0" * 32)).journal.stat().st_size > 0, "what was trained is kept"


def test_bad_input_starts_no_process_and_makes_no_store(tmp_path: Path) -> None:
    finished = commands.mltrack(*TRAIN, "--dataset-path", "none.jsonl", cwd=tmp_path)
    assert finished.returncode == 2
    assert os.listdir(tmp_path) in ([], ["mltrack-runs"])
