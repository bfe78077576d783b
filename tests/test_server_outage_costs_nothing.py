"""A server that fails, hangs or loses its replies costs the training nothing but a bounded wait at its end, and no point."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
import tiny
from faulty_proxy import FaultyProxy, faulty_proxy
from servers import free_port, mlflow_server
from tracked_runs import PER_STEP, assert_complete, complete, is_running, journal_points, kill, relay_pid, sent, start_stream, sync, until

from mltrack.journal import RunDirectory

EXIT_S = 12.0
"""Ten seconds after the last acknowledged request, and what ending takes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture
def proxy(server: str) -> Iterator[FaultyProxy]:
    with faulty_proxy(server) as proxy:
        yield proxy


def stop_relay(directory: RunDirectory) -> None:
    """A relay goes on trying for minutes after its trainer has gone; a test does not."""
    kill(relay_pid(directory))


def assert_everything_is_there(directory: RunDirectory, steps: int, uri: str, status: str = "FINISHED") -> None:
    assert_complete(directory, uri, status=status)
    assert [step for _, _, step in journal_points(directory)["train_loss"]] == list(range(1, steps + 1))


@pytest.mark.parametrize("fault", ["unavailable", "cut", "lose_reply"])
def test_a_request_that_fails_once_is_sent_again(tmp_path: Path, proxy: FaultyProxy, server: str, fault: str):
    proxy.next_faults.extend(["none", fault, "none", fault])
    stream = start_stream(tmp_path / "run", proxy.uri, count=1000)
    assert stream.finish() == "complete"
    assert proxy.count(fault) == 2
    assert_everything_is_there(stream.directory, 1000, server)


def test_a_slow_server_is_waited_for(tmp_path: Path, proxy: FaultyProxy, server: str):
    proxy.fault, proxy.delay_s = "slow", 1.0
    stream = start_stream(tmp_path / "run", proxy.uri, count=1000)
    assert stream.finish() == "complete"
    assert_everything_is_there(stream.directory, 1000, server)


@pytest.mark.parametrize("fault", ["cut", "hang"])
def test_a_server_that_fails_always_costs_ten_seconds_at_the_end(tmp_path: Path, proxy: FaultyProxy, server: str, fault: str):
    stream = start_stream(tmp_path / "run", proxy.uri, count=1000, pause_s=0.003)
    until(lambda: sent(stream.directory) > 0, "the first acknowledged points")
    proxy.fault = fault
    assert stream.process.poll() is None, "the stream is too short for this machine"
    journal = stream.directory.journal
    until(lambda: journal_points(stream.directory)["train_loss"][-1][2] == 1000, "the last step")
    ended = time.monotonic()
    assert stream.finish() == "pending"
    assert time.monotonic() - ended < EXIT_S
    assert not complete(stream.directory)
    assert journal.stat().st_size > stream.directory.read_delivery()["offset"]
    stop_relay(stream.directory)
    proxy.fault = "none"
    for _ in range(2):
        finished = sync(stream.directory)
        assert finished.returncode == 0, finished.stderr
        assert_everything_is_there(stream.directory, 1000, server)


def test_the_relay_goes_on_by_itself_once_the_server_is_back(tmp_path: Path, proxy: FaultyProxy, server: str):
    proxy.fault = "unavailable"
    stream = start_stream(tmp_path / "run", proxy.uri, count=200)
    assert stream.finish() == "pending"
    relay = relay_pid(stream.directory)
    proxy.fault = "none"
    until(lambda: complete(stream.directory), "the relay to finish", within_s=30)
    assert_everything_is_there(stream.directory, 200, server)
    until(lambda: not is_running(relay), "the relay to end")


def test_recording_is_as_fast_without_a_server(tmp_path: Path, proxy: FaultyProxy, server: str):
    """10,000 steps against a server that answers nothing: in the time that the disk needs, not in the server's."""
    proxy.fault = "hang"
    stream = start_stream(tmp_path / "run", proxy.uri, count=10_000, pause_s=0)
    until(lambda: stream.directory.journal.exists(), "the journal")
    started = time.monotonic()
    until(lambda: stream.directory.journal.read_bytes().count(b"\n") >= 10_000, "10,000 records")
    assert time.monotonic() - started < 5
    assert stream.finish() == "pending"
    stop_relay(stream.directory)
    proxy.fault = "none"
    assert sync(stream.directory).returncode == 0
    assert sent(stream.directory) == 10_000 * PER_STEP
    assert_everything_is_there(stream.directory, 10_000, server)


@pytest.mark.long
@pytest.mark.parametrize(("learning_rate", "exit_code"), [("2e-3", 0), ("1e30", 1)])
def test_a_training_without_a_server_keeps_its_exit_code(tmp_path: Path, records_file, learning_rate: str, exit_code: int):
    dead = f"http://127.0.0.1:{free_port()}"
    words = ("--task", "code_generation", "--dataset-path", records_file("code_generation", 24), *commands.TINY, "--epochs", "2")
    finished = commands.mltrack("train", *words, "--learning-rate", learning_rate, "--tracking-uri", dead, "--output", "json", cwd=tmp_path)
    assert finished.returncode == exit_code, finished.stderr
    response = tiny.last_json_line(finished.stdout)
    assert (response["success"], response["delivery"]) == (exit_code == 0, "pending")
    directory = RunDirectory(tmp_path / "mltrack-runs" / response["run_id"])
    assert "mltrack sync" in finished.stderr
    stop_relay(directory)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    synced = sync(directory, "--tracking-uri", uri)
    assert synced.returncode == 0, synced.stderr
    assert_complete(directory, uri, status="FAILED" if exit_code else "FINISHED")
