"""The trainer's side of the relay, a separate process: starts it, watches it and waits for it.

Invariant: nothing here uses the network, and a dead relay or server never costs the training more than the wait at its
end."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mltrack.journal import RunDirectory
from mltrack.processes import start

SILENCE_S = 8.0
"""How long the end of a training waits after the server's last acknowledgement: ten seconds in all, with the time to
shut down.
"""
LOCAL_SILENCE_S = 25.0
"""The same for a database file, which has no server that can be dead; MLflow waits 20 s for a locked one."""
START_UP_S = 30.0
"""How long a relay may take to be ready to send, on a busy machine."""
_POLL_S = 0.1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""The first and the longest pause before a dead relay is started again; doubled each time, until one has lived for the
longest.
"""
LAST_TRIES = 2
"""How often it is started again once the training has ended."""
log = logging.getLogger("mltrack")


class Delivery:
    """`mltrack sync --follow RUN_DIR`, started for one run directory.

    Args:
        directory: its run.json names the MLflow run and this process as the trainer.
        tracking_uri: that of the run, with the credentials that run.json does not hold.
    """

    rejected: str | None = None
    """Why MLflow refuses the run itself, once known: there is no such run or experiment, or it is deleted."""

    def __init__(self, directory: RunDirectory, tracking_uri: str | None = None):
        self.directory, self._tracking_uri = directory, tracking_uri
        self._ending, self._stopped = threading.Event(), threading.Event()
        self._silence_s = LOCAL_SILENCE_S if directory.read_run().tracking_uri.startswith("sqlite:") else SILENCE_S
        self._started = time.time()
        self._process = self._start()
        self._watcher = threading.Thread(target=self._keep_alive, name="relay-watch", daemon=True)
        self._watcher.start()

    def wait(
        self, limit_s: float, on_progress: Callable[[dict[str, Any]], None] | None = None, *, ended: bool = True
    ) -> str:
        """Wait for the rest to be delivered; nothing may be recorded after this call.

        Args:
            limit_s: longest wait while the relay makes progress.
            on_progress: called repeatedly with the content of delivery.json; an exception ends the wait.
            ended: the journal has its end record; without it the relay ends after this process, so this waits only for
                the records so far.

        Returns:
            "complete" or "pending".
        """
        started = ready = time.time()
        self._ending.set()
        try:
            while self._process.poll() is None or self._watcher.is_alive():
                delivery = self.directory.read_delivery()
                if on_progress is not None:
                    on_progress(delivery)
                now, acknowledged = time.time(), delivery.get("acknowledged_ms", 0) / 1000
                if (
                    delivery.get("connected_ms", 0) / 1000 < self._started
                    and now - max(started, self._started) < START_UP_S
                ):
                    ready = now
                silent = now - max(ready, acknowledged)
                if not ended and self._has_all(delivery):
                    break
                if now - started > limit_s or (silent > self._silence_s and not delivery.get("uploading")):
                    break
                self._watcher.join(_POLL_S)
        finally:  # even if `on_progress` ends the wait
            self._stopped.set()
        delivery = self.directory.read_delivery()
        return (
            "complete" if delivery.get("complete") and self._has_all(delivery) else "pending"
        )  # an earlier relay of a resumed run may have said so

    def _has_all(self, delivery: Mapping[str, Any]) -> bool:
        """True if MLflow has acknowledged the whole journal."""
        return bool(delivery.get("offset", 0) >= self.directory.journal.stat().st_size)

    def _start(self) -> subprocess.Popen[bytes]:
        return _spawn(["--follow", str(self.directory.path)], self.directory.relay_log, self._tracking_uri)

    def _keep_alive(self) -> None:
        """Restart the relay whenever it dies; the end of the training waits neither for the pause nor for more than a
        few tries.
        """
        try:
            self._start_again_while_it_dies()
        finally:
            self.rejected = self.directory.read_delivery().get("rejected")

    def _start_again_while_it_dies(self) -> None:
        pause_s, tries_left = FIRST_PAUSE_S, LAST_TRIES
        while (code := self._process.wait()) != 0 and tries_left and not self._stopped.is_set():
            ending = self._ending.is_set()
            tries_left -= ending
            self._say(
                f"the process that delivers this run to MLflow exited with code {code}; it is started"
                f" again{'' if ending else f' in {pause_s:.0f} s'}"
            )
            self._ending.wait(pause_s)
            if self._stopped.is_set():
                return
            pause_s = (
                FIRST_PAUSE_S if time.time() - self._started > LONGEST_PAUSE_S else min(LONGEST_PAUSE_S, 2 * pause_s)
            )
            self._started = time.time()
            try:
                self._process = self._start()
            except OSError as error:  # no process, or no room for its log: try again later
                self._say(f"it cannot be started: {error}")

    def _say(self, line: str) -> None:
        log.warning("%s: %s; see %s", self.directory.path.name, line, self.directory.relay_log)
        with suppress(OSError), self.directory.relay_log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 WARNING {line}\n")


def deliver_earlier(directory: RunDirectory, tracking_uri: str | None) -> None:
    """Complete the delivery of the earlier runs of this folder: the last one as its own relay would, older ones in one
    attempt.

    Args:
        tracking_uri: its credentials are used for runs of that server.
    """
    left = sorted(
        (one for one in directory.earlier() if not one.is_settled()), key=lambda one: one.journal.stat().st_mtime_ns
    )
    deliver_in_background(left[:-1], tracking_uri)
    for newest in left[-1:]:
        _spawn(["--follow", str(newest.path)], newest.relay_log, tracking_uri)


def deliver_in_background(directories: Sequence[RunDirectory], tracking_uri: str | None = None) -> None:
    """Complete the delivery of runs whose trainers are gone, in a background process.

    Args:
        tracking_uri: its credentials are used for runs of that server.
    """
    if directories:
        _spawn([str(directory.path) for directory in directories], directories[-1].relay_log, tracking_uri)


def _spawn(words: Sequence[str], log_file: Path, tracking_uri: str | None) -> subprocess.Popen[bytes]:
    """`mltrack sync WORDS` in its own session, without open files of this process."""
    with log_file.open("ab") as log:
        return start(
            "mltrack", ["sync", *words], tracking_uri=tracking_uri, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
