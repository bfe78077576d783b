"""`mltrack runs` names the MLflow runs that say RUNNING though nobody trains them; `--reap true` sets those right and
no others.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from mlflow import MlflowClient
from ready_store import ready_store
from tracked_runs import Stream, assert_complete, client, complete, kill, relay_pid, sent, start_stream, until

from mltrack.relay.liveness import HOST_TAG, PID_TAG, STARTED_TAG


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return ready_store(tmp_path)


def listed(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    finished = commands.mltrack("runs", "--output-dir", folder / "runs", *words, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return finished


def dead_stream(folder: Path, uri: str) -> Stream:
    """A run whose trainer and relay were killed in the middle."""
    stream = start_stream(folder, uri, count=100_000)
    until(lambda: sent(stream.directory) > 0, "the first acknowledged points")
    relay = relay_pid(stream.directory)
    os.kill(relay, signal.SIGSTOP)  # it would deliver the rest
    stream.process.kill()  # the trainer first: it would start another relay
    kill(relay)
    stream.process.communicate()
    assert not complete(stream.directory)
    return stream


def test_a_dead_run_is_named_and_set_right_and_a_living_one_is_left_alone(tmp_path: Path, uri: str):
    living = start_stream(tmp_path / "runs" / "living", uri, count=100_000, pause_s=0.02)
    try:
        dead = dead_stream(tmp_path / "runs" / "dead", uri)
        until(lambda: sent(living.directory) > 0, "the living run's first points")
        ids = {stream: str(stream.directory.read_delivery()["run_id"]) for stream in (living, dead)}
        assert {client(uri).get_run(run_id).info.status for run_id in ids.values()} == {"RUNNING"}
        before = listed(tmp_path)
        assert f"{ids[dead]}: RUNNING in {uri}, but it has no trainer; --reap true " in before.stdout
        assert ids[living] not in before.stdout
        after = listed(tmp_path, "--reap", "true")
        assert f"{ids[dead]}: was RUNNING without a trainer, is FAILED now" in after.stdout
        assert assert_complete(dead.directory, uri, status="FAILED") == ids[dead]
        assert client(uri).get_run(ids[living]).info.status == "RUNNING"
        assert "without a trainer" not in listed(tmp_path, "--reap", "true").stdout
    finally:
        kill(living.process.pid)
        living.process.communicate()
    until(lambda: complete(living.directory), "the living run's relay to finish")


def test_a_run_that_its_relay_still_delivers_is_the_relays(tmp_path: Path, uri: str):
    """A reaper and the relay would both end it; the relay knows how."""
    stream = start_stream(tmp_path / "runs" / "run", uri, count=100_000)
    until(lambda: sent(stream.directory) > 0, "the first acknowledged points")
    relay = relay_pid(stream.directory)
    commands.run("kill", "-STOP", relay, cwd=tmp_path)
    try:
        kill(stream.process.pid)
        stream.process.communicate()
        assert "RUNNING in" not in listed(tmp_path, "--reap", "true").stdout
    finally:
        commands.run("kill", "-CONT", relay, cwd=tmp_path)
    until(lambda: complete(stream.directory), "the relay to finish")
    assert_complete(stream.directory, uri, status="FAILED")


def test_without_a_run_directory_the_tags_tell_host_and_process(tmp_path: Path, uri: str):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    api = MlflowClient(tracking_uri=uri)

    def run(**tags: object) -> str:
        given = {HOST_TAG: socket.gethostname(), PID_TAG: ended.pid, STARTED_TAG: 1.0, "mltrack.local_id": "x", **tags}
        return str(api.create_run("0", tags={name: str(value) for name, value in given.items()}).info.run_id)

    dead, elsewhere, unreadable = run(), run(**{HOST_TAG: "another-machine"}), run(**{PID_TAG: "none"})
    users_own = str(api.create_run("0").info.run_id)
    shown = listed(tmp_path, "--reap", "true").stdout
    assert f"{dead}: was RUNNING without a trainer, is FAILED now" in shown
    assert [api.get_run(one).info.status for one in (dead, elsewhere, unreadable, users_own)] == [
        "FAILED",
        "RUNNING",
        "RUNNING",
        "RUNNING",
    ]


def test_runs_of_another_store_than_the_default_are_found_and_json_stays_json(tmp_path: Path, uri: str):
    other = ready_store(tmp_path, "other.db")
    dead = dead_stream(tmp_path / "runs" / "dead", other)
    run_id = dead.directory.read_delivery()["run_id"]
    finished = listed(tmp_path, "--reap", "true", "--output", "json")
    assert [row["run"] for row in json.loads(finished.stdout)] == ["dead"]
    assert f"{run_id}: was RUNNING without a trainer, is FAILED now" in finished.stderr
    assert_complete(dead.directory, other, status="FAILED")
