"""The options of a training, declared once, and the request, configuration and response made of them."""

from mltrack.config.option import Option
from mltrack.config.options import DATA_OPTIONS, GROUPS, OPTIONS
from mltrack.config.request import TaskType, TrainingConfig, TrainModelRequest, TrainModelResponse, checked_options

__all__ = [
    "DATA_OPTIONS",
    "GROUPS",
    "OPTIONS",
    "Option",
    "TaskType",
    "TrainModelRequest",
    "TrainModelResponse",
    "TrainingConfig",
    "checked_options",
]
