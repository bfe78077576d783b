"""Trackers in processes of their own, and the comparison of what they recorded with what MLflow holds.

Invariant: nothing here waits by sleeping alone; `until` looks for the event and names it when it does not come.

    run = start_stream(tmp_path / "run", uri, count=2000)
    until(lambda: recorded(run.directory) > 500, "500 points")
    kill(run.process.pid)
    assert_complete(run.directory, uri, status="FAILED")
"""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
import psutil
import tiny
from mlflow import MlflowClient

from mltrack import TrainingMetricsTracker
from mltrack.journal import JournalReader, RunDirectory, RunInfo, read_journal, records
from mltrack.store import runs

RELAYS_OWN = "system/"
"""Metrics that the relay measures itself; they are not in the journal."""

STREAM = """
import json, os, sys, time
from mltrack.journal import RunInfo, records
from mltrack.tracking import TrainingMetricsTracker

folder, uri, count, pause, local_id, offline, until = json.loads(sys.argv[1])
tracker = TrainingMetricsTracker(folder, run=RunInfo(local_id=local_id, tracking_uri=uri, created_ms=records.now_ms(), run_name=local_id))
tracker.log_params({"count": count})
if not offline:
    tracker.start_delivery()
step = 0
while step < count or (until and not os.path.exists(until)):
    step += 1
    tracker.log_metrics({"train_loss": 1 / step, "learning_rate": 1e-3, "tokens_per_second": 1e4 + step}, step, epoch=0)
    time.sleep(pause)
print(tracker.close(), flush=True)
"""
"""Three metrics a step; ends like a training, and prints how the delivery ended."""
PER_STEP = 3


@dataclass(frozen=True)
class Stream:
    """A tracker that is running."""

    directory: RunDirectory
    process: subprocess.Popen[str]

    def finish(self, timeout_s: float = 120) -> str:
        """Wait for its normal end; returns what it said of the delivery."""
        out, errors = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == 0, errors
        return out.strip()


