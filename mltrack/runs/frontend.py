"""The callbacks between a training and its caller, and the nine steps by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from mltrack.config import TrainModelRequest
from mltrack.data import TrainingDataset
from mltrack.errors import Interrupted
from mltrack.evaluation.evaluate import Metrics
from mltrack.training import Callback

log = logging.getLogger("mltrack")

STEPS = (
    "validate_request",
    "load_model",
    "load_data",
    "open_tracker",
    "open_checkpoints",
    "build_trainer",
    "train",
    "save_results",
    "respond",
)
MakeDatasets = Callable[[Any, TrainModelRequest], tuple[TrainingDataset, TrainingDataset]]
"""(the model's tokenizer or None, the request) -> the data sets to train and to evaluate on."""
_LAST_THAT_IS_CHECKED = "build_trainer"
"""After it, the loop, the reports and the wait for MLflow check for a signal themselves."""


@dataclass(frozen=True, kw_only=True)
class Frontend:
    """The callbacks of a training; see `TrainModelUseCase`."""

    callbacks: Sequence[Callback] = ()
    metrics: Metrics | None = None
    notice: Callable[[str], None] = log.info
    progress: Callable[[str, int, int], None] | None = None
    on_delivery: Callable[[dict[str, Any]], None] | None = None
    stop_requested: Callable[[], int | None] = lambda: None
    at_once: Callable[[], AbstractContextManager[None]] = nullcontext
    datasets: MakeDatasets | None = None

    def begin(self, step: str) -> None:
        """Log one of the nine steps.

        Raises:
            Interrupted: a signal requested a stop.
        """
        number = STEPS.index(step)
        log.info("step %d of %d: %s", number + 1, len(STEPS), step.replace("_", " "))
        if number <= STEPS.index(_LAST_THAT_IS_CHECKED):
            self.check_stop()

    def check_stop(self) -> None:
        """Raise Interrupted if a signal requested a stop."""
        if (signal_number := self.stop_requested()) is not None:
            raise Interrupted(signal_number)

    def report(self, what: str, done: int, total: int) -> None:
        """Report the progress of a long operation before the training.

        Raises:
            Interrupted: a signal requested a stop.
        """
        self.check_stop()
        if self.progress is not None:
            self.progress(what, done, total)
