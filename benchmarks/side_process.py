"""A training of one side in a process of its own, watched from its parent: what it said and when, and the memory of all
that it started.

Invariant: each process starts from an environment without MLflow's variables; peak memory is PSS, summed over the
process and everything below it, the relay included, until the training is over; what is left of it when it has failed
is killed.

    found = train(Job(side="hf", task="code_generation", ...))      # {"seconds", "steps", "real_tokens",
    "first_step_s", "eval_loss", "peak_mib"}
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training_job import Job

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
SAMPLED_S = 0.5
"""Between two looks at the memory."""
TUNED_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_TOP_PAD_": "268435456",
}
"""What a careful user sets for a CPU; glibc reads it when the process starts."""


def family(pid: int) -> Iterator[int]:
    """The process and everything that it started."""
    import psutil

    try:
        process = psutil.Process(pid)
        yield pid
        for child in process.children(recursive=True):
            yield child.pid
    except psutil.NoSuchProcess:
        return


def proportional_bytes(pid: int) -> int:
    """Memory of a process with shared pages divided among those that share them (PSS); 0 where it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


class PeakMemory:
    """Looks at a family of processes until it is told that it is over."""

    def __init__(self, pid: int):
        self.bytes = 0
        self._pid, self._over = pid, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLED_S):
            self.bytes = max(self.bytes, sum(map(proportional_bytes, family(self._pid))))

    def end(self) -> None:
        self._over.set()
        self._watcher.join()


def environment_of(job: Job) -> dict[str, str]:
    """Of a side's process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_TRACKING_URI": job.uri,
        "PYTHONPATH": str(ROOT),
    }
    return environment | (TUNED_ALLOCATOR if job.side == "hf_tuned" else {})


def end_with_sigterm() -> None:
    """Let SIGTERM unwind this process, so that the side that runs is killed and temporary folders go."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def train(job: Job) -> dict[str, Any]:
    """Run one side; what it said, and its peak memory.

    Raises:
        SystemExit: it failed; with the end of what it wrote.
    """
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    started = time.time()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("training_side.py")), json.dumps(asdict(job))],
            env=environment_of(job),
            cwd=job.folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        memory = PeakMemory(process.pid)
        events: dict[str, Any] = {}
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"event"'):
                    event = json.loads(line)
                    events[event["event"]] = {**event, "since_launch_s": time.time() - started}
                    if event["event"] == "trained":
                        memory.end()  # what follows is this benchmark's own
            code = process.wait()
        finally:
            memory.end()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code or "done" not in events:
            errors.seek(0)
            raise SystemExit(f"{job.side} ended with {code}:\n{errors.read()[-3000:]}")
    trained = {
        name: value
        for name, value in events["trained"].items()
        if name not in ("event", "since_start_s", "since_launch_s")
    }
    limit = {
        name: value
        for name, value in events.get("limit", {}).items()
        if name not in ("event", "since_start_s", "since_launch_s")
    }
    return {
        **trained,
        **({"limit": limit} if limit else {}),
        "tokens_per_second": trained["real_tokens"] / trained["seconds"],
        "first_step_s": events["first_step"]["since_launch_s"],
        "trained_s": events["trained"]["since_launch_s"],
        "eval_loss": events["done"]["eval_loss"],
        "peak_mib": memory.bytes / MIB,
    }