def start_script(script: str, *words: object, wrapped_in: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start a Python program as a user would: in a session of its own, with nothing of this process's MLflow
    environment.
    """
    return subprocess.Popen(
        [*wrapped_in, sys.executable, "-c", script, *(str(word) for word in words)],
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_stream(
    folder: Path,
    uri: str,
    *,
    count: int,
    pause_s: float = 0.002,
    offline: bool = False,
    ends_with: Path | None = None,
    wrapped_in: Sequence[str] = (),
) -> Stream:
    """Start a tracker that records `count` steps, `pause_s` apart, and more until there is a file `ends_with`;
    `wrapped_in` another command.
    """
    words = json.dumps([str(folder), uri, count, pause_s, uuid.uuid4().hex, offline, ends_with and str(ends_with)])
    return Stream(RunDirectory(folder), start_script(STREAM, words, wrapped_in=wrapped_in))


def start_training(
    records_file: Path, *words: object, cwd: Path, steps: int
) -> tuple[subprocess.Popen[str], RunDirectory]:
    """Start a training that ends only when it is ended, and wait for so many steps."""
    training = commands.training(records_file, "--epochs", "10000", *words)
    process = commands.start(*training, cwd=cwd)

    def journal() -> Path | None:
        assert process.poll() is None, process.stderr and process.stderr.read()
        found = next(iter(cwd.glob("mltrack-runs/*/journal")), None)
        return found if found is not None and len(tiny.points(found, "train_loss")) >= steps else None

    return process, RunDirectory(until(journal, f"step {steps}").parent)


def recorded_run(path: Path, uri: str) -> RunDirectory:
    """A run of one point that has ended, and that nobody delivers before somebody asks for it."""
    tracker, directory = TrainingMetricsTracker(path), RunDirectory(path)
    tracker.log_metrics({"train_loss": 0.5}, step=1)
    tracker.close()
    directory.write_run(RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms(), offline=True))
    return directory


def sync(
    directory: RunDirectory, *words: object, timeout_s: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`mltrack sync` of one run directory."""
    return commands.mltrack(
        "sync", directory.path, *words, cwd=directory.path.parent, timeout_s=timeout_s, **environment
    )


def until(happened: Callable[[], Any], what: str, within_s: float = 120) -> Any:
    """What `happened` returns once it is true."""
    deadline = time.monotonic() + within_s
    while not (result := happened()):
        assert time.monotonic() < deadline, f"waited {within_s:.0f} s for {what}"
        time.sleep(0.02)
    return result


def recorded(directory: RunDirectory) -> int:
    """Records in the journal so far."""
    return sum(1 for _ in JournalReader(directory.journal).read_new())


def sent(directory: RunDirectory) -> int:
    """Points that the server has acknowledged so far."""
    return int(directory.read_delivery().get("sent", 0))


def relay_pid(directory: RunDirectory, *, other_than: int | None = None) -> int:
    """The process that delivers this directory now, once there is one."""

    def holder() -> int | None:
        with suppress(OSError, ValueError):
            pid = int((directory.path / "relay.lock").read_text())
            return pid if pid != other_than and is_running(pid) else None
        return None

    return int(until(holder, "a relay"))


def is_running(pid: int) -> bool:
    """True for a process that has not ended; a zombie has."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def kill(pid: int) -> None:
    """SIGKILL to one process, and wait until it is gone with all its threads: the last one closes its files."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not is_running(pid) and len(_threads(pid)) <= 1, f"the end of process {pid}")


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return []


def pause_between_transactions(pid: int, database: Path) -> None:
    """Stop a process (SIGSTOP) at a moment at which it holds no lock of an SQLite file, so that others can open it."""

    def paused() -> bool:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the stop")
        with closing(sqlite3.connect(database, timeout=0)) as connection:
            try:
                connection.execute("BEGIN EXCLUSIVE")
                connection.rollback()
                return True
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                return False

    until(paused, "a moment between two transactions")


def client(uri: str) -> MlflowClient:
    """A client of our own, beside the one that delivers."""
    return MlflowClient(tracking_uri=uri)


Key = tuple[float | str, int, int]
"""value, time in ms, step; a NaN as a word, since it does not equal itself."""


def journal_points(directory: RunDirectory, names: Callable[[str], str] = str) -> dict[str, list[Key]]:
    """{metric name in MLflow: its points in the order of recording}, an infinity as MLflow stores it."""
    found: dict[str, list[Key]] = {}
    for record in read_journal(directory.journal):
        if record["type"] == "metrics":
            for name, value in {**record["values"], **record["timing"]}.items():
                found.setdefault(names(name), []).append(
                    (_comparable(runs.finite(value)), record["time_ms"], record["step"])
                )
    return found


def held_points(uri: str, run_id: str) -> dict[str, list[Key]]:
    """{metric name: its points as MLflow's history gives them}, without what the relay measures itself."""
    api = client(uri)
    names = [
        name for name in api.get_run(run_id).data.metrics if not name.startswith(RELAYS_OWN) or name in records.COSTS
    ]
    return {
        name: [
            (_comparable(point.value), point.timestamp, point.step) for point in api.get_metric_history(run_id, name)
        ]
        for name in names
    }


def assert_complete(directory: RunDirectory, uri: str, *, status: str, names: Callable[[str], str] = str) -> str:
    """Every point of the journal is in MLflow exactly once, in order and equal, nothing was refused, and the run says
    `status`; returns its id.
    """
    progress = directory.read_delivery()
    assert progress.get("complete"), progress
    assert progress["failed"] == []
    run_id = progress["run_id"]
    wanted, held = journal_points(directory, names), held_points(uri, run_id)
    assert set(held) == set(wanted)
    for name, points in wanted.items():
        assert Counter(held[name]) == Counter(points), name
        assert max(Counter(held[name]).values()) == 1, f"{name}: a point of the journal shares its key with another"
        assert _by_time(held[name]) == _by_time(points), name
    assert client(uri).get_run(run_id).info.status == status
    return str(run_id)


def complete(directory: RunDirectory) -> bool:
    """True once the relay has said so."""
    return bool(directory.read_delivery().get("complete"))


def delivered(directory: RunDirectory) -> bool:
    """True once MLflow has all that a run has recorded which ended by itself; of a resumed run, also the newest
    of it.
    """
    return complete(directory) and int(directory.read_delivery()["offset"]) >= directory.journal.stat().st_size


def _by_time(points: Iterable[Key]) -> list[Key]:
    return sorted(points, key=lambda point: (point[1], point[2]))


def _comparable(value: float) -> float | str:
    return "nan" if math.isnan(value) else value
