"""The relay as the trainer sees it: a process of its own that is started, watched and waited for.

Invariant: nothing here talks to the network, and a dead relay or server never costs the training more than the wait at its end.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mltrack.journal import RunDirectory
from mltrack.processes import start

SILENCE_S = 8.0
"""How long the end of a training waits after the last request that the server acknowledged: with what ending itself takes, below ten seconds."""
LOCAL_SILENCE_S = 25.0
"""The same for a database file, which has no server that could be dead; MLflow waits 20 s for a locked one."""
START_UP_S = 30.0
"""How long a relay may take to be ready to send, on a machine that is busy."""
_POLL_S = 0.1


Begin = Callable[[RunDirectory], "subprocess.Popen[bytes] | None"]


class Delivery:
    """`mltrack sync --follow RUN_DIR`, started for one run directory.

    Args:
        directory: its run.json names the MLflow run and this process as the trainer.
        begin: gives the process where one is at hand already; where it gives None, and where the relay has died, one is started.
    """

    def __init__(self, directory: RunDirectory, begin: Begin = lambda directory: None):
        self.directory = directory
        self._stopped = threading.Event()
        self._silence_s = LOCAL_SILENCE_S if directory.read_run().tracking_uri.startswith(("sqlite:", "sqlite+")) else SILENCE_S
        self._started = time.time()
        self._process = begin(directory) or self._start()
        self._watcher = threading.Thread(target=self._restart_once, name="relay-watch", daemon=True)
        self._watcher.start()

    def wait(self, limit_s: float, on_progress: Callable[[dict[str, Any]], None] | None = None) -> str:
        """Wait for the rest to be delivered; the journal must have its end record.

        Args:
            limit_s: longest wait while the relay makes progress.
            on_progress: called with the content of delivery.json now and then.

        Returns:
            "complete" or "pending".
        """
        started = ready = time.time()
        while self._process.poll() is None or self._watcher.is_alive():
            delivery = self.directory.read_delivery()
            if on_progress is not None:
                on_progress(delivery)
            now, acknowledged = time.time(), delivery.get("acknowledged_ms", 0) / 1000
            if delivery.get("connected_ms", 0) / 1000 < self._started and now - max(started, self._started) < START_UP_S:
                ready = now
            silent = now - max(ready, acknowledged)
            if now - started > limit_s or (silent > self._silence_s and not delivery.get("uploading")):
                break
            self._watcher.join(_POLL_S)
        self._stopped.set()
        delivery = self.directory.read_delivery()
        whole = delivery.get("offset", 0) >= self.directory.journal.stat().st_size  # what an earlier relay of a resumed run said is not enough
        return "complete" if delivery.get("complete") and whole else "pending"

    def _start(self) -> subprocess.Popen[bytes]:
        return _spawn(["--follow", str(self.directory.path)], self.directory.relay_log)

    def _restart_once(self) -> None:
        if self._process.wait() != 0 and not self._stopped.is_set():
            self._started = time.time()
            self._process = self._start()
            self._process.wait()


def deliver_in_background(directories: Sequence[RunDirectory]) -> None:
    """Complete the delivery of runs whose trainers are gone, in a process of its own that nobody waits for."""
    if directories:
        _spawn([str(directory.path) for directory in directories], directories[-1].relay_log)


def _spawn(words: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    """`mltrack sync WORDS` in a session of its own, with nothing of ours open."""
    with log_file.open("ab") as log:
        return start("mltrack", ["sync", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
