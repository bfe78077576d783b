"""One training process that logs in one of four ways, told by its parent and measured from within.

Invariant: the way of logging is the public one of each side, with its defaults; the loop around it is the same for all.

    with TrainingProcess(Job(way="mltrack", uri=uri, run_id=run_id, folder=folder, steps=1000)) as process:
        loop = process.wait_for("loop")           # {"p50_us": ..., "p99_us": ..., "seconds": ...}
        process.wait_for("closed")
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("sync", "async", "mltrack")
METRICS = ("train_loss", "learning_rate", "grad_norm", "tokens_per_second")
WARM_UP = 20
"""Calls that are not counted."""


@dataclass(kw_only=True)
class Job:
    """What the process does; it travels as JSON."""

    way: str
    """off, sync (mlflow.log_metrics), async (the same with synchronous=False) or mltrack."""
    uri: str = ""
    run_id: str | None = None
    """None for mltrack: a tracker on local files alone."""
    folder: str = ""
    """Of mltrack's journal."""
    steps: int = 1000
    work: int = 0
    """Matrix products a step: the training that the logging disturbs."""
    pace_s: float = 0.0
    """The step ends no earlier than so long after the last one's planned end, as a device's would; 0: as fast as it
    goes.
    """
    announce: tuple[int, ...] = ()
    """After these steps a line says so, and how many calls took how long so far."""
    hold_at: int = 0
    """After this step the process waits for a line of its parent."""


class TrainingProcess:
    """A running process of this file, in a session of its own; what is left of it is killed at the end."""

    def __init__(self, job: Job):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self.job = job
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(job))],
            env={
                **kept,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the training process."""
        return self._process.pid

    def wait_for(self, event: str, limit_s: float = 600.0) -> dict[str, Any] | None:
        """The next event of that name; None where the process ended, or where it did not come in time."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                seen = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if seen is None or seen["event"] == event:
                return seen

    def go_on(self) -> None:
        """Release a process that holds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL to the training process alone."""
        self._process.kill()
        self._process.wait()

    def exit_code(self, limit_s: float) -> int | None:
        """The exit code; None where it has not ended after so long."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def __enter__(self) -> TrainingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"event"'):
                self._events.put(json.loads(line))
        self._events.put(None)


def matrix_products(count: int) -> None:
    """A fixed amount of work on one core."""
    import numpy as np

    a = np.full((96, 96), 0.01, dtype=np.float32)
    for _ in range(count):
        a @ a


def products_for(seconds: float) -> int:
    """How many products take so long here and now (the least of five tries)."""
    matrix_products(200)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        matrix_products(1000)
        times.append((time.perf_counter() - start) / 1000)
    return max(1, round(seconds / min(times)))


def percentile(sorted_values: list[int], share: float) -> float:
    """Nearest rank."""
    return (
        float(sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))])
        if sorted_values
        else float("nan")
    )


Log = Callable[[dict[str, float], int], None]


def _way(job: Job) -> tuple[Log, Callable[[], str]]:
    """(log one step, end and say how)."""
    if job.way == "off":
        return lambda values, step: None, lambda: "off"
    if job.way == "mltrack":
        from mltrack import TrainingMetricsTracker

        tracker = TrainingMetricsTracker(job.folder, run_id=job.run_id, tracking_uri=job.uri or None)
        return tracker.log_metrics, tracker.close
    import mlflow

    mlflow.set_tracking_uri(job.uri)
    mlflow.start_run(run_id=job.run_id)

    def end() -> str:
        mlflow.flush_async_logging()
        mlflow.end_run()
        return "ended"

    if job.way == "async":
        return lambda values, step: mlflow.log_metrics(values, step=step, synchronous=False), end
    return lambda values, step: mlflow.log_metrics(values, step=step), end


def _say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, "time": time.time(), **fields}), flush=True)


def _memory_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def main() -> None:
    """Train, and say what it cost."""
    job = Job(**json.loads(sys.argv[1]))
    log, end = _way(job)
    matrix_products(job.work)
    announced = set(job.announce)
    nanoseconds: list[int] = []
    now = time.perf_counter_ns
    begin = time.perf_counter()
    _say("begin")
    for step in range(1, job.steps + 1):
        matrix_products(job.work)
        if job.pace_s:
            time.sleep(max(0.0, begin + step * job.pace_s - time.perf_counter()))
        values = {
            "train_loss": 1.0 / step,
            "learning_rate": 2e-5,
            "grad_norm": 1.0 + step % 7,
            "tokens_per_second": 1e4 + step,
        }
        start = now()
        log(values, step)
        nanoseconds.append(now() - start)
        if step in announced:
            _say("step", step=step, memory_mb=_memory_mb(), **_summary(nanoseconds))
            nanoseconds.clear()
        if step == job.hold_at:
            _say("holding")
            sys.stdin.readline()
    _say("loop", seconds=time.perf_counter() - begin, **_summary(nanoseconds))
    _say("closed", how=end())


def _summary(nanoseconds: list[int]) -> dict[str, Any]:
    counted = sorted(nanoseconds[WARM_UP:])
    return {
        "calls": len(counted),
        "p50_us": percentile(counted, 0.5) / 1e3,
        "p99_us": percentile(counted, 0.99) / 1e3,
        "max_us": max(counted, default=0) / 1e3,
    }


if __name__ == "__main__":
    main()
