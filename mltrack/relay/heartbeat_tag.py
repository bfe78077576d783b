"""A heartbeat in MLflow for machines that cannot see the run directory: a tag that changes while the relay follows its
trainer or delivers the rest.

Invariant: it has its own thread and client, so an upload of any length does not stop it. A failure here affects nothing
else and is retried at the next beat."""

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
