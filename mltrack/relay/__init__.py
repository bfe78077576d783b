"""The relay: a journal projected onto MLflow, in a process that never imports torch or transformers."""

from mltrack.relay.process import WatchedProcess
from mltrack.relay.progress import Progress
from mltrack.relay.reaper import orphans, reap, trainer_tags
from mltrack.relay.sync import DeliveredElsewhere, follow, run, sync

__all__ = ["DeliveredElsewhere", "Progress", "WatchedProcess", "follow", "orphans", "reap", "run", "sync", "trainer_tags"]
