"""An undelivered run is delivered, whatever starts beside it: a second start in the folder of one's own loop, again and
again, dead or alive.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import commands
import psutil
import pytest
from ready_store import ready_store
from servers import free_port
from test_uploads_survive_outages import kept_checkpoint
from tracked_runs import assert_complete, client, complete, is_running, kill, recorded, relay_pid, start_script, until

from mltrack import CheckpointManager, TrainingMetricsTracker, relay
from mltrack.errors import TrackingError
from mltrack.journal import RunDirectory, RunInfo, find_run_directories, read_journal, records
from mltrack.runs.provenance import undelivered
from mltrack.store import artifacts, connect, models_of_run
from mltrack.tracking import earlier

LOOP = """
import sys, time
from mltrack import TrainingMetricsTracker

folder, uri, run_id, steps = sys.argv[1:]
with TrainingMetricsTracker(folder, run_id=run_id, tracking_uri=uri) as tracker:
    for step in range(1, int(steps) + 1):
        tracker.log_metric("train_loss", 1 / step, step)
        time.sleep(0.002)
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return ready_store(tmp_path)


def new_run(uri: str) -> str:
    return str(client(uri).create_run("0").info.run_id)


def undelivered_run(folder: Path, uri: str, *, offline: bool = False) -> RunDirectory:
    """Ended, with a checkpoint and a report, and nobody has delivered anything of it."""
    tracker = TrainingMetricsTracker(
        folder, run=RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms(), offline=offline)
    )
    tracker.log_metrics({"train_loss": 1.0, "eval_loss": 1.0}, step=1)
    tracker.log_checkpoints([kept_checkpoint(folder, 1)], best_step=1)
    (folder / "report.txt").write_text("of the first run")
    tracker.log_artifact(folder / "report.txt")
    tracker.close()
    return tracker.directory


def test_a_second_start_beside_a_killed_loop_both_arrive(tmp_path: Path, uri: str) -> None:
    first, second, folder = new_run(uri), new_run(uri), RunDirectory(tmp_path / "logs")
    process = start_script(LOOP, folder.path, uri, first, 1_000_000)
    until(lambda: folder.journal.exists() and recorded(folder) > 100, "100 records")
    delivering = relay_pid(folder)
    os.kill(delivering, signal.SIGSTOP)  # it is still there when the next loop starts
    process.kill()
    process.wait()
    again = start_script(LOOP, folder.path, uri, second, 50)
    aside = RunDirectory(folder.path / "earlier-run-1")
    os.kill(delivering, signal.SIGCONT)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    until(lambda: complete(aside), "the delivery of the first run")
    assert assert_complete(folder, uri, status="FINISHED") == second
    assert assert_complete(aside, uri, status="FAILED") == first
    assert not is_running(delivering)


@pytest.mark.long
def test_the_same_run_begun_once_more_is_ended_by_its_newest_loop_alone(tmp_path: Path, uri: str) -> None:
    run_id, folder = new_run(uri), tmp_path / "logs"
    for number, pid in ((1, None), (2, os.getpid())):
        tracker = TrainingMetricsTracker(
            folder, run=RunInfo(local_id=f"loop {number}", run_id=run_id, tracking_uri=uri, offline=True)
        )
        tracker.directory.write_run(RunInfo(**{**tracker.directory.read_run().__dict__, "trainer_pid": pid}))
        tracker.log_metric("train_loss", 1.0, step=number)
        if number == 1:  # as if it had been killed
            tracker._ended = True
            tracker.close()
    aside = RunDirectory(folder / "earlier-run-1")
    assert relay.sync(aside).complete
    run = client(uri).get_run(run_id)
    assert run.info.status == "RUNNING"
    assert "mltrack.status" not in run.data.tags
    tracker.close()
    assert relay.sync(tracker.directory).complete
    assert client(uri).get_run(run_id).info.status == "FINISHED"
    assert len(client(uri).get_metric_history(run_id, "train_loss")) == 2


@pytest.mark.long
def test_what_an_undelivered_run_names_is_found_though_the_next_one_replaces_it(tmp_path: Path, uri: str) -> None:
    folder = undelivered_run(tmp_path / "logs", uri).path
    tracker = TrainingMetricsTracker(folder)
    (folder / "report.txt").write_text("of the second run")
    for path in (folder / "checkpoints" / "step-00000001").iterdir():
        path.unlink()
    tracker.close()
    aside = RunDirectory(folder / "earlier-run-1")
    until(lambda: complete(aside), "the delivery of the first run")
    run_id, store = assert_complete(aside, uri, status="FINISHED"), connect(uri)
    assert [(one["step"], one["status"]) for one in models_of_run(store, run_id)] == [(1, "READY")]
    assert artifacts.download(store, run_id, "report.txt", tmp_path / "back").read_text() == "of the first run"
    assert "Traceback" not in aside.relay_log.read_text()


