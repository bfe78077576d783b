"""The options of a training, declared once, and the request, configuration and response made of them."""

from mltrack.config.config_file import ConfigFile, commented_config
from mltrack.config.option import Option, option
from mltrack.config.options import DATA_OPTIONS, GROUPS, OPTIONS
from mltrack.config.request import TrainingConfig, TrainModelRequest, TrainModelResponse, checked_options
from mltrack.config.task_options import options_of

__all__ = [
    "DATA_OPTIONS",
    "GROUPS",
    "OPTIONS",
    "ConfigFile",
    "Option",
    "TrainModelRequest",
    "TrainModelResponse",
    "TrainingConfig",
    "checked_options",
    "commented_config",
    "option",
    "options_of",
]
