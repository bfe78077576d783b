"""mltrack fine-tunes code models and keeps every run in MLflow.

Invariant: importing this package loads neither torch nor mlflow nor transformers; a public name is imported when it is
first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "TaskType": "tasks",
    "TrainingConfig": "config",
    "TrainModelRequest": "config",
    "TrainModelResponse": "config",
    "CodeDataset": "data",
    "DatasetLoader": "data",
    "TrainingDataset": "data",
    "MetricEntry": "tracking",
    "MetricStatistics": "tracking",
    "TrainingMetricsTracker": "tracking",
    "CheckpointManager": "checkpoints",
    "CheckpointMetadata": "checkpoints",
    "AdvancedTrainer": "training",
    "Callback": "training.callback",
    "TrainingState": "training",
    "TrainModelUseCase": "runs.use_case",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mltrack' has no attribute '{name}'")
    return getattr(import_module(f"mltrack.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