def test_an_entry_that_cannot_be_set_aside_is_named_and_costs_itself_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    (folder / "out" / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/d.txt", "z.txt"):
        (folder / "out" / name).write_text(name)
    (folder / "out" / "b\ndangling").symlink_to("nowhere")
    os.mkfifo(folder / "out" / "c")
    (tmp_path / "secret").write_text("of somebody else")
    (folder / "out" / "deep" / "leads_out").symlink_to(tmp_path / "secret")
    run = RunInfo(local_id=uuid.uuid4().hex, tracking_uri="http://127.0.0.1:9", created_ms=1, offline=True)
    with TrainingMetricsTracker(folder, run=run) as tracker:
        tracker.log_artifact(folder / "out" / "a.txt")
        tracker.log_artifact(folder / "out")
    TrainingMetricsTracker(folder).close()
    taken = folder / "earlier-run-1" / "out"
    assert {path.relative_to(taken).as_posix() for path in taken.rglob("*") if not path.is_dir()} == {
        "a.txt",
        "deep/d.txt",
        "z.txt",
    }
    assert len(caplog.messages) == 3
    for name, line in zip(("b\\ndangling", "out/c", "leads_out"), caplog.messages, strict=True):
        assert line.startswith("left out of the run that is set aside in logs/earlier-run-1: ")
        assert name in line
        assert line.isprintable()


def test_without_a_server_all_of_them_wait_and_one_sync_of_the_folder_delivers_them(tmp_path: Path, uri: str) -> None:
    nowhere, folder = f"http://127.0.0.1:{free_port()}", tmp_path / "logs"
    for _ in range(3):
        undelivered_run(folder, nowhere, offline=True)
    asides = [RunDirectory(folder / f"earlier-run-{number}") for number in (1, 2)]
    assert find_run_directories(folder) == find_run_directories(tmp_path) == [*asides, RunDirectory(folder)]
    listed = commands.mltrack("runs", "--output-dir", folder, "--output", "json", cwd=tmp_path)
    assert [row["run"] for row in json.loads(listed.stdout)] == [
        "logs/earlier-run-1",
        "logs/earlier-run-2",
        "logs",
    ], listed.stderr
    finished = commands.mltrack("sync", folder, "--tracking-uri", uri, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    found = {assert_complete(one, uri, status="FINISHED") for one in (*asides, RunDirectory(folder))}
    assert len(found) == 3
    assert all(len(models_of_run(connect(uri), run_id)) == 1 for run_id in found)


@pytest.mark.long
def test_a_run_beside_which_one_without_mlflow_started_is_found_too(tmp_path: Path, uri: str) -> None:
    folder = undelivered_run(tmp_path / "logs", uri, offline=True).path
    TrainingMetricsTracker(folder).close()
    assert not (folder / "run.json").exists()
    assert find_run_directories(tmp_path) == [RunDirectory(folder / "earlier-run-1")]
    finished = commands.mltrack("sync", folder, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert_complete(RunDirectory(folder / "earlier-run-1"), uri, status="FINISHED")


@pytest.mark.long
def test_a_checkpoint_managers_own_run_is_delivered_though_another_manager_starts_there(
    tmp_path: Path, uri: str
) -> None:
    import torch

    first, second = new_run(uri), new_run(uri)
    for run_id in (first, second):
        manager = CheckpointManager(tmp_path / "checkpoints", run_id=run_id, tracking_uri=uri)
        relay_of_it = relay_pid(RunDirectory(tmp_path / "checkpoints"))
        if run_id == first:
            os.kill(relay_of_it, signal.SIGKILL)
        manager.save_checkpoint(model=torch.nn.Linear(1, 1), epoch=0, step=1, metric_value=1.0)
        assert manager._tracker is not None
        if run_id == first:
            assert manager._tracker.delivery is not None
            manager._tracker.delivery._stopped.set()  # nobody starts another relay
            kill(relay_of_it)
            manager._tracker.close(exit_wait_s=0)
        else:
            manager.close()
    aside = RunDirectory(tmp_path / "checkpoints" / "earlier-run-1")
    until(lambda: complete(aside), "the delivery of the first one's run")
    for directory, run_id in ((aside, first), (RunDirectory(tmp_path / "checkpoints"), second)):
        assert assert_complete(directory, uri, status="FINISHED") == run_id
        assert "checkpoints/1/state/model.safetensors" in artifacts.list_files(connect(uri), run_id)


def test_the_exit_code_of_a_script_that_closed_nothing_goes_along(tmp_path: Path, uri: str) -> None:
    first = undelivered_run(tmp_path / "logs", uri, offline=True)
    first.exit_code_file.write_bytes((3).to_bytes(4, sys.byteorder))
    with TrainingMetricsTracker(tmp_path / "logs"):
        assert (first.read_exit_code(), RunDirectory(tmp_path / "logs" / "earlier-run-1").read_exit_code()) == (None, 3)


def test_a_loop_that_is_alive_is_not_disturbed(tmp_path: Path, uri: str) -> None:
    folder = RunDirectory(tmp_path / "logs")
    with TrainingMetricsTracker(folder.path, run=RunInfo(local_id="living", tracking_uri=uri)) as living:
        until(folder.heartbeat.exists, "its first heartbeat")
        before = sorted(path.name for path in folder.path.iterdir())
        other = commands.run(
            sys.executable,
            "-c",
            f"from mltrack import TrainingMetricsTracker as T; T({str(folder.path)!r})",
            cwd=tmp_path,
        )
        assert "another process is writing this journal" in other.stderr
        assert sorted(path.name for path in folder.path.iterdir()) == before
        living.log_metric("x", 1.0, step=1)
    assert [record["type"] for record in read_journal(folder.journal)] == ["journal", "metrics", "end"]
    assert folder.read_run().local_id == "living"


START = (
    "import sys; from mltrack import TrainingMetricsTracker as T; t = T(sys.argv[1]); print('started', flush=True);"
    " input(); t.close()"
)


def test_of_starts_that_overlap_one_wins_and_no_journal_is_lost(tmp_path: Path, uri: str) -> None:
    folder = undelivered_run(tmp_path / "logs", uri, offline=True)
    held = folder.journal.read_bytes()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(folder.path)],
            env=commands.environment(),
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    until(lambda: sum(racer.poll() is None for racer in racers) <= 1, "all but one to give up")
    ended = [racer.communicate("\n", timeout=60) for racer in racers]
    assert sorted(out for out, _ in ended) == ["", "", "", "started\n"], ended
    assert all("another process is writing this journal" in errors for out, errors in ended if not out)
    assert held in [one.journal.read_bytes() for one in folder.earlier()]
    assert [one.read_run().offline for one in folder.earlier()] == [True]
    assert [record["type"] for record in read_journal(folder.journal)] == ["journal", "end"]


@pytest.mark.parametrize("moment", ["copy2", "rename", "unlink"])
def test_a_start_that_is_killed_while_it_sets_a_run_aside_leaves_it_in_one_place(
    tmp_path: Path, uri: str, moment: str
) -> None:
    folder = undelivered_run(tmp_path / "logs", uri, offline=True)
    held, local_id = folder.journal.read_bytes(), folder.read_run().local_id
    killed = (
        "import os, shutil, signal, sys\n"
        "from pathlib import Path\n"
        f"place = shutil if {moment!r} == 'copy2' else Path\n"
        f"real = getattr(place, {moment!r})\n"
        "def then_die(*words, **more):\n"
        "    real(*words, **more)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "from mltrack import TrainingMetricsTracker\n"
        f"setattr(place, {moment!r}, then_die)\n"
        "TrainingMetricsTracker(sys.argv[1])\n"
    )
    assert commands.run(sys.executable, "-c", killed, folder.path, cwd=tmp_path).returncode == -signal.SIGKILL
    TrainingMetricsTracker(folder.path).close()
    (kept,) = [one for one in folder.earlier() if one.journal.read_bytes() == held]
    assert kept.read_run().local_id == local_id
    assert not folder.run_file.exists()
    assert not folder.delivery_file.exists()


@pytest.mark.long
def test_what_the_last_delivery_could_not_finish_the_next_start_does(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "logs"
    for _ in range(3):
        tracker = TrainingMetricsTracker(
            folder, run=RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms(), offline=True)
        )
        tracker.close()
    asides = RunDirectory(folder).earlier()
    for one in asides:
        one.write_run(RunInfo(**{**one.read_run().__dict__, "offline": False}))
        one.write_run(RunInfo(**{**one.read_run().__dict__, "trainer_pid": None}))
    assert {one.path for one in undelivered(tmp_path)} == {one.path for one in asides}
    TrainingMetricsTracker(folder).close()
    until(lambda: all(map(complete, asides)), "both deliveries")
    assert {client(uri).get_run(one.read_delivery()["run_id"]).info.status for one in asides} == {"FINISHED"}


def test_a_delivery_that_cannot_be_ended_from_here_is_said(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = undelivered_run(tmp_path / "logs", uri, offline=True)
    monkeypatch.setattr(earlier, "LETS_GO_S", 0.2)
    holding = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.write(str(os.getpid()));"
        " f.flush(); print(flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", holding, folder.path / "relay.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(
            TrackingError,
            match=f"process {holder.pid} delivers the earlier run in this folder and cannot be ended from here",
        ):
            TrainingMetricsTracker(folder.path)
        assert psutil.pid_exists(holder.pid)
        assert holder.poll() is None
    finally:
        holder.kill()
        holder.wait()
    assert folder.earlier() == []
    relay.sync(folder)
    assert_complete(folder, uri, status="FINISHED")
