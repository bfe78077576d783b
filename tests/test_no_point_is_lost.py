"""Every point of the journal is in MLflow exactly once, in order and equal, whatever was killed in between."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from ready_store import ready_store
from servers import free_port, mlflow_server
from tracked_runs import (
    PER_STEP,
    Stream,
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

from mltrack.errors import TrackingError
from mltrack.journal import RunDirectory, read_journal
from mltrack.store import runs
from mltrack.tracking import TrainingMetricsTracker

STEPS = 1500


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return ready_store(tmp_path)


def delivering(stream: Stream) -> None:
    """Return in the middle of the stream, with something acknowledged and something not."""
    until(lambda: sent(stream.directory) > 0, "the first acknowledged points")
    assert stream.process.poll() is None, "the stream is too short for this machine"


def all_steps(directory: RunDirectory) -> list[int]:
    return [step for _, _, step in journal_points(directory)["train_loss"]]


def test_trainer_killed(tmp_path, uri):
    stream = start_stream(tmp_path / "run", uri, count=100_000)
    delivering(stream)
    kill(stream.process.pid)
    stream.process.wait()
    until(lambda: complete(stream.directory), "the relay to finish by itself")
    run_id = assert_complete(stream.directory, uri, status="FAILED")
    assert client(uri).get_run(run_id).data.tags["mltrack.status"] == "FAILED"
    assert all_steps(stream.directory) == list(range(1, len(all_steps(stream.directory)) + 1))


def test_a_relay_is_started_again_as_often_as_it_is_killed(tmp_path, uri):
    stream = start_stream(tmp_path / "run", uri, count=1, pause_s=0.005, ends_with=tmp_path / "killed-often")
    delivering(stream)
    last = None
    for _ in range(2):
        last = relay_pid(stream.directory, other_than=last)
        kill(last)
    relay_pid(stream.directory, other_than=last)
    (tmp_path / "killed-often").touch()
    assert stream.finish() == "complete"
    assert_complete(stream.directory, uri, status="FINISHED")
    steps = all_steps(stream.directory)
    assert steps == list(range(1, len(steps) + 1))
    shown = stream.directory.relay_log.read_text()
    pauses = [
        int(pause)
        for pause in re.findall(
            r"delivers this run to MLflow exited with code -9; it is started again in (\d+) s", shown
        )
    ]
    assert pauses == [1, 2]


def test_a_relay_that_cannot_live_does_not_spin_and_the_end_does_not_wait_for_it(tmp_path, uri):
    (tmp_path / "run" / "relay.lock").mkdir(parents=True)  # no relay can have it
    stream = start_stream(tmp_path / "run", uri, count=10, offline=False)
    started = time.monotonic()
    out, errors = stream.process.communicate(timeout=120)
    assert (out, stream.process.returncode) == ("pending\n", 0), errors
    assert time.monotonic() - started < 90
    said = [line for line in errors.splitlines() if "it is started again" in line]
    assert 2 <= len(said) <= 4, errors
    (tmp_path / "run" / "relay.lock").rmdir()
    finished = sync(stream.directory)
    assert finished.returncode == 0, finished.stderr
    assert_complete(stream.directory, uri, status="FINISHED")


def test_trainer_and_relay_killed_then_sync(tmp_path, uri):
    stream = start_stream(tmp_path / "run", uri, count=100_000)
    delivering(stream)
    relay = relay_pid(stream.directory)
    os.kill(relay, signal.SIGSTOP)  # it would deliver the rest
    stream.process.kill()  # the trainer first: it would start another relay
    kill(relay)
    stream.process.wait()
    assert not complete(stream.directory)
    for _ in range(2):
        finished = sync(stream.directory)
        assert finished.returncode == 0, finished.stderr
        assert_complete(stream.directory, uri, status="FAILED")


def test_relay_killed_before_it_acknowledged_sends_again_without_a_double(tmp_path, uri):
    """The worst moment: the store has the points and delivery.json does not say so. Rolled back to the start,
    everything goes out again.
    """
    stream = start_stream(tmp_path / "run", uri, count=400, pause_s=0)
    assert stream.finish() == "complete"
    assert_complete(stream.directory, uri, status="FINISHED")
    progress = stream.directory.read_delivery()
    stream.directory.delivery_file.write_text(json.dumps({**progress, "offset": 0, "complete": False, "end": None}))
    finished = sync(stream.directory)
    assert finished.returncode == 0, finished.stderr
    assert_complete(stream.directory, uri, status="FINISHED")


def kill_tree(process: psutil.Process) -> None:
    for one in [*process.children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


@pytest.mark.long
def test_server_killed_and_started_again(tmp_path):
    port = free_port()
    with ExitStack() as first:
        uri = first.enter_context(mlflow_server(tmp_path / "server", port=port))
        stream = start_stream(tmp_path / "run", uri, count=1, pause_s=0.01, ends_with=tmp_path / "server-is-back")
        delivering(stream)
        for process in psutil.Process().children():
            with suppress(psutil.Error):  # another test's, that ends meanwhile
                if str(port) in process.cmdline():
                    kill_tree(process)
        until(lambda: "WARNING" in stream.directory.relay_log.read_text(), "the relay to notice")
    at_kill = recorded(stream.directory)
    until(lambda: recorded(stream.directory) > at_kill + 50, "the stream to go on without a server")
    with mlflow_server(tmp_path / "server", port=port):
        (tmp_path / "server-is-back").touch()
        assert stream.finish() == "complete"
        assert_complete(stream.directory, uri, status="FINISHED")
    assert all_steps(stream.directory) == list(range(1, len(all_steps(stream.directory)) + 1))


THREADS = """
import json, sys, threading
from mltrack.journal import RunInfo, records
from mltrack.tracking import TrainingMetricsTracker

