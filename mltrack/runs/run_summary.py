"""`summary.json`: what a person asks of a run, kept current while it trains.

Invariant: it is made anew from the training's state at each evaluation and at the end, so that a resumed training tells
the whole run. Nothing depends on it: a disk that does not take it costs the summary and nothing else.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mltrack.config import TrainModelResponse, options_of
from mltrack.evaluation.beside_baselines import verdict
from mltrack.journal import write_json
from mltrack.training import AdvancedTrainer
from mltrack.training.callback import Callback
from mltrack.training.resume import Metric

if TYPE_CHECKING:
    from mltrack.runs.tracked import TrackedRun

EVALUATIONS_SHOWN = 5
NAMED_ELSEWHERE = ("task", "model_name", "dataset_path", "metric_name")
"""Options that the summary gives by themselves."""
log = logging.getLogger("mltrack")


class RunSummary(Callback):
    """Writes `summary.json` into the run directory.

    Args:
        tracked: the run.
    """

    def __init__(self, tracked: TrackedRun):
        self._tracked = tracked
        self._trainer: AdvancedTrainer | None = None
        self._best: list[dict[str, Any]] = []
        """Evaluations, the best first; kept here, so that each one costs the same however many there were."""

    def on_train_begin(self, trainer: AdvancedTrainer) -> None:
        self._trainer, self._best = trainer, _best_of(trainer.state.history, trainer.metric)
        self.write()

    def on_evaluation(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        self._best = _best_of([*self._best, trainer.state.history[-1]], trainer.metric)
        self.write()

    def finish(self, response: TrainModelResponse) -> None:
        """The last words, warnings of the reports among them."""
        self.write()

    def write(self) -> None:
        if self._trainer is None:
            return
        try:
            write_json(self._tracked.directory.summary_file, self._content(self._trainer))
        except OSError as error:
            log.info("summary.json: %s", error)

    def _content(self, trainer: AdvancedTrainer) -> dict[str, Any]:
        prepared, response = self._tracked.prepared, self._tracked.response
        request, state, task = prepared.request, trainer.state, prepared.train_dataset.task
        best = next((one for one in self._best if one["step"] == state.best_step), {})
        return {
            "task": request.task,
            "model": request.model_name,
            "parameters": sum(parameter.numel() for parameter in prepared.model.parameters()),
            "options": self._chosen_options(),
            "data": {"source": request.dataset_path, **prepared.data_summary},
            "findings": [one.line for one in prepared.data_check.findings] if prepared.data_check is not None else [],
            "metric": request.metric_name,
            "mode": trainer.metric.mode,
            "step": state.step,
            "total_steps": trainer.plan.total_steps,
            "best_step": state.best_step,
            "verdict": verdict(best, response.baselines, request.metric_name),
            "evaluations": self._best,
            "registered_name": request.registry_name if request.register == "best" else None,
            "example": task.serving.example,
            "warnings": response.warnings,
        }

    def _chosen_options(self) -> dict[str, str]:
        """The options that decide a result and differ from the task's defaults, as the user typed them."""
        request, task = self._tracked.prepared.request, self._tracked.prepared.train_dataset.task
        options, by_task = options_of(request.task), task.defaults(request.model_name)
        return {
            name: request.as_typed.get(name, str(value))
            for name, value in request.options().items()
            if options[name].is_param
            and name not in NAMED_ELSEWHERE
            and value != by_task.get(name, options[name].default)
        }


def _best_of(evaluations: Sequence[dict[str, Any]], metric: Metric) -> list[dict[str, Any]]:
    """The best evaluations, the best first; of equal ones the earlier."""
    sign = 1 if metric.mode == "min" else -1

    def rank(one: Mapping[str, Any]) -> float:
        value = float(one.get(metric.name, math.nan))
        return math.inf if math.isnan(value) else sign * value

    return sorted(evaluations, key=rank)[:EVALUATIONS_SHOWN]
