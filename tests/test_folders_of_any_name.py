"""A working directory of any name that the file system allows: database and files lie in it and nowhere else, or one
line says why not.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import tiny
from conftest import _records
from mlflow import MlflowClient

from mltrack.store import StoreRejected, artifacts, connect, create_run, default_tracking_uri
from mltrack.store.artifacts import check_root
from mltrack.store.database import database_file

NAMES = ["a b;&$HOME'\"c", "-\u00e9\u4e2d.", "a#b?c", "100%25 %41", "a\nb\\c\td"]
NOT_UTF8 = os.fsdecode(b"not\xffutf8")


@pytest.mark.parametrize("name", NAMES)
def test_the_embedded_database_and_its_files_lie_in_the_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    uri = default_tracking_uri()
    assert database_file(uri) == folder / "mlflow.db"
    assert "\n" not in uri
    store = connect(uri)
    for experiment in ("Default", "of/its own?"):
        run = create_run(
            store, experiment_name=experiment, run_name="r", tags={}, idempotency_key=experiment[:2], start_time_ms=1
        )
        check_root(store, run.run_id)
        artifacts.put_text(store, run.run_id, "held", "below/file.txt")
        client = MlflowClient(uri)
        assert [one.path for one in client.list_artifacts(run.run_id, "below")] == ["below/file.txt"]
        assert Path(client.download_artifacts(run.run_id, "below/file.txt")).read_text() == "held"
    assert len(list(folder.glob("mlruns/*/*/artifacts/below/file.txt"))) == 2
    assert sorted(path.name for path in folder.iterdir()) == [".mlflow.db.lock", "mlflow.db", "mlruns"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name], "nothing lies beside it"


def test_a_name_that_no_uri_can_hold_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / NOT_UTF8
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(
        StoreRejected,
        match=r"not\\udcffutf8/mlflow.db; use another folder, set MLFLOW_TRACKING_URI, or use --offline true",
    ):
        default_tracking_uri()
    assert list(folder.iterdir()) == []
    assert default_tracking_uri("http://127.0.0.1:1") == "http://127.0.0.1:1"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_training_and_every_command_that_it_prints(tmp_path: Path) -> None:
    """All names in one, and one that MLflow cannot take: there an offline training works."""
    folder = tmp_path / "".join(NAMES)
    folder.mkdir()
    (folder / "re#c?%20.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in _records("text_classification", 24)), encoding="utf-8"
    )
    words = (
        "train",
        "--task",
        "text_classification",
        "--dataset-path",
        "re#c?%20.jsonl",
        *commands.TINY,
        "--max-steps",
        2,
    )
    trained = commands.mltrack(*words, cwd=folder)
    assert trained.returncode == 0, trained.stderr
    assert "pending" not in trained.stdout
    printed = {name: trained.stdout.partition(f"\n{name}")[2].lstrip() for name in ("load", "continue", "look")}
    load, resume = (_command(printed[name]) for name in ("load", "continue"))
    assert subprocess.run(load, shell=True, cwd=folder, env=commands.environment(), capture_output=True).returncode == 0
    resumed = subprocess.run(
        f"{resume} --output json", shell=True, cwd=folder, env=commands.environment(), capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    response = tiny.last_json_line(resumed.stdout)
    assert (response["delivery"], response["steps_run"], response["registered_model"]["version"]) == (
        "complete",
        4,
        "2",
    )
    assert shlex.split(_command(printed["look"]))[-1] == "ui", "the folder and the database are those of this place"
    uri = json.loads(commands.mltrack("runs", "--output", "json", cwd=folder).stdout)[0]["tracking_uri"]
    assert len(MlflowClient(uri).get_metric_history(response["run_id"], "train_loss")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]
    odd = tmp_path / NOT_UTF8
    odd.mkdir()
    (folder / "re#c?%20.jsonl").rename(odd / "re#c?%20.jsonl")
    refused = commands.mltrack(*words, cwd=odd)
    assert (refused.returncode, len(refused.stderr.strip().splitlines())) == (2, 1), refused.stderr
    assert [path.name for path in odd.iterdir()] == ["re#c?%20.jsonl"]
    refused = commands.mltrack(*words, "--offline", "true", cwd=odd)
    assert (refused.returncode, len(refused.stderr.strip().splitlines())) == (2, 1), refused.stderr
    assert [path.name for path in odd.iterdir()] == ["re#c?%20.jsonl"]
    offline = commands.mltrack(*words, "--offline", "true", "--output-dir", tmp_path / "runs", cwd=odd)
    assert offline.returncode == 0, offline.stderr
    listed = subprocess.run(
        [
            sys.executable,
            "-m",
            "mltrack",
            "data",
            "show",
            offline.stdout.partition("run        ")[2].split()[0],
            "--output-dir",
            tmp_path / "runs",
        ],
        cwd=odd,
        env=commands.environment(PYTHONIOENCODING="utf-8:strict"),
        capture_output=True,
    )
    assert listed.returncode == 0, listed.stderr
    assert rb"not\udcffutf8" in listed.stdout, "what a terminal would obey, or cannot show, is escaped"


def _command(text: str) -> str:
    """The command at the beginning of a text, whose words may hold line ends."""
    end = 0
    while True:
        end = text.find("\n", end + 1)
        try:
            shlex.split(text[: end if end > 0 else None])
        except ValueError:
            continue
        return text[: end if end > 0 else None]