folder, uri = sys.argv[1:]
tracker = TrainingMetricsTracker(folder, run=RunInfo(local_id="threads", tracking_uri=uri, created_ms=records.now_ms()))
tracker.start_delivery()

def log(number):
    for step in range(1, 1001):
        if number % 2:
            tracker.log_metric(f"thread_{number:02}", number + step / 1000, step)
        else:
            tracker.log_metric("shared", number + step / 1000, number * 1000 + step)

threads = [threading.Thread(target=log, args=(number,)) for number in range(32)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
totals = tracker.get_summary()["totals"]
print(tracker.close(), totals["points"], flush=True)
"""


def test_32_threads_of_1000_points(tmp_path, uri):
    stream = Stream(RunDirectory(tmp_path / "run"), start_script(THREADS, tmp_path / "run", uri))
    assert stream.finish() == "complete 32000"
    assert_complete(stream.directory, uri, status="FINISHED")
    points = journal_points(stream.directory)
    assert sum(map(len, points.values())) == 32_000
    assert len(points["shared"]) == 16_000


def test_four_runs_on_one_new_database_at_once(tmp_path, uri):
    streams = [start_stream(tmp_path / f"run{number}", uri, count=STEPS) for number in range(4)]
    for stream in streams:
        assert stream.finish(240) == "complete"
    for stream in streams:
        assert_complete(stream.directory, uri, status="FINISHED")
        assert sent(stream.directory) == STEPS * PER_STEP
        shown = stream.directory.relay_log.read_text()
        assert "ERROR" not in shown
        assert "database is locked" not in shown


BEYOND = """
import json, sys
from mltrack.journal import RunInfo, records
from mltrack.tracking import TrainingMetricsTracker

folder, uri = sys.argv[1:]
tracker = TrainingMetricsTracker(folder, run=RunInfo(local_id="beyond", tracking_uri=uri, created_ms=records.now_ms()))
tracker.log_params({f"p{number:03}": "v" * (number * 40) for number in range(250)})
tracker.log_params({"n" * 400: "long name", "odd @#! name": "odd", "line": "a\\nb", "unicode \\u00e9": "\\u4e2d"})
tracker.set_tags({"t" * 400: "x" * 20_000, "odd @#! tag": "first", "odd ___ tag": "legal", "odd $%& tag": "second"})
tracker.log_params({"undecodable": "a\\udc80b", "nul": "a\\x00b"})
tracker.log_metrics({f"wide/{number:04}": float(number) for number in range(2500)}, step=1)
tracker.log_metrics({"m" * 400 + "a": 1.0, "m" * 400 + "b": 1.0, "odd @#! name": 1.0, "odd $%& name": 1.0, "odd ___ name": 1.0}, step=1)
tracker.log_metrics({"../up": 1.0, "/rooted": 2.0, "a//b": 3.0, "": 4.0, "unicode \\u00e9": 5.0}, step=1)
for step, value in enumerate([0.5, float("nan"), float("inf"), float("-inf"), float("nan"), 5e-324, -0.0, 1.7976931348623157e308], start=1):
    tracker.log_metrics({"strange": value, "epoch/strange": value}, step)
tracker.log_metric("far", 1.0, step=2**62)
tracker.log_metric("before", 1.0, step=-5)
tracker.start_delivery()
print(tracker.close(), flush=True)
"""


def test_beyond_mlflows_limits(tmp_path, uri):
    stream = Stream(RunDirectory(tmp_path / "run"), start_script(BEYOND, tmp_path / "run", uri))
    assert stream.finish() == "complete"
    directory = stream.directory
    journal = [record for record in read_journal(directory.journal) if record["type"] == "metrics"]
    recorded_names = {name for record in journal for name in record["values"]}
    run_id = directory.read_delivery()["run_id"]
    run = client(uri).get_run(run_id)
    renamed = {original: shown for shown, original in json.loads(run.data.tags["mltrack.renamed"]).items()}
    odd = {name for name in recorded_names if runs.legal_name(name) != name}
    assert odd <= set(renamed), "the tag tells every name that MLflow refused"
    assert len({renamed.get(name, name) for name in recorded_names}) == len(recorded_names), (
        "no two metrics share a name"
    )
    assert_complete(directory, uri, status="FINISHED", names=lambda name: renamed.get(name, name))
    assert sum(math.isnan(point.value) for point in client(uri).get_metric_history(run_id, "strange")) == 2
    params = run.data.params
    assert [params[f"p{number:03}"] for number in range(150)] == ["v" * (number * 40) for number in range(150)]
    assert len(params["p249"]) == 6000
    assert {"odd", "long name", "a\nb", "\u4e2d"} <= set(params.values())
    assert {"first", "second", "legal"} <= set(run.data.tags.values()), (
        "tags that look alike once they are legal stay apart"
    )
    assert run.data.tags["odd ___ tag"] == "legal"
    assert (params["undecodable"], params["nul"]) == ("a\\udc80b", "a\\x00b")
    whole = json.loads((Path(run.info.artifact_uri.removeprefix("file://")) / "full_values.json").read_text())
    assert whole["params"]["p249"] == "v" * (249 * 40)
    assert whole["params"]["undecodable"] == "a\udc80b"
    assert whole["tags"]["t" * 400] == "x" * 20_000
    assert odd <= set(whole["names"].values())
    infinite = run.data.tags["mltrack.infinite_values"]
    assert "strange at step 3" in infinite
    assert "strange at step 4" in infinite
    again = sync(directory)
    assert again.returncode == 0, again.stderr
    assert_complete(directory, uri, status="FINISHED", names=lambda name: renamed.get(name, name))


def test_a_run_deleted_in_mlflow_gives_up_no_point(tmp_path, uri):
    stream = start_stream(tmp_path / "run", uri, count=100_000)
    delivering(stream)
    run_id = stream.directory.read_delivery()["run_id"]
    client(uri).delete_run(run_id)
    until(lambda: "deleted" in stream.directory.relay_log.read_text(), "the relay to say so")
    kill(stream.process.pid)
    stream.process.communicate()
    until(lambda: not is_running(int((stream.directory.path / "relay.lock").read_text())), "the relay to give up")
    refused = sync(stream.directory)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert stream.directory.read_delivery()["failed"] == []
    client(uri).restore_run(run_id)
    assert sync(stream.directory).returncode == 0
    assert assert_complete(stream.directory, uri, status="FAILED") == run_id


POISON = """
import sys
from mltrack.journal import RunInfo, records
from mltrack.tracking import TrainingMetricsTracker

folder, uri, time_ms = sys.argv[1:]
tracker = TrainingMetricsTracker(folder, run=RunInfo(local_id="poison", tracking_uri=uri, created_ms=records.now_ms()))
tracker.start_delivery()
for step in range(1, 301):
    tracker.log_metric("good", step / 300, step)
    if step == 150:
        tracker._journal.append({**records.metrics(step, {"bad": 1.0}, {}), "time_ms": int(time_ms)})
        tracker._journal.append({"type": "of_a_later_version", "time_ms": 1})
print(tracker.close(), flush=True)
"""


@pytest.mark.parametrize("time_ms", [-1, 2**63], ids=["refused", "internal-error"])
def test_what_the_server_refuses_is_named_and_holds_nothing_up(tmp_path, uri, time_ms):
    """MLflow says no to a time before 1970; one beyond 64 bits it answers as if the database had failed."""
    stream = Stream(RunDirectory(tmp_path / "run"), start_script(POISON, tmp_path / "run", uri, time_ms))
    assert stream.finish() == "complete"
    progress = stream.directory.read_delivery()
    assert len(progress["failed"]) == 1
    assert progress["failed"][0].startswith("bad at step 150: ")
    history = client(uri).get_metric_history(progress["run_id"], "good")
    assert [point.step for point in history] == list(range(1, 301))


def test_a_step_that_mlflow_cannot_hold_is_refused_at_the_call(tmp_path):
    """The store answers it like an outage, so that the relay would try for ever."""
    with TrainingMetricsTracker(tmp_path / "run") as tracker:
        with pytest.raises(TrackingError, match=r"step must be a whole number of 64 bits.* 9223372036854775808"):
            tracker.log_metric("train_loss", 1.0, step=2**63)
        tracker.log_metric("train_loss", 1.0, step=2**63 - 1)
