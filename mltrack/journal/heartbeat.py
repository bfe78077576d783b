"""A trainer's sign of life for processes that cannot look it up: a file in its run directory that changes every few
seconds.

Invariant: a thread of its own writes it, so neither a long step nor a long upload stops it; it ends with the process,
however that ends. A reader compares what it reads twice, by its own clock; no two machines' clocks are compared."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

BEAT_S = 15.0
"""Seconds between two beats."""
STANDS_STILL_S = 60.0
"""A heartbeat that has not changed for so long is that of a process that is gone."""


class Heartbeat:
    """Beats until it is stopped.

    Args:
        path: the file; a write that fails is tried again at the next beat.
    """

    def __init__(self, path: Path):
        self._path, self._pid, self._stopped = path, os.getpid(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No further beat. May be called twice."""
        self._stopped.set()
        if self._pid == os.getpid():  # a forked child has no such thread
            self._thread.join()

    def _beat(self) -> None:
        for text in beats():
            with suppress(OSError):
                self._path.write_text(text, encoding="ascii")
            if self._stopped.wait(BEAT_S):
                return


def beats() -> Iterator[str]:
    """Texts of which no two are equal, in this process or another."""
    life, count = uuid.uuid4().hex[:12], 0
    while True:
        count += 1
        yield f"{life} {count}"
