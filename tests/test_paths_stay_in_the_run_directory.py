"""Whatever a run directory says, from whomever it comes: nothing outside of it is read or sent, and what is right in it
is delivered.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from hf_folders import encoder_folder
from ready_store import ready_store

from mltrack import TrainModelRequest, TrainModelUseCase, cli, relay
from mltrack.errors import TrackingError
from mltrack.journal import JournalWriter, RunDirectory, RunInfo, find_run_directories, records
from mltrack.store import artifacts, connect, models_of_run
from mltrack.tracking import TrainingMetricsTracker

SECRET = "CANARY: the key of somebody's house"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return ready_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "id_rsa").write_text(SECRET)
    return tmp_path / "house"


def planted(folder: Path, uri: str, *said: dict[str, Any]) -> RunDirectory:
    """A run directory with these records, a point before and one behind them."""
    directory = RunDirectory(folder)
    folder.mkdir(parents=True, exist_ok=True)
    directory.write_run(RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms()))
    writer = JournalWriter(directory.journal)
    for record in (
        records.metrics(1, {"train_loss": 1.0}, {}),
        *said,
        records.metrics(2, {"train_loss": 0.5}, {}),
        records.end("FINISHED", 0),
    ):
        writer.append(record)
    writer.close()
    return directory


def assert_only_points_arrived(directory: RunDirectory, uri: str, *, refused: int = 1) -> None:
    progress = relay.sync(directory)
    store = connect(uri)
    assert progress.complete
    assert progress.sent == 2
    assert len(progress.failed) == refused, progress.failed
    assert all(line.isprintable() and len(line) < 600 for line in progress.failed)
    stored = artifacts.list_files(store, str(progress.run_id))
    assert not any("id_rsa" in name or "state" in name for name in stored), stored
    assert models_of_run(store, str(progress.run_id)) == []


def leading_out(house: Path, folder: Path) -> dict[str, Any]:
    """{how: what the record names}, made in the run directory where it needs that."""
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(house / "id_rsa")
    (folder / "linked").symlink_to(house)
    (folder / "circle").symlink_to(folder / "circle")
    return {
        "up": os.path.relpath(house / "id_rsa", folder),
        "absolute": str(house / "id_rsa"),
        "link": "link",
        "linked folder": "linked/id_rsa",
        "circle": "circle/id_rsa",
        "nul": "a\0b",
        "escape": "../\x1b[2Jid_rsa",
    }


HOWS = ("up", "absolute", "link", "linked folder", "circle", "nul", "escape")


@pytest.mark.parametrize("how", HOWS)
def test_an_artifact_that_leads_out_is_not_sent(tmp_path: Path, house: Path, uri: str, how: str) -> None:
    name = leading_out(house, tmp_path / "run")[how]
    directory = planted(tmp_path / "run", uri, {"type": "artifact", "time_ms": 1, "path": name, "artifact_path": ""})
    assert_only_points_arrived(directory, uri)


def kept(path: object) -> dict[str, Any]:
    described = {
        "step": 1,
        "epoch": 0,
        "metric_name": "eval_loss",
        "metric_value": 1.0,
        "metrics": {"eval_loss": 1.0},
        "reasons": ["best"],
        "created_ms": 1,
    }
    return {"type": "checkpoints", "time_ms": 1, "kept": [{**described, "path": path}], "best_step": 1}


@pytest.mark.parametrize("how", ["up", "a linked file", "a linked folder"])
def test_a_checkpoint_that_leads_out_is_not_sent(tmp_path: Path, house: Path, uri: str, how: str) -> None:
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    encoder_folder(folder if how != "up" else house / "model")
    if how == "a linked file":
        (folder / "state.json").unlink()
        (folder / "state.json").symlink_to(house / "id_rsa")
    if how == "a linked folder":
        (folder / "more").symlink_to(house)
    path = os.path.relpath(house / "model", tmp_path / "run") if how == "up" else "checkpoints/step-00000001"
    assert_only_points_arrived(planted(tmp_path / "run", uri, kept(path)), uri)


@pytest.mark.parametrize(
    "record",
    [
        {"type": "artifact"},
        {"type": "params", "values": 3},
        {"type": "tags", "values": {"a": 1}},
        {"type": "inputs", "datasets": [3]},
        {"type": "checkpoints", "kept": "all", "best_step": 1},
        {"type": "model", "step": 1},
        {"type": "metrics", "step": "x", "values": {"train_loss": 1.0}, "timing": {}, "time_ms": 1, "epoch": None},
        {"type": "metrics", "step": 1, "values": {"train_loss": "x"}, "timing": {}, "time_ms": 1, "epoch": None},
        {"type": "metrics", "step": 1, "values": {"train_loss": 10**400}, "timing": {}, "time_ms": 1, "epoch": None},
        {"type": "metrics", "step": 10**30, "values": {"train_loss": 1.0}, "timing": {}, "time_ms": 1, "epoch": None},
        {"type": "metrics"},
        {"type": "end"},
        {"type": ["metrics"]},
        {"type": "unheard of"},
    ],
    ids=lambda record: json.dumps(record)[:40],
)
def test_a_record_that_mltrack_did_not_write_holds_up_nothing(tmp_path: Path, uri: str, record: dict[str, Any]) -> None:
    directory = planted(tmp_path / "runs" / "run", uri, record)
    progress = relay.sync(directory)
    assert progress.complete
    for words in (
        ["runs", "--output-dir", str(tmp_path / "runs"), "--tracking-uri", uri],
        ["data", "show", str(directory.path)],
    ):
        assert cli.run(words) in (0, 2)
    assert len(progress.failed) <= 1
    history = connect(uri).client.get_metric_history(str(progress.run_id), "train_loss")
    assert {1, 2} <= {point.step for point in history}


def test_ones_own_file_from_elsewhere_is_copied_when_it_is_logged(tmp_path: Path, uri: str) -> None:
    picture = tmp_path / "confusion.png"
    picture.write_text("as it was logged")
    tracker = TrainingMetricsTracker(
        tmp_path / "run", run=RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms())
    )
    tracker.log_artifact(picture, "figures")
    picture.write_text("as it was drawn again")
    with pytest.raises(TrackingError, match="a file or folder that exists"):
        tracker.log_artifact(tmp_path / "missing.png")
    tracker.close()
    progress = relay.sync(tracker.directory)
    fetched = artifacts.download(connect(uri), str(progress.run_id), "figures/confusion.png", tmp_path / "fetched")
    assert fetched.read_text() == "as it was logged"
    assert progress.failed == []


@pytest.mark.parametrize("name", ["run.json", "delivery.json", "config.json"])
@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"offset": "x", "local_id": 3, "models": [], "seed": "x"}',
        '{"offset": -5, "format_version": "9", "seed": -1}',
    ],
)
def test_a_file_of_another_kind_is_one_line(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    directory = planted(tmp_path / "runs" / "one", uri)
    (directory.path / name).write_text(text)
    code = cli.run(["sync", str(directory.path)])
    printed = capsys.readouterr()
    assert code == (1 if name == "run.json" else 0), printed
    assert len(printed.err.splitlines()) == (1 if name == "run.json" else 0)
    assert cli.run(["runs", "--output-dir", str(tmp_path / "runs"), "--tracking-uri", uri]) == 0
    assert len(find_run_directories(tmp_path / "runs")) == (0 if name == "run.json" else 1)
    response = TrainModelUseCase().execute(
        TrainModelRequest(resume=str(directory.path), output_dir=str(tmp_path / "runs"), tracking_uri=uri)
    )
    assert response.exit_code in (1, 2)
    assert len("".join(response.errors).splitlines()) == 1


def test_inside_names_what_lies_inside(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "by-link").symlink_to(tmp_path / "real")
    for directory in (RunDirectory(tmp_path / "real"), RunDirectory(tmp_path / "by-link")):
        assert directory.inside("a/../b") == directory.path / "a/../b"
        assert directory.inside(directory.path / "c") == directory.path / "c"
        with pytest.raises(TrackingError, match="leads out"):
            directory.inside("..")
