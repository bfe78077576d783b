"""One training from the request to the response: nine steps in three stages, each of which returns a typed value.

Invariant: `execute` never raises for bad input or a failed training; the MLflow run ends with the response's outcome.

    response = TrainModelUseCase().execute(TrainModelRequest(task="text_classification", dataset_path="records.jsonl"))
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mltrack.config import TrainModelRequest, TrainModelResponse
from mltrack.errors import alone
from mltrack.evaluation.evaluate import Metrics
from mltrack.runs.fit import fit
from mltrack.runs.frontend import Frontend, MakeDatasets
from mltrack.runs.open import open_run
from mltrack.runs.prepare import prepare
from mltrack.runs.tracked import explain, show_traceback, track
from mltrack.training import Callback

log = logging.getLogger("mltrack")


class TrainModelUseCase:
    """Trains a model as requested and records the run in MLflow.

    Args:
        callbacks: follow the training; see `Callback`.
        metrics: own metrics of an evaluation, by name: `function(predictions, labels)` returns a number.
        notice: called with one line for the user at a time: steps, warnings.
        progress: called with (what, done, total) during long preparations.
        on_delivery: called with delivery.json's content while the end waits for MLflow.
        stop_requested: called between steps and during long ones; a signal number ends the training, in the loop with
            a checkpoint.
        datasets: makes the data sets of the training, instead of `dataset_path`: called with the model's tokenizer
            (None for a scratch model, which takes that of the training set) and the request.
        at_once: a context in which KeyboardInterrupt may be raised at any point, since nothing is half done.
    """

    def __init__(
        self,
        *,
        callbacks: Sequence[Callback] = (),
        metrics: Metrics | None = None,
        notice: Callable[[str], None] = log.info,
        progress: Callable[[str, int, int], None] | None = None,
        on_delivery: Callable[[dict[str, Any]], None] | None = None,
        stop_requested: Callable[[], int | None] = lambda: None,
        at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
        datasets: MakeDatasets | None = None,
    ):
        self._frontend = Frontend(
            callbacks=callbacks,
            metrics=metrics,
            notice=notice,
            progress=progress,
            on_delivery=on_delivery,
            stop_requested=stop_requested,
            at_once=at_once,
            datasets=datasets,
        )

    def execute(self, request: TrainModelRequest) -> TrainModelResponse:
        """Run the nine steps.

        Returns:
            With `success=False`, `errors` and `exit_code` (2 bad input, 1 failed, 128 + signal) if a step failed.
        """
        response, frontend, process = TrainModelResponse(), self._frontend, os.getpid()
        try:
            prepared = prepare(request, frontend)
            with track(prepared, frontend, response) as tracked:
                fit(open_run(tracked))
        except BaseException as error:
            if os.getpid() != process:  # forked in a callback: it is not the training
                raise
            explain(error, response, frontend)
            with alone(response.warnings, "the traceback could not be shown"):
                show_traceback(error, debug=request.debug)
        return response
