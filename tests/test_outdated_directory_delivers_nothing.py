"""A run directory whose run went on elsewhere changes nothing in MLflow any more, and says so; every other directory is
delivered as ever.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import psutil
import pytest
from artifact_stores import ArtifactStore, artifact_store
from hf_folders import encoder_folder
from mlflow import MlflowClient
from ready_store import ready_store
from retained_checkpoints import RetainedRun
from tracked_runs import (
    held_points,
    is_running,
    kill,
    pause_between_transactions,
    recorded,
    relay_pid,
    sent,
    start_script,
    until,
)

from mltrack.journal import JournalWriter, Machine, RunDirectory, heartbeat, records
from mltrack.relay import OthersRun, StaleRunDirectory, sync
from mltrack.relay.heartbeat_tag import beating
from mltrack.relay.liveness import HEARTBEAT_TAG, HOST_TAG, PID_TAG, STARTED_TAG, Trainer
from mltrack.relay.projection import Projection
from mltrack.runs.provenance import undelivered
from mltrack.store import connect

OTHER = Machine("another-host", "another-boot", "pid:[1]")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactStore]:
    with artifact_store("local", tmp_path_factory.mktemp("local")) as store:
        yield store


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "step-1")


def beginning(host: str, started: float, *, resumed: int | None = None) -> list[records.Record]:
    """What a training records first."""
    tags = records.tags({HOST_TAG: host, PID_TAG: "1", STARTED_TAG: str(started)})
    return [tags] if resumed is None else [tags, records.resumed(resumed, 0)]


def taken_along(run: RetainedRun, folder: Path) -> RetainedRun:
    """The same run in another directory that knows what MLflow holds."""
    shutil.copytree(run.directory.path, folder)
    other = copy.copy(run)
    other.directory, other._on_disk = RunDirectory(folder), set(run._on_disk)
    return other


def resumed_elsewhere(tmp_path: Path, there: ArtifactStore, encoder: Path) -> tuple[RetainedRun, RetainedRun]:
    """A directory whose last checkpoint is not delivered, and another one in which its run has begun to go on."""
    one = RetainedRun(tmp_path / "runs" / "one", there, encoder)
    one.record(*beginning("first-machine", 100.0))
    one.keep(1)
    sync_alive(one)
    two = taken_along(one, tmp_path / "two")
    one.keep(2)
    two.record(*beginning("second-machine", 200.0, resumed=1))
    return one, two


def behind(tmp_path: Path, there: ArtifactStore, encoder: Path) -> tuple[RetainedRun, RetainedRun]:
    """A directory with something undelivered, and the one in which its run went on and ended."""
    one, two = resumed_elsewhere(tmp_path, there, encoder)
    one.keep(3)
    for kept in ((1, 2), (2, 4)):
        two.keep(*kept)
    two.end()
    assert sync(two.directory).complete
    return one, two


def sync_alive(run: RetainedRun) -> None:
    """As the relay of a trainer that goes on: delivered, not ended."""
    info = run.directory.read_run()
    info.trainer_pid = os.getpid()
    run.directory.write_run(info)
    sync(run.directory)
    info = run.directory.read_run()
    info.trainer_pid = None
    run.directory.write_run(info)


def held(there: ArtifactStore, run_id: str) -> dict[str, Any]:
    """All that the store says of a run."""
    run = MlflowClient(there.uri).get_run(run_id)
    files = {name: there.read(name) for name in there.files() if run_id in name or "models/" in name}
    return {
        "status": run.info.status,
        "end": run.info.end_time,
        "tags": run.data.tags,
        "points": held_points(there.uri, run_id),
        "files": files,
    }


def test_nothing_arrives_and_one_line_says_what_can_be_done(
    there: ArtifactStore, encoder: Path, tmp_path: Path
) -> None:
    one, two = behind(tmp_path, there, encoder)
    before, journal = held(there, two.run_id), one.directory.journal.read_bytes()
    assert undelivered(tmp_path / "runs") == [one.directory]
    for _ in range(2):
        finished = commands.mltrack("sync", one.directory.path, cwd=tmp_path)
        assert (finished.returncode, finished.stdout) == (1, "")
        (line,) = finished.stderr.strip().splitlines()
        assert line.startswith(
            f"mltrack: one: {one.directory.path}: run {two.run_id} was resumed elsewhere (on second-machine)"
        )
        assert f"mltrack train --resume {two.run_id}" in line
    assert held(there, two.run_id) == before
    two.assert_store_holds(2, 4)
    assert one.directory.journal.read_bytes() == journal
    assert undelivered(tmp_path / "runs") == [], "nobody tries again by himself"
    listed = commands.mltrack("runs", "--output-dir", tmp_path / "runs", "--output", "json", cwd=tmp_path)
    assert json.loads(listed.stdout)[0]["delivery"].startswith("resumed elsewhere (")
    other = ready_store(tmp_path, "other.db")
    finished = commands.mltrack("sync", one.directory.path, "--tracking-uri", other, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert [step for _, _, step in held_points(other, one.run_id)["eval_loss"]] == [1, 2, 3]
    with pytest.raises(StaleRunDirectory):
        sync(one.directory)
    assert held(there, two.run_id) == before


def test_what_had_arrived_as_a_whole_is_complete_and_the_status_is_the_other_ones(
    there: ArtifactStore, encoder: Path, tmp_path: Path
) -> None:
    one = RetainedRun(tmp_path / "one", there, encoder)
    one.record(*beginning("first-machine", 100.0))
    one.keep(1)
    assert sync(one.directory).status == "FAILED"
    two = taken_along(one, tmp_path / "two")
    two.record(*beginning("second-machine", 200.0, resumed=1))
    two.keep(1, 2)
    sync_alive(two)
    before = held(there, two.run_id)
    assert before["status"] == "RUNNING"
    finished = commands.mltrack("sync", one.directory.path, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert (
        f"one: complete, 0 points sent, 1 already there, 0 failed, run {two.run_id}, which was resumed elsewhere"
        in finished.stdout
    )
    assert held(there, two.run_id) == before


def test_a_running_run_is_not_judged_by_a_directory_that_fell_behind(
    there: ArtifactStore, encoder: Path, tmp_path: Path
) -> None:
    _, two = resumed_elsewhere(tmp_path, there, encoder)
    sync_alive(two)
    reaped = commands.mltrack(
        "runs", "--output-dir", tmp_path / "runs", "--reap", "true", "--tracking-uri", there.uri, cwd=tmp_path
    )
    assert reaped.returncode == 0, reaped.stderr
    assert two.run_id not in reaped.stdout
    assert held(there, two.run_id)["status"] == "RUNNING"


def test_a_run_that_goes_on_in_its_own_directory_is_delivered_also_from_its_first_byte(
    there: ArtifactStore, encoder: Path, tmp_path: Path
) -> None:
    run = RetainedRun(tmp_path / "run", there, encoder)
    run.record(*beginning("first-machine", 100.0))
    run.keep(1)
    assert sync(run.directory).complete
    run.record(*beginning("first-machine", 200.0, resumed=1))
    run.keep(1, 2)
    assert sync(run.directory).complete
    run.record(*beginning("first-machine", 300.0, resumed=2))
    run.keep(2, 3)
    run.end()
    moved = taken_along(run, tmp_path / "moved")
    assert sync(moved.directory).complete
    moved.assert_store_holds(2, 3)
    moved.directory.delivery_file.unlink()
    assert sync(moved.directory).complete
    moved.assert_store_holds(2, 3)


@pytest.mark.parametrize(("started", "delivered"), [(200.0, True), (50.0, False)], ids=["later", "earlier"])
def test_of_two_that_do_not_know_of_each_other_the_later_one_is_the_run(
    started, delivered, there: ArtifactStore, encoder: Path, tmp_path: Path
) -> None:
    """`mlflow run` began it once more under its id while the server was away; or the first one's delivery.json
    is gone.
    """
    first, second = (RetainedRun(tmp_path / name, there, encoder) for name in ("first", "second"))
    first.record(*beginning("first-machine", 100.0))
    first.keep(1)
    assert sync(first.directory).complete
    info = second.directory.read_run()
    info.run_id = first.run_id
    second.directory.write_run(info)
    second.record(*beginning("second-machine", started))
    second.keep(5)
    if delivered:
        assert sync(second.directory).complete
        second.assert_store_holds(5)
    else:
        with pytest.raises(StaleRunDirectory):
            sync(second.directory)
        first.assert_store_holds(1)


def begun(
    folder: Path, there: ArtifactStore, encoder: Path, run_id: str, trainer: Trainer
) -> tuple[RetainedRun, dict[str, Any]]:
    """A training that was given the run by its id, with all that it has recorded so far; and what MLflow held then."""
    run = RetainedRun(folder, there, encoder)
    info = run.directory.read_run()
    info.run_id, info.trainer_pid, info.trainer_started = run_id, trainer.pid, trainer.started
    run.directory.write_run(info)
    run.directory.journal.unlink()
    run.record(records.tags(trainer.tags), records.params({"given": folder.name}), records.tags({folder.name: "here"}))
    run.keep(1)
    return run, held(there, run_id)


def process(pid: int) -> Trainer:
    return Trainer(pid, psutil.Process(pid).create_time(), Machine.here())


@pytest.mark.parametrize("state", ["alive", "finished", "alive elsewhere"])
def test_nothing_is_added_to_the_run_of_a_training_that_lives_or_has_finished(
    state: str, there: ArtifactStore, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    monkeypatch.setattr("mltrack.relay.trainers.NOW_AND_THEN_S", 0.05)
    run_id = MlflowClient(there.uri).create_run("0").info.run_id
    gone = Trainer(2**22 + 1, 1.0, Machine.here())
    trainer = {"alive": process(os.getppid()), "finished": gone, "alive elsewhere": replace(gone, machine=OTHER)}[state]
    first, _ = begun(tmp_path / "first", there, encoder, run_id, trainer)
    if state == "finished":
        first.end()
        sync(first.directory)
    else:
        Projection(first.directory, connect(there.uri)).deliver()
    second, before = begun(tmp_path / "second", there, encoder, run_id, process(os.getpid()))
    with beating(there.uri, run_id) if state == "alive elsewhere" else nullcontext():
        if state == "alive elsewhere":
            until(lambda: HEARTBEAT_TAG in MlflowClient(there.uri).get_run(run_id).data.tags, "the first beat")
        with pytest.raises(OthersRun) as error:
            sync(second.directory)
    assert f"run {run_id} belongs to another training ({trainer.place}, " in str(error.value)
    after = held(there, run_id)
    after["tags"].pop(HEARTBEAT_TAG, None)
    assert after == before
    assert first.directory.read_delivery()["run_id"] == run_id
    assert second.directory.is_settled(), "nobody tries again by himself"


def test_of_two_that_find_the_run_free_at_the_same_moment_one_has_it(
    there: ArtifactStore, encoder: Path, tmp_path: Path
) -> None:
    run_id = MlflowClient(there.uri).create_run("0").info.run_id
    both = {
        name: begun(tmp_path / name, there, encoder, run_id, process(pid))[0]
        for name, pid in (("one", os.getpid()), ("two", os.getppid()))
    }
    opened = {name: Projection(run.directory, connect(there.uri)) for name, run in both.items()}
    with ThreadPoolExecutor() as pool:
        started = {name: pool.submit(projection.deliver) for name, projection in opened.items()}
        ends = {name: one.exception() for name, one in started.items()}
    refused = [name for name, error in ends.items() if isinstance(error, OthersRun)]
    (winner,) = ends.keys() - refused
    assert ends[winner] is None
    run = MlflowClient(there.uri).get_run(run_id)
    assert run.data.params == {"given": winner}
    assert run.data.tags.keys() & both == {winner}
    assert run.data.tags[PID_TAG] == str(both[winner].directory.read_run().trainer_pid)


LOOP = """
import sys, time, uuid
from mltrack.journal import RunInfo, records
from mltrack.relay import trainer_tags
from mltrack.tracking import TrainingMetricsTracker

