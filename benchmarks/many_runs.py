"""Many trainings behind one tracking server on PostgreSQL: what their relays ask of it a second, and how long it takes
to answer.

The trainers are simulated: journals that get three metrics a step, five steps a second. The relays are the real loop
(of `mltrack.relay.sync`), each a thread of one process, so that the machine has no 50 processes to run beside the
server. `--runs 50 --seconds 60` takes about five minutes.

    python benchmarks/many_runs.py

Needs PostgreSQL's programs (Debian: apt-get install postgresql).
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests.adapters

from mltrack.errors import TrackingError
from mltrack.journal import JournalWriter, RunDirectory, RunInfo, records
from mltrack.relay.pace import LONGEST_S, OLD_S, SHORTEST_INTERVAL_S, Pace
from mltrack.relay.sync import _follow_connected
from mltrack.relay.system_metrics import SystemMetricsFeed
from mltrack.store import StoreUnavailable

STEPS_A_SECOND = 5
METRICS = ("train_loss", "learning_rate", "grad_norm")
WARM_UP_S = 15.0
END_S, PATIENCE_S = 20.0, 60.0
"""Over how long the runs end, and how long the last of them is waited for."""


class EveryHalfSecond(Pace):
    """As it was before 2026-11-30: whatever the load."""

    def interval_s(self, age_s: float) -> float:
        return SHORTEST_INTERVAL_S


@dataclass
class Requests:
    """Every request of this process, once measuring has begun."""

    answers_s: list[float] = field(default_factory=list)
    paths: Counter[str] = field(default_factory=Counter)
    measuring: bool = False

    def watch(self) -> None:
        send = requests.adapters.HTTPAdapter.send

        def timed(adapter: Any, *given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            self.paths[urlsplit(given[0].url).path.rpartition("/mlflow/")[2]] += self.measuring
            try:
                return send(adapter, *given, **named)
            finally:
                if self.measuring:
                    self.answers_s.append(time.perf_counter() - started)

        requests.adapters.HTTPAdapter.send = timed  # type: ignore[method-assign]


class Trainer:
    """Looks to a relay like the process that trains."""

    def __init__(self, over: threading.Event):
        self._over = over

    def is_alive(self) -> bool:
        return not self._over.is_set()

    def wait(self, timeout_s: float) -> None:
        self._over.wait(timeout_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING="false")
    asked = Requests()
    asked.watch()
    with (
        tempfile.TemporaryDirectory(prefix="mltrack-many-") as folder,
        postgres() as database,
        server(Path(folder), database) as uri,
    ):
        print(f"{given.runs} runs, {given.seconds:.0f} s, {len(METRICS)} metrics, {STEPS_A_SECOND} steps a second")
        for name, pace, age_s in (
            ("by the pace, runs of an hour", Pace, OLD_S),
            ("by the pace, runs that have just begun", Pace, 0.0),
            (
                "every half second, as before",
                EveryHalfSecond,
                0.0,
            ),  # the last: what a server is behind with then would be in the other rows
        ):
            print(
                f"{name:<42}{measured(Path(folder) / uuid.uuid4().hex, uri, given.runs, given.seconds, pace, age_s, asked)}",
                flush=True,
            )


def measured(folder: Path, uri: str, runs: int, seconds: float, pace: type[Pace], age_s: float, asked: Requests) -> str:
    """One row: requests a second, their answers, and how far behind the server was."""
    over = threading.Event()
    directories = [made(folder / str(number), uri, age_s) for number in range(runs)]
    relays = [
        threading.Thread(target=relay_of, args=(directory, uri, over, pace(timeout_s=LONGEST_S)), daemon=True)
        for directory in directories
    ]
    for thread, directory in zip(
        relays, directories, strict=True
    ):  # one after the other: making the runs is not what is measured
        thread.start()
        while directory.read_run().run_id is None:
            time.sleep(0.05)
    writers = [JournalWriter(directory.journal) for directory in directories]
    asked.answers_s.clear()
    asked.paths.clear()
    started, step = time.monotonic(), 0
    while (now := time.monotonic() - started) < WARM_UP_S + seconds:
        asked.measuring = now > WARM_UP_S
        step += 1
        for writer in writers:
            writer.append(records.metrics(step, dict.fromkeys(METRICS, 1 / step), {}, epoch=0))
        time.sleep(max(0.0, started + step / STEPS_A_SECOND - time.monotonic()))
    asked.measuring = False
    for writer in writers:
        writer.append(records.end("FINISHED", 0))
        writer.close()
        time.sleep(END_S / runs)
    ended = time.monotonic()
    over.set()
    for thread in relays:
        thread.join(max(0.0, ended + PATIENCE_S - time.monotonic()))
    complete = sum(bool(directory.read_delivery().get("complete")) for directory in directories)
    ms = sorted(1000 * one for one in asked.answers_s)
    return (
        f"{len(ms) / seconds:6.1f} requests/s, answers {statistics.median(ms):5.0f} ms (95 %:"
        f" {ms[int(0.95 * len(ms))]:5.0f} ms), {complete} of {runs} complete {time.monotonic() - ended:.0f} s after the"
        f" last end, {', '.join(f'{path} {count}' for path, count in asked.paths.most_common() if count)}"
    )


def made(path: Path, uri: str, age_s: float) -> RunDirectory:
    directory = RunDirectory(path)
    directory.path.mkdir(parents=True)
    directory.write_run(
        RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms() - int(1000 * age_s))
    )
    return directory


def relay_of(directory: RunDirectory, uri: str, over: threading.Event, pace: Pace) -> None:
    trainer: Any = Trainer(over)
    while True:
        try:
            _follow_connected(directory, uri, trainer, SystemMetricsFeed(None), pace)
            return
        except StoreUnavailable:
            pace.timed_out()
            time.sleep(random.uniform(0.5, 5.0))
        except TrackingError:  # everything is over, and the folder gone
            return


@contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database in a cluster of its own."""
    found = shutil.which("initdb")
    folders = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *([Path(found).resolve().parent] if found else []),
    ]
    programs = next(folder for folder in folders if (folder / "initdb").exists() and (folder / "createdb").exists())
    folder, port = Path(tempfile.mkdtemp(prefix="mltrack-postgres-")), free_port()
    as_postgres = ["su", "postgres", "-c"] if os.geteuid() == 0 else ["sh", "-c"]  # initdb refuses root
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data, options = folder / "data", f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    try:
        subprocess.run(
            [*as_postgres, f"{programs}/initdb -D {data} -U mlflow -A trust"], check=True, capture_output=True, cwd="/"
        )
        subprocess.run(
            [*as_postgres, f"{programs}/pg_ctl -D {data} -w -o '{options}' -l {folder}/log start"],
            check=True,
            capture_output=True,
            cwd="/",
        )
        subprocess.run(
            [f"{programs}/createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "tracking"], check=True
        )
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/tracking"
    finally:
        subprocess.run(
            [*as_postgres, f"{programs}/pg_ctl -D {data} -m immediate stop"], check=False, capture_output=True, cwd="/"
        )
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def server(folder: Path, database: str) -> Iterator[str]:
    """The URI of an `mlflow server` of one worker."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"{uri}/health", timeout=10)
                break
            if process.poll() is not None:
                sys.exit((folder / "server.log").read_text()[-2000:])
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
