"""A server that fails, hangs or loses its replies costs the training nothing but a bounded wait at its end, and no
point.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
import tiny
from faulty_proxy import FaultyProxy, faulty_proxy
from ready_store import ready_store
from servers import free_port
from tracked_runs import (
    PER_STEP,
    assert_complete,
    client,
    complete,
    is_running,
    journal_points,
    kill,
    recorded,
    relay_pid,
    sent,
    start_script,
    start_stream,
    sync,
    until,
)

from mltrack.journal import RunDirectory

EXIT_S = 10.0 + 5.0
"""From the end of the loop to the end of the process: what waiting for a server may cost, and what a busy machine takes
to end one.
"""


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
def test_a_server_that_fails_always_costs_ten_seconds_at_the_end(
    tmp_path: Path, proxy: FaultyProxy, server: str, fault: str
):
    stream = start_stream(tmp_path / "run", proxy.uri, count=1, pause_s=0.003, ends_with=tmp_path / "recorded")
    until(lambda: sent(stream.directory) > 0, "the first acknowledged points")
    proxy.fault = fault
    before = recorded(stream.directory)
    until(lambda: recorded(stream.directory) > before + 300, "300 steps without a server")
    ended = time.monotonic()
    (tmp_path / "recorded").touch()
    assert stream.finish() == "pending"
    assert time.monotonic() - ended < EXIT_S
    assert not complete(stream.directory)
    assert stream.directory.journal.stat().st_size > stream.directory.read_delivery()["offset"]
    steps = len(journal_points(stream.directory)["train_loss"])
    stop_relay(stream.directory)
    proxy.fault = "none"
    for _ in range(2):
        finished = sync(stream.directory)
        assert finished.returncode == 0, finished.stderr
        assert_everything_is_there(stream.directory, steps, server)


def test_the_relay_goes_on_by_itself_once_the_server_is_back(tmp_path: Path, proxy: FaultyProxy, server: str):
    proxy.fault = "unavailable"
    stream = start_stream(tmp_path / "run", proxy.uri, count=200)
    assert stream.finish() == "pending"
    relay = relay_pid(stream.directory)
    proxy.fault = "none"
    until(lambda: complete(stream.directory), "the relay to finish")
    assert_everything_is_there(stream.directory, 200, server)
    until(lambda: not is_running(relay), "the relay to end")


def test_recording_is_as_fast_without_a_server(tmp_path: Path, proxy: FaultyProxy, server: str):
    """10,000 steps against a server that answers nothing: in the time that the disk needs, not in the server's."""
    proxy.fault = "hang"
    stream = start_stream(tmp_path / "run", proxy.uri, count=10_000, pause_s=0)
    until(lambda: stream.directory.journal.exists(), "the journal")
    started = time.monotonic()
    until(lambda: stream.directory.journal.read_bytes().count(b"\n") >= 10_000, "10,000 records")
    assert time.monotonic() - started < 30
    assert stream.finish() == "pending"
    stop_relay(stream.directory)
    proxy.fault = "none"
    assert sync(stream.directory).returncode == 0
    assert sent(stream.directory) == 10_000 * PER_STEP
    assert_everything_is_there(stream.directory, 10_000, server)


@pytest.mark.long
def test_a_server_that_is_slow_with_many_points_gets_smaller_requests(tmp_path: Path, proxy: FaultyProxy, server: str):
    """A request of 1,000 points would take it 21 s, which nobody waits for."""
    proxy.delay_per_point_s = 0.021
    stream = start_stream(tmp_path / "run", proxy.uri, count=334, pause_s=0, offline=True)
    stream.finish()
    finished = sync(stream.directory)
    assert finished.returncode == 0, finished.stderr
    assert_everything_is_there(stream.directory, 334, server)


POISON = """
import sys
from mltrack.journal import RunInfo, records
from mltrack.tracking import TrainingMetricsTracker

folder, uri = sys.argv[1:]
tracker = TrainingMetricsTracker(folder, run=RunInfo(local_id="poison", tracking_uri=uri, created_ms=records.now_ms()))
tracker.log_params({"before": "1", "bad": "POISON of a param", "after": "2"})
tracker.set_tags({"before": "1", "bad": "POISON of a tag", "after": "2"})
tracker.log_inputs([{"name": name, "digest": name} for name in ("before", "POISON", "after")])
for step in range(1, 301):
    tracker.log_metrics({"good": step / 300, **({"POISON": 1.0} if step == 150 else {})}, step)
tracker.close()
"""


def test_what_the_server_fails_on_is_isolated_and_holds_nothing_up(tmp_path: Path, proxy: FaultyProxy, server: str):
    """MLflow answers some values that its database cannot hold as it answers an outage."""
    proxy.poison = b"POISON"
    program = start_script(POISON, tmp_path / "run", proxy.uri)
    assert program.wait(60) == 0
    directory = RunDirectory(tmp_path / "run")
    finished = sync(directory)
    assert finished.returncode == 0, finished.stderr
    assert "300 points sent, 0 already there, 4 failed" in finished.stdout
    progress = directory.read_delivery()
    assert [line.partition(":")[0] for line in progress["failed"]] == [
        "param bad",
        "tag bad",
        "data set POISON",
        "POISON at step 150",
    ]
    run = client(server).get_run(progress["run_id"])
    assert (run.info.status, run.data.params) == ("FINISHED", {"before": "1", "after": "2"})
    assert {name: run.data.tags.get(name) for name in ("before", "bad", "after")} == {
        "before": "1",
        "bad": None,
        "after": "2",
    }
    assert {one.dataset.name for one in run.inputs.dataset_inputs} == {"before", "after"}
    assert "mltrack.refused" in run.data.tags
    assert [point.step for point in client(server).get_metric_history(run.info.run_id, "good")] == list(range(1, 301))


def test_a_server_that_fails_on_everything_is_an_outage_and_costs_no_value(
    tmp_path: Path, proxy: FaultyProxy, server: str
):
    stream = start_stream(tmp_path / "run", proxy.uri, count=300, pause_s=0, offline=True)
    stream.finish()
    proxy.poison = b'"metrics"'
    assert sync(stream.directory).returncode == 1
    proxy.poison = None
    finished = sync(stream.directory)
    assert finished.returncode == 0, finished.stderr
    assert_everything_is_there(stream.directory, 300, server)


@pytest.mark.long
@pytest.mark.parametrize(("learning_rate", "exit_code"), [("2e-3", 0), ("1e30", 1)])
def test_a_training_without_a_server_keeps_its_exit_code(
    tmp_path: Path, records_file, learning_rate: str, exit_code: int
):
    dead = f"http://127.0.0.1:{free_port()}"
    words = commands.training(records_file("code_generation", 24), "--epochs", "2", task="code_generation")
    finished = commands.mltrack(
        *words, "--learning-rate", learning_rate, "--tracking-uri", dead, "--output", "json", cwd=tmp_path
    )
    assert finished.returncode == exit_code, finished.stderr
    response = tiny.last_json_line(finished.stdout)
    assert (response["success"], response["delivery"]) == (exit_code == 0, "pending")
    directory = RunDirectory(tmp_path / "mltrack-runs" / response["run_id"])
    assert "mltrack sync" in finished.stderr
    stop_relay(directory)
    uri = ready_store(tmp_path)
    synced = sync(directory, "--tracking-uri", uri)
    assert synced.returncode == 0, synced.stderr
    assert_complete(directory, uri, status="FAILED" if exit_code else "FINISHED")
