"""One training from the request to the response: the nine steps in three stages, each of which hands on a typed value.

Invariant: `execute` never raises for bad input or a failed training; the MLflow run ends as the response says.

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
    """Trains a model as a request says and keeps the run in MLflow.

    Args:
        callbacks: are told how the training goes; see `Callback`.
        metrics: own metrics of an evaluation, by name: `function(predictions, labels)` gives a number.
        notice: takes one line for the user at a time: steps, warnings.
        progress: called with (what, done, total) while something long is prepared.
        on_delivery: called with delivery.json's content while the end waits for MLflow.
        stop_requested: asked between steps and in what takes long; a signal number ends the training, in the loop with
            a checkpoint.
        datasets: makes the data sets of the training, instead of those that `dataset_path` names: called with the
            model's tokenizer (None for a scratch model, which takes that of the training set) and the request.
        at_once: inside it KeyboardInterrupt may be raised at any point: nothing is open that it would leave half done.
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
            With `success=False`, `errors` and `exit_code` (2 bad input, 1 failed, 128 + signal) where a step failed.
        """
        response, frontend, process = TrainModelResponse(), self._frontend, os.getpid()
        try:
            prepared = prepare(request, frontend)
            with track(prepared, frontend, response) as tracked:
                fit(open_run(tracked))
        except BaseException as error:
            if os.getpid() != process:  # forked in a callback: it ends as it wants to, and is no training
                raise
            explain(error, response, frontend)
            with alone(response.warnings, "the traceback could not be shown"):
                show_traceback(error, debug=request.debug)
        return response
