"""A trainer's heartbeat, for processes that cannot look it up: a file in its run directory that changes every few
seconds.

Invariant: its own thread writes it, so neither a long step nor a long upload stops it; it ends with the process,
however that ends. A reader compares two readings by its own clock; clocks of two machines are never compared."""

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
"""If a heartbeat has not changed for this long, its process is gone."""


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
        """Stop beating. May be called twice."""
        self._stopped.set()
        if self._pid == os.getpid():  # a forked child does not have the thread
            self._thread.join()

    def _beat(self) -> None:
        for text in beats():
            with suppress(OSError):
                self._path.write_text(text, encoding="ascii")
            if self._stopped.wait(BEAT_S):
                return


def beats() -> Iterator[str]:
    """Texts that are all different, across processes too."""
    life, count = uuid.uuid4().hex[:12], 0
    while True:
        count += 1
        yield f"{life} {count}"
