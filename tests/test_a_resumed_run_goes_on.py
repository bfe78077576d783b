"""A run that somebody has resumed is not ended by a delivery that began while it had no trainer."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import commands
import psutil
import pytest
import tiny
from ready_store import ready_store
from tracked_runs import assert_complete, client, kill, recorded, start_stream, sync, until

from mltrack import TrainModelRequest
from mltrack.journal import RunDirectory
from mltrack.runs.use_case import TrainModelUseCase
from mltrack.tracking import TrainingMetricsTracker


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return ready_store(tmp_path)


def killed(folder: Path, uri: str) -> RunDirectory:
    """A run whose trainer died and of which nothing is delivered."""
    stream = start_stream(folder, uri, count=100_000, offline=True)
    until(lambda: stream.directory.run_file.exists() and recorded(stream.directory) > 20, "20 records")
    kill(stream.process.pid)
    stream.process.communicate()
    return stream.directory


def resumed(directory: RunDirectory) -> TrainingMetricsTracker:
    """This process goes on with the run."""
    tracker = TrainingMetricsTracker(directory.path, resume=True, run=directory.read_run())
    tracker.resume_from(10, 0)
    return tracker


def test_by_a_relay_that_waited_for_the_lock(tmp_path: Path, uri: str) -> None:
    directory = killed(tmp_path / "run", uri)
    lock = directory.path / "relay.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        relay = commands.start("sync", "--follow", directory.path, cwd=tmp_path)
        until(
            lambda: str(lock) in {file.path for file in psutil.Process(relay.pid).open_files()},
            "the relay to ask for the directory",
        )
        tracker = resumed(directory)
    _, errors = relay.communicate(timeout=120)
    assert relay.returncode == 0, errors
    progress = directory.read_delivery()
    assert progress["offset"] == directory.journal.stat().st_size, "it has delivered that the run was resumed"
    assert not progress["complete"]
    assert client(uri).get_run(progress["run_id"]).info.status == "RUNNING"
    tracker.end("FINISHED", 0)
    tracker.close()
    assert sync(directory).returncode == 0
    assert_complete(directory, uri, status="FINISHED")


@pytest.mark.long
def test_run_json_names_the_new_trainer_before_the_journal_says_that_the_run_was_resumed(
    tmp_path: Path, records_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (
        "--task",
        "text_classification",
        "--dataset-path",
        records_file("text_classification", 40),
        *commands.TINY,
        "--offline",
        "true",
    )
    finished = commands.mltrack("train", *words, "--max-steps", "2", "--output", "json", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    directory = RunDirectory(tmp_path / "mltrack-runs" / tiny.last_json_line(finished.stdout)["run_id"])
    named: list[int | None] = []

    def notice(line: str) -> None:
        if line.startswith("resumed at step"):
            named.append(directory.read_run().trainer_pid)

    response = TrainModelUseCase(notice=notice).execute(
        TrainModelRequest(resume=directory.path.name, max_steps=3, offline=True)
    )
    assert response.success, response.errors
    assert named == [os.getpid()]
