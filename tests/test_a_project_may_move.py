"""A project folder that was moved: its runs are followed to where they are now, what is gone is said, and the old
folder is not made again.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
import tiny
from conftest import write_records
from mlflow import MlflowClient
from ready_store import ready_store
from tracked_runs import delivered, kill, until

from mltrack.journal import RunDirectory
from mltrack.relay.sync import delivering_process

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
TRAIN = (
    "train",
    "--task",
    "text_classification",
    "--dataset-path",
    "records.jsonl",
    *commands.TINY,
    "--output",
    "json",
)


def train(folder: Path, *words: object, expect: int = 0) -> tuple[dict[str, Any], str]:
    """The response of a training, and all that was said beside it."""
    finished = commands.mltrack(*words, cwd=folder)
    assert finished.returncode == expect, finished.stderr
    return tiny.last_json_line(finished.stdout), finished.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one run; each test moves a copy of it, whose database names a folder that is gone."""
    folder = tmp_path_factory.mktemp("trained") / "proj"
    folder.mkdir()
    write_records(folder / "records.jsonl", count=24)
    ready_store(folder)
    response, _ = train(folder, *TRAIN, "--max-steps", 4, "--save-every", 2)
    assert commands.mltrack("sync", response["run_id"], cwd=folder).returncode == 0  # a slow relay may still be at it
    aliases = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_registered_model("mltrack-text_classification").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"challenger": "1", "champion": "1"}
    shutil.move(folder, folder.with_name("kept"))
    return folder.with_name("kept")


@pytest.fixture
def moved(trained: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(where the project lay, where it lies now); the relays that wait for the old place are ended."""
    new = Path(shutil.copytree(trained, tmp_path / "moved", symlinks=True))
    yield trained.with_name("proj"), new
    for directory in new.glob("mltrack-runs/*"):
        if (pid := delivering_process(RunDirectory(directory))) is not None:
            kill(pid)


def steps(uri: str, run_id: str) -> list[int]:
    return [point.step for point in MlflowClient(uri).get_metric_history(run_id, "train_loss")]


def test_a_resume_follows_the_database_and_names_no_registration_that_it_did_not_make(moved: tuple[Path, Path]) -> None:
    old, new = moved
    uri = f"sqlite:///{new}/mlflow.db"
    response, said = train(new, "train", "--resume", "latest", "--max-steps", 6, "--exit-wait", 30, "--output", "json")
    run_id = response["run_id"]
    assert f"its database is {uri} now" in said
    assert f"{old} is gone" in said
    assert (response["delivery"], response["registered_model"]) == ("pending", None)
    assert "@champion" not in said
    assert not old.exists(), "no folder is made again"
    until(lambda: steps(uri, run_id) == [1, 2, 3, 4, 5, 6], "every step")
    (command,) = {line.partition("(ln ")[2].partition(")")[0] for line in said.splitlines() if "(ln " in line}
    subprocess.run(["ln", *shlex.split(command)], check=True)
    try:
        directory = RunDirectory(new / "mltrack-runs" / run_id)
        until(lambda: delivered(directory), "what had waited")
        assert directory.read_delivery()["registered"]["version"] == "2"
        newest = MlflowClient(uri).get_model_version("mltrack-text_classification", "2").source.removeprefix("models:/")
        assert (new / "mlruns/0/models" / newest / "artifacts/model.safetensors").is_file()
    finally:
        old.unlink()


def test_the_command_lines_tracking_uri_wins(moved: tuple[Path, Path]) -> None:
    old, new = moved
    uri = f"sqlite:///{new}/elsewhere.db"
    (new / "mlflow.db").rename(new / "elsewhere.db")
    run_id = next((new / "mltrack-runs").glob("*/run.json")).parent.name
    run_id = RunDirectory(new / "mltrack-runs" / run_id).read_run().run_id or run_id
    gone = commands.mltrack("sync", run_id, cwd=new)
    assert gone.returncode == 1
    (line,) = gone.stderr.strip().splitlines()
    assert f"sqlite:///{old}/mlflow.db" in line
    assert "--tracking-uri" in line
    train(
        new,
        "train",
        "--resume",
        "latest",
        "--tracking-uri",
        uri,
        "--max-steps",
        6,
        "--exit-wait",
        8,
        "--output",
        "json",
    )
    until(lambda: steps(uri, run_id) == [1, 2, 3, 4, 5, 6], "every step")
    assert RunDirectory(new / "mltrack-runs" / run_id).read_run().tracking_uri == uri
    directory = RunDirectory(new / "mltrack-runs" / run_id)
    until(lambda: f"{old} is gone" in directory.relay_log.read_text(), "the relay to say so")
    shown = commands.mltrack("data", "show", run_id, "--tracking-uri", uri, cwd=new)
    assert shown.returncode == 0, shown.stderr
    assert sorted(path.name for path in new.iterdir() if not path.name.startswith(".")) == [
        "elsewhere.db",
        "mlruns",
        "mltrack-runs",
        "records.jsonl",
    ]
    assert not old.exists()


def test_a_new_run_of_the_moved_project_says_so_and_a_new_experiment_keeps_its_files_here(
    moved: tuple[Path, Path],
) -> None:
    old, new = moved
    uri = f"sqlite:///{new}/mlflow.db"
    response, said = train(new, *TRAIN, "--max-steps", 2, "--exit-wait", 30)
    assert (response["success"], response["delivery"], response["registered_model"]) == (True, "pending", None)
    lines = [line for line in said.splitlines() if f"{old} is gone" in line]
    assert lines
    assert all("--experiment-name" in line for line in lines)
    until(lambda: steps(uri, response["run_id"]) == [1, 2], "both steps")
    response, said = train(new, *TRAIN, "--max-steps", 2, "--experiment-name", "here")
    assert (response["delivery"], f"{old} is gone" in said) == ("complete", False)
    assert not old.exists()


def test_where_the_database_is_gone_the_training_goes_on_and_makes_no_other(moved: tuple[Path, Path]) -> None:
    old, new = moved
    (new / "mlflow.db").unlink()
    old.mkdir()
    try:
        response, said = train(
            new, "train", "--resume", "latest", "--max-steps", 6, "--exit-wait", 30, "--output", "json"
        )
        assert (response["success"], response["delivery"], response["registered_model"], response["model_uri"]) == (
            True,
            "pending",
            None,
            None,
        )
        assert "--tracking-uri" in said
        directory = RunDirectory(new / "mltrack-runs" / response["run_id"])
        until(lambda: "the database is gone" in directory.relay_log.read_text(), "the relay to say so")
        assert list(old.iterdir()) == []
        assert not (new / "mlflow.db").exists()
    finally:
        old.rmdir()
    assert max(tiny.points(directory.journal, "train_loss")) == 6
