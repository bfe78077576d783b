"""A sign of life in MLflow for machines that do not see the run directory: a tag that changes while the relay follows
its trainer or delivers what it left.

Invariant: a thread and a client of its own write it, so an upload of any length does not stop it. What goes wrong here
is tried again at the next beat and reaches nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mltrack.errors import TrackingError
from mltrack.journal import heartbeat
from mltrack.relay.liveness import HEARTBEAT_TAG
from mltrack.store import connect, runs


@contextmanager
def beating(tracking_uri: str, run_id: str) -> Iterator[None]:
    """Inside, the tag of the run changes every `BEAT_S`."""
    stopped = threading.Event()

    def beat() -> None:
        for text in heartbeat.beats():
            with suppress(TrackingError):
                runs.set_tags(connect(tracking_uri), run_id, {HEARTBEAT_TAG: text})
            if stopped.wait(heartbeat.BEAT_S):
                return

    threading.Thread(target=beat, name="heartbeat-tag", daemon=True).start()
    try:
        yield
    finally:
        stopped.set()
