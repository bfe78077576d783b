"""The relay: a journal projected onto MLflow, in a process that never imports torch or transformers."""

from mltrack.relay.address import tracking_uri_of
from mltrack.relay.delivery_state import Progress
from mltrack.relay.liveness import (
    Life,
    TrainedElsewhere,
    Trainer,
    has_ended,
    moves,
    refuse_trained_elsewhere,
    trainer_of,
)
from mltrack.relay.reaper import Orphan, orphans, reap, stand_still
from mltrack.relay.relay_process import WatchedProcess
from mltrack.relay.sync import DeliveredElsewhere, follow, run, sync
from mltrack.relay.trainers import OthersRun, Settled, StaleRunDirectory, trainer_tags
from mltrack.relay.verdict import verdict_on
