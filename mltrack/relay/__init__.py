"""The relay: a journal projected onto MLflow, in a process that never imports torch or transformers."""

from mltrack.relay.process import WatchedProcess
from mltrack.relay.progress import Progress
from mltrack.relay.reaper import orphans, reap
from mltrack.relay.sync import DeliveredElsewhere, follow, run, sync
from mltrack.relay.trainers import WentOnElsewhere, trainer_tags
from mltrack.relay.verdict import verdict_on

__all__ = ["DeliveredElsewhere", "Progress", "WatchedProcess", "WentOnElsewhere", "follow", "orphans", "reap", "run", "sync", "trainer_tags", "verdict_on"]
