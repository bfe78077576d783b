"""A run without a server is delivered later: one MLflow run, whatever is cut off, repeated or done twice at once."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import commands
import psutil
import pytest
from ready_store import ready_store
from servers import free_port
from tracked_runs import (
    PER_STEP,
    Stream,
    assert_complete,
    client,
    complete,
    is_running,
    journal_points,
    kill,
    relay_pid,
    sent,
    start_script,
    start_stream,
    sync,
    until,
)

from mltrack.journal import RunDirectory

STEPS = 3000


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def offline(tmp_path: Path, uri: str) -> RunDirectory:
    """A run that ended without a server."""
    stream = start_stream(tmp_path / "runs" / "run", uri, count=STEPS, pause_s=0, offline=True)
    stream.finish()
    assert not (tmp_path / "mlflow.db").exists()
    assert not stream.directory.relay_log.exists(), "no relay was started"
    return stream.directory


def run_ids(uri: str) -> list[str]:
    api = client(uri)
    return [run.info.run_id for run in api.search_runs([one.experiment_id for one in api.search_experiments()])]


def start_sync(directory: RunDirectory, script: str = "", *words: object):
    """`mltrack sync`, with a few lines run before it in the same process."""
    program = (
        f"import sys\nfrom mltrack.cli import main\n{script}\nsys.argv = ['mltrack', 'sync',"
        " sys.argv[1]]\nsys.exit(main())"
    )
    return start_script(program, directory.path, *words)


def test_sync_twice_makes_one_run_with_every_point_once(offline: RunDirectory, uri: str):
    counts = []
    for _ in range(2):
        finished = sync(offline)
        assert finished.returncode == 0, finished.stderr
        run_id = assert_complete(offline, uri, status="FINISHED")
        assert run_ids(uri) == [run_id]
        assert sent(offline) == STEPS * PER_STEP
        counts.append(finished.stdout.partition("complete, ")[2].partition(", run")[0])
    assert counts == ["9,000 points sent, 0 already there, 0 failed", "0 points sent, 9,000 already there, 0 failed"]
    run = client(uri).get_run(run_id)
    assert run.data.params == {"count": str(STEPS)}
    assert run.info.start_time == offline.read_run().created_ms, "when it ran, not when it was delivered"


CUT_OFF = """
import os, signal
from mltrack.journal import RunDirectory
RunDirectory.write_run = lambda self, info: os.kill(os.getpid(), signal.SIGKILL)
"""
"""The process dies when the MLflow run exists and run.json is about to be told its id."""


def test_killed_between_making_the_run_and_writing_its_id_down(offline: RunDirectory, uri: str):
    for _ in range(2):
        process = start_sync(offline, CUT_OFF)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        assert offline.read_run().run_id is None
        assert len(run_ids(uri)) == 1, "the second look finds the first one's run by its tag"
    orphan = run_ids(uri)
    finished = sync(offline)
    assert finished.returncode == 0, finished.stderr
    assert [assert_complete(offline, uri, status="FINISHED")] == orphan == run_ids(uri)


def test_killed_in_the_middle_of_the_points(offline: RunDirectory, uri: str):
    process = start_sync(offline)
    until(lambda: 0 < sent(offline) < STEPS * PER_STEP, "some points but not all")
    kill(process.pid)
    process.communicate()
    assert not complete(offline)
    assert sync(offline).returncode == 0
    assert [assert_complete(offline, uri, status="FINISHED")] == run_ids(uri)


def test_two_at_once_do_no_harm(offline: RunDirectory, uri: str):
    both = [start_sync(offline) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, answers
    for code, (_, errors) in zip(codes, answers, strict=True):
        if code:
            assert "is being delivered by process" in errors
            assert "Traceback" not in errors
    assert [assert_complete(offline, uri, status="FINISHED")] == run_ids(uri)


def test_sync_beside_the_relay_waits_or_says_so(tmp_path: Path, uri: str):
    stream = start_stream(tmp_path / "run", uri, count=100_000)
    until(lambda: sent(stream.directory) > 0, "the first acknowledged points")
    finished = sync(stream.directory)
    assert finished.returncode == 1
    assert f"is being delivered by process {relay_pid(stream.directory)}" in finished.stderr
    kill(stream.process.pid)
    stream.process.communicate()
    until(lambda: complete(stream.directory), "the relay to finish")
    assert_complete(stream.directory, uri, status="FAILED")


def test_a_run_that_still_goes_on_is_synced_and_not_ended(tmp_path: Path, uri: str):
    stream = start_stream(tmp_path / "run", uri, count=100_000, offline=True)
    try:
        until(
            lambda: (
                stream.directory.journal.exists() and len(journal_points(stream.directory).get("train_loss", [])) > 100
            ),
            "100 steps",
        )
        finished = sync(stream.directory)
        assert finished.returncode == 0, finished.stderr
        assert "still running" in finished.stdout
        assert client(uri).get_run(stream.directory.read_run().run_id or "").info.status == "RUNNING"
    finally:
        kill(stream.process.pid)
        stream.process.communicate()
    assert sync(stream.directory).returncode == 0
    assert_complete(stream.directory, uri, status="FAILED")


def test_another_server_gets_everything_too(offline: RunDirectory, uri: str, tmp_path: Path):
    assert sync(offline).returncode == 0
    first = assert_complete(offline, uri, status="FINISHED")
    other = ready_store(tmp_path, "other.db")
    finished = sync(offline, "--tracking-uri", other)
    assert finished.returncode == 0, finished.stderr
    assert "9,000 points sent, 0 already there, 0 failed" in finished.stdout
    assert len(run_ids(other)) == 1
    assert_complete(offline, other, status="FINISHED")
    assert run_ids(uri) == [first]


def test_no_server_at_the_start(tmp_path: Path):
    dead = f"http://127.0.0.1:{free_port()}"
    stream = start_stream(tmp_path / "run", dead, count=300)
    assert stream.finish() == "pending"
    kill(relay_pid(stream.directory))
    refused = sync(stream.directory)
    assert refused.returncode == 1
    assert dead in refused.stderr
    assert "Traceback" not in refused.stderr
    uri = ready_store(tmp_path)
    finished = sync(stream.directory, "--tracking-uri", uri)
    assert finished.returncode == 0, finished.stderr
    assert [assert_complete(stream.directory, uri, status="FINISHED")] == run_ids(uri)


def test_a_terminal_has_a_progress_bar_and_a_pipe_has_none(offline: RunDirectory):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mltrack", "sync", str(offline.path)],
        cwd=offline.path.parent,
        env=commands.environment(TERM="xterm", COLUMNS="120"),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # the other end is closed
        while chunk := os.read(ours, 65536):
            seen += chunk
    os.close(ours)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, seen.decode()
    shown = {int(percent) for percent in re.findall(rb"(\d+)%", seen)}
    assert offline.path.name.encode() in seen
    assert len(shown) > 2, shown
    assert "9,000 points sent, 0 already there, 0 failed" in out
    piped = sync(offline)
    assert piped.stderr == ""
    assert "\x1b" not in piped.stdout


def test_all_delivers_every_run_of_a_folder(tmp_path: Path, uri: str):
    streams: list[Stream] = [
        start_stream(tmp_path / "runs" / f"run{number}", uri, count=200, pause_s=0, offline=True) for number in range(3)
    ]
    for stream in streams:
        stream.finish()
    finished = commands.mltrack("sync", "--all", "true", "--output-dir", tmp_path / "runs", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    ids = {assert_complete(stream.directory, uri, status="FINISHED") for stream in streams}
    assert ids == set(run_ids(uri))
    assert len(ids) == 3
    listed = json.loads(
        commands.mltrack("runs", "--output-dir", tmp_path / "runs", "--output", "json", cwd=tmp_path).stdout
    )
    assert [row["delivery"] for row in listed] == ["complete"] * 3


def test_offline_starts_no_process(tmp_path: Path, uri: str):
    stream = start_stream(tmp_path / "run", uri, count=100_000, offline=True)
    until(lambda: stream.directory.journal.exists(), "the journal")
    assert psutil.Process(stream.process.pid).children() == []
    kill(stream.process.pid)
    stream.process.communicate()
    assert not is_running(stream.process.pid)
