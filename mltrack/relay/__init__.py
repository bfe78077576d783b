"""The relay: a journal projected onto MLflow, in a process that never imports torch or transformers."""

from mltrack.relay.address import tracking_uri_of
from mltrack.relay.process import WatchedProcess
from mltrack.relay.progress import Progress
from mltrack.relay.reaper import orphans, reap
from mltrack.relay.sync import DeliveredElsewhere, follow, run, sync
from mltrack.relay.trainers import Settled, WentOnElsewhere, trainer_tags

__all__ = [
    "DeliveredElsewhere",
    "Progress",
    "Settled",
    "WatchedProcess",
    "WentOnElsewhere",
    "follow",
    "orphans",
    "reap",
    "run",
    "sync",
    "tracking_uri_of",
    "trainer_tags",
]
