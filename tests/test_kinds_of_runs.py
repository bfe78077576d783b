"""Every run in MLflow says of what kind it is, and `mltrack runs --kind` lists the runs of one kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ready_store import ready_store

from mltrack import TrainingMetricsTracker, relay
from mltrack.cli import run
from mltrack.journal import KINDS, JournalWriter, RunDirectory, RunInfo, records


def _directory(root: Path, name: str, tracking_uri: str, **fields: object) -> RunDirectory:
    """A finished run that nothing has delivered yet; of mltrack 0.1 where no kind is given."""
    directory = RunDirectory(root / name)
    writer = JournalWriter(directory.journal)
    writer.append(records.metrics(1, {"train_loss": 0.5}, {}, epoch=0))
    writer.append(records.end("FINISHED", 0))
    writer.close()
    info = {**vars(RunInfo(local_id=name, tracking_uri=tracking_uri, created_ms=1)), **fields}
    if "kind" not in fields:
        del info["kind"]
    directory.run_file.write_text(json.dumps(info))
    return directory


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return ready_store(tmp_path / "store")


@pytest.mark.parametrize("fields", [{}, {"kind": "lr_find"}], ids=["of 0.1", "lr_find"])
@pytest.mark.parametrize("made_by", ["the relay", "somebody else"])
def test_a_delivered_run_has_the_tag(uri: str, tmp_path: Path, fields: dict[str, str], made_by: str) -> None:
    client = MlflowClient(uri)
    given = client.create_run("0").info.run_id if made_by == "somebody else" else None
    directory = _directory(tmp_path / "runs", "one", uri, run_id=given, **fields)
    relay.sync(directory, uri)
    tags = client.get_run(directory.read_run().run_id).data.tags
    assert tags["mltrack.kind"] == fields.get("kind", "train")


def test_a_run_keeps_the_kind_that_it_has(uri: str, tmp_path: Path) -> None:
    """A metrics tracker in a user's run of another kind adds to that run and does not rename it."""
    client = MlflowClient(uri)
    run_id = client.create_run("0", tags={"mltrack.kind": "sweep"}).info.run_id
    with TrainingMetricsTracker(tmp_path / "logs", run_id=run_id, tracking_uri=uri) as tracker:
        tracker.log_metric("train_loss", 0.5, step=1)
    assert client.get_run(run_id).data.tags["mltrack.kind"] == "sweep"


def test_runs_of_one_kind_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    for name, fields in {"old": {}, "new": {"kind": "train"}, "sweep": {"kind": "sweep"}}.items():
        _directory(runs, name, "http://127.0.0.1:9", **fields)

    def listed(*words: str) -> dict[str, str]:
        assert run(["runs", "--output-dir", str(runs), "--output", "json", *words]) == 0
        return {row["run"]: row["kind"] for row in json.loads(capsys.readouterr().out)}

    assert listed() == {"old": "train", "new": "train", "sweep": "sweep"}
    assert listed("--kind", "train") == {"old": "train", "new": "train"}
    assert listed("--kind", "sweep", "--limit", "1") == {"sweep": "sweep"}
    assert listed("--kind", "export") == {}


def test_an_unknown_kind_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", "--output-dir", str(tmp_path), "--kind", "training"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mltrack: kind must be one of train, sweep, ")
    assert "not 'training'" in line
    assert all(kind in line for kind in KINDS)
    assert "did you mean 'train'?" in line
