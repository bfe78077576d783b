"""Samples the resource use of the machine and the trainer's processes, in the relay, while the trainer lives.

Invariant: these points never pass through the journal, whose only writer is the trainer, and no failure here affects
the delivery of the journal: a sample that cannot be taken or sent is left out or sent with the next one.

    feed = SystemMetricsFeed(trainer_pid)
    feed.sample_due()                    # call it often; samples when the interval is over
    feed.send(store, run_id)             # together with other requests
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence

import psutil

from mltrack.errors import TrackingError
from mltrack.journal.records import now_ms
from mltrack.store import Store, StoreRejected, machine_metrics, runs

PREFIX = "system/"
TRAINER_MEMORY, TRAINER_CPU = "system/trainer_memory_megabytes", "system/trainer_cpu_percentage"
INTERVAL_S = 5.0
FIRST_S = 1.0
"""The first sample is this early, so that short runs have one too."""
MAX_UNSENT = 1000
"""Points kept while the server is away: one request; older ones are dropped."""
PSS_SHARE = 0.001
"""Share of the time that reading proportional set sizes may take."""
FIRST_ALLOWANCE_S = 0.05
"""The time it may take at the first sample."""
ASSUMED_SECONDS_PER_BYTE = 20e-12
"""That of an idle machine with small pages; a busy one is measured."""
LARGE_BYTES = 100_000_000
"""Smaller readings say nothing about the time per byte."""
INTERVAL_VARIABLE, ENABLE_VARIABLE = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""MLflow's own environment variables, with the same meaning; not set: sampled every `INTERVAL_S`."""
log = logging.getLogger("mltrack.relay")


class SystemMetrics:
    """Samples of this machine, under MLflow's own names, and of one process with its descendants, under ours.

    Args:
        pid: the trainer's; None or an ended one: only the machine. This process, the relay, is never counted.
        machine_wide: False leaves out MLflow's own names, for a process in which MLflow samples them itself.
    """

    def __init__(self, pid: int | None, *, machine_wide: bool = True):
        self._trainer = _process(pid)
        self._monitors = machine_metrics.machine_monitors() if machine_wide else []
        psutil.cpu_percent()  # measures the share since the last call
        self._memory = _TreeMemory()
        self._cpu_seconds = {process: _cpu_seconds(process) or 0.0 for process in self._tree()}
        self._sampled = time.monotonic()

    def sample(self) -> dict[str, float]:
        """{metric name: value}; shares and rates are since the last sample, network counts since the first one."""
        values = {PREFIX + name: value for name, value in machine_metrics.measured(self._monitors).items()}
        return {**values, **self._trainer_tree()}

    def _trainer_tree(self) -> dict[str, float]:
        """Memory: pages shared by the tree count once; CPU: 100 is one core, as `top` shows it."""
        now = time.monotonic()
        seconds, used = {}, 0.0
        for process in self._tree():
            if (spent := _cpu_seconds(process)) is not None:
                seconds[process] = spent
                used += max(0.0, spent - self._cpu_seconds.get(process, 0.0))
        memory = self._memory.of(list(seconds))
        elapsed = max(1e-3, now - self._sampled)
        self._sampled, self._cpu_seconds = now, seconds
        return {TRAINER_MEMORY: round(memory / 1e6, 3), TRAINER_CPU: round(used / elapsed * 100, 1)} if seconds else {}

    def _tree(self) -> list[psutil.Process]:
        if self._trainer is None:
            return []
        try:
            return [
                process
                for process in (self._trainer, *self._trainer.children(recursive=True))
                if process.pid != os.getpid()
            ]
        except psutil.Error:
            return []  # it has just ended


