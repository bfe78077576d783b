"""Training: the loop (trainer) and the small parts that it calls."""

from mltrack.training.callback import Callback
from mltrack.training.early_stopping import EarlyStopping
from mltrack.training.fingerprint import compare_fingerprints, fingerprint_of
from mltrack.training.parallel import choose_parallel
from mltrack.training.schedule import Plan
from mltrack.training.speed import uses_cls_only
from mltrack.training.speed.attention import use_attention
from mltrack.training.trainer import AdvancedTrainer
from mltrack.training.training_state import TrainingState

__all__ = [
    "AdvancedTrainer",
    "Callback",
    "EarlyStopping",
    "Plan",
    "TrainingState",
    "choose_parallel",
    "compare_fingerprints",
    "fingerprint_of",
    "use_attention",
    "uses_cls_only",
]
