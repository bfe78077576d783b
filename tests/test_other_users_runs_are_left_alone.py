"""A run directory of another user of the machine: nothing is done to it unasked, and when asked, one line says
why not.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mltrack import TrainModelRequest, TrainModelUseCase, cli, relay
from mltrack.errors import ConfigurationError
from mltrack.journal import RunDirectory, RunInfo, records
from mltrack.runs.provenance import find_resumed, undelivered
from mltrack.store import connect
from mltrack.tracking import TrainingMetricsTracker


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def theirs(here: Path, tables: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """In a folder that both use; its delivery is not complete and its MLflow run says RUNNING."""
    shutil.copy(tables, here)
    run = connect("sqlite:///mlflow.db").client.create_run("0", tags={"mltrack.local_id": "theirs"})
    info = RunInfo(
        local_id="theirs",
        run_id=run.info.run_id,
        tracking_uri=f"sqlite:///{here}/mlflow.db",
        created_ms=records.now_ms(),
    )
    tracker = TrainingMetricsTracker(here / "mltrack-runs" / "theirs", run=info)
    tracker.log_metric("train_loss", 1.0, step=1)
    tracker.close()
    checkpoint = tracker.directory.checkpoints / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "metadata.json").write_text("{}")
    (tracker.directory.path / "config.json").write_text(json.dumps({"model_name": "scratch:tiny"}))
    info = tracker.directory.read_run()
    info.trainer_pid = None
    tracker.directory.write_run(info)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    return tracker.directory


def test_what_is_done_unasked(theirs: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    assert undelivered("mltrack-runs") == []
    assert len(caplog.records) == 1
    assert "another user" in caplog.text
    assert relay.orphans(connect("sqlite:///mlflow.db"), "mltrack-runs") == []
    with pytest.raises(ConfigurationError, match="latest"):
        find_resumed(TrainModelRequest(resume="latest"))


@pytest.mark.parametrize(
    "words", [["sync", "theirs"], ["sync", "mltrack-runs/theirs"], ["train", "--resume", "theirs"]]
)
def test_what_is_asked_for(theirs: RunDirectory, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in theirs.path.rglob("*")}
    if words[0] == "train":
        response = TrainModelUseCase().execute(TrainModelRequest(resume="theirs"))
        code, lines = response.exit_code, response.errors
    else:
        code, lines = cli.run(words), capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert "another user" in lines[0]
    assert "cp -r" in lines[0]
    assert {path: path.stat().st_mtime_ns for path in theirs.path.rglob("*")} == before


def test_all_of_them_are_ones_own(theirs: RunDirectory) -> None:
    assert cli.run(["sync", "--all", "true"]) == 2
    assert not theirs.read_delivery()


def test_looking_is_allowed(theirs: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["runs"]) == 0
    assert str(theirs.read_run().run_id)[:8] in capsys.readouterr().out