folder, uri = sys.argv[1:]
tracker = TrainingMetricsTracker(folder, run=RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms()))
tracker.set_tags(trainer_tags())
tracker.start_delivery()
for step in range(1, 100_000):
    tracker.log_metric("train_loss", 1 / step, step)
    time.sleep(0.01)
"""


def test_a_relay_that_was_cut_off_finds_it_too_and_is_not_started_again(tmp_path: Path) -> None:
    """Its trainer lives and goes on; stopped is as good as cut off, and as a machine that slept."""
    uri = ready_store(tmp_path)
    directory = RunDirectory(tmp_path / "runs" / "one")
    trainer = start_script(LOOP, directory.path, uri)
    try:
        until(lambda: sent(directory) > 20, "the first points")
        relay = relay_pid(directory)
        pause_between_transactions(relay, tmp_path / "mlflow.db")
        stopped = time.monotonic()
        run_id = str(directory.read_delivery()["run_id"])
        two = RunDirectory(tmp_path / "two")
        shutil.copytree(directory.path, two.path)
        writer = JournalWriter(two.journal)
        points = records.metrics(1_000_000, {"train_loss": 0.5}, {})
        for record in (*beginning("second-machine", time.time() + 5, resumed=1), points, records.end("FINISHED", 0)):
            writer.append(record)
        writer.close()
        assert sync(two).complete
        before = held_points(uri, run_id)
        many = recorded(directory)
        until(
            lambda: recorded(directory) > many + 100 and time.monotonic() - stopped > 6,
            "more of the trainer's points, and an old answer",
        )
        os.kill(relay, signal.SIGCONT)
        until(lambda: not is_running(relay), "the relay's end")
        until(lambda: directory.read_delivery().get("elsewhere"), "the word of it")
        time.sleep(2)  # another relay would be there by now
        assert not is_running(int((directory.path / "relay.lock").read_text()))
        assert trainer.poll() is None
        (line,) = [line for line in directory.relay_log.read_text().splitlines() if "was resumed elsewhere" in line]
        assert f"run {run_id} was resumed elsewhere (on second-machine)" in line
    finally:
        kill(trainer.pid)
        trainer.communicate()
    assert held_points(uri, run_id) == before
    assert MlflowClient(uri).get_run(run_id).info.status == "FINISHED"
    assert undelivered(tmp_path / "runs") == []
