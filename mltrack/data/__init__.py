"""Records, data sets, splits and batches.

Invariant: importing this package loads neither torch nor bandit; a public name is imported on first use, so
the command line and the scanning workers start quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mltrack.data.dataset import CodeDataset
    from mltrack.data.loader import DatasetLoader
    from mltrack.data.sampler import Sampler
    from mltrack.data.training_dataset import TrainingDataset
    from mltrack.records.record import PROMPT_TEMPLATE, SECURITY_LEVELS, Record

_HOME = {
    "PROMPT_TEMPLATE": "records.record",
    "SECURITY_LEVELS": "records.record",
    "Record": "records.record",
    "CodeDataset": "data.dataset",
    "TrainingDataset": "data.training_dataset",
    "DatasetLoader": "data.loader",
    "Sampler": "data.sampler",
}

__all__ = ["PROMPT_TEMPLATE", "SECURITY_LEVELS", "CodeDataset", "DatasetLoader", "Record", "Sampler", "TrainingDataset"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mltrack.data' has no attribute '{name}'")
    return getattr(import_module(f"mltrack.{_HOME[name]}"), name)