class SystemMetricsFeed:
    """Samples on time, numbers the samples and sends them; the number is the step, from 1, continued in a resumed run.

    Args:
        pid: the trainer's.
        own_run: False if the MLflow run is the user's own, in whose process MLflow may sample the machine too.
        clock: gives seconds from any start; decides when a sample is due.
    """

    def __init__(self, pid: int | None, *, own_run: bool = True, clock: Callable[[], float] = time.monotonic):
        asked = os.environ.get(ENABLE_VARIABLE, "").strip().lower()
        self._interval_s = _interval_s()
        self._metrics = (
            SystemMetrics(pid, machine_wide=own_run or asked not in ("true", "1"))
            if asked not in ("false", "0")
            else None
        )
        self._clock = clock
        self._due = clock() + min(FIRST_S, self._interval_s)
        self._samples = 0
        self._step: int | None = None
        """The last step of earlier relays, once read."""
        self._unsent: list[runs.Point] = []

    def sample_due(self) -> None:
        """Sample if the interval is over; raises nothing."""
        if self._metrics is None or self._clock() < self._due:
            return
        self._due = self._clock() + self._interval_s
        try:
            values, time_ms = self._metrics.sample(), now_ms()
            self._samples += 1
            self._unsent += [(name, value, time_ms, self._samples) for name, value in values.items()]
            del self._unsent[:-MAX_UNSENT]
        except Exception as error:  # MLflow's monitors may raise anything
            log.warning("system metrics: %s", error)

    def send(self, store: Store, run_id: str) -> None:
        """Send the waiting samples. Raises nothing: a failure is logged, and the samples go with the next ones if
        possible.
        """
        if not self._unsent:
            return
        try:
            if self._step is None:
                self._step = max(
                    (step for _, step in runs.delivered_pairs(store, run_id, [TRAINER_MEMORY], 0)), default=0
                )
            runs.log_points(
                store,
                run_id,
                [(name, value, time_ms, self._step + number) for name, value, time_ms, number in self._unsent],
            )
            self._unsent.clear()
        except StoreRejected as error:
            log.warning("system metrics: %s; no longer sampled", error)
            self._metrics = None
            self._unsent.clear()
        except TrackingError as error:
            log.warning("system metrics: %s", error)


class _TreeMemory:
    """Proportional set sizes if the system gives them (Linux), else resident ones.

    For a proportional size the kernel walks all pages of a process, whose memory requests wait meanwhile. So they are
    read only so often that it takes `PSS_SHARE` of the time. In between, the resident sizes are scaled by the last
    ratio of both; if the set of processes has changed, each counts with what it holds beyond its parent, from which it
    may have been forked."""

    def __init__(self) -> None:
        self._allowed_s, self._seconds_per_byte = FIRST_ALLOWANCE_S, ASSUMED_SECONDS_PER_BYTE
        self._asked = time.monotonic()
        self._read_of: set[psutil.Process] = set()
        self._share = 1.0
        """Ratio of proportional to resident size at the last reading."""

    def of(self, tree: Sequence[psutil.Process]) -> float:
        """Bytes that these processes hold together."""
        now = time.monotonic()
        self._allowed_s, self._asked = self._allowed_s + PSS_SHARE * (now - self._asked), now
        resident = {process.pid: size for process in tree if (size := _resident_bytes(process))}
        total = sum(resident.values())
        if total * self._seconds_per_byte <= self._allowed_s:
            self._read(tree, total)
        if self._read_of == set(tree):
            return total * self._share
        return sum(max(0, resident.get(process.pid, 0) - resident.get(_parent(process), 0)) for process in tree)

    def _read(self, tree: Sequence[psutil.Process], resident: int) -> None:
        started = time.perf_counter()
        proportional = sum(size for process in tree if (size := _proportional_bytes(process)))
        taken = time.perf_counter() - started
        self._allowed_s -= taken
        if resident > LARGE_BYTES:
            self._seconds_per_byte = max(ASSUMED_SECONDS_PER_BYTE, taken / resident)
        self._read_of, self._share = set(tree), proportional / max(1, resident)


def _process(pid: int | None) -> psutil.Process | None:
    try:
        return None if pid is None else psutil.Process(pid)
    except psutil.Error:
        return None


def _resident_bytes(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return None


def _proportional_bytes(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):
        return _resident_bytes(process)
    except psutil.Error:
        return None


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _cpu_seconds(process: psutil.Process) -> float | None:
    try:
        times = process.cpu_times()
        return float(times.user + times.system)
    except psutil.Error:
        return None


def _interval_s() -> float:
    given = os.environ.get(INTERVAL_VARIABLE)
    try:
        interval = float(given) if given else INTERVAL_S
        if interval > 0:
            return interval
    except ValueError:
        pass
    log.warning("%s must be a number of seconds > 0, not %r; sampling every %g s", INTERVAL_VARIABLE, given, INTERVAL_S)
    return INTERVAL_S
