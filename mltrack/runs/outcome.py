"""The files that a finished training leaves beside its model: learning curves, lengths of the records, and its task's
report.

Invariant: they describe the model that is kept (the best), on the run's evaluation set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from mltrack.data import CodeDataset
from mltrack.evaluation.figures import learning_curves_figure, token_lengths_figure
from mltrack.tasks.contract import Part
from mltrack.training import AdvancedTrainer


@dataclass(frozen=True)
class Outcome:
    """A finished training, as its task's report sees it; see `mltrack.tasks.contract.Trained`."""

    trainer: AdvancedTrainer
    """Its model holds the weights that are kept."""
    dataset: CodeDataset
    folder: Path
    step: int
    """Optimizer steps of those weights."""
    check: Callable[..., None]

    @property
    def model(self) -> nn.Module:
        """The model that is kept."""
        return self.trainer.model

    @cached_property
    def _evaluator(self) -> Any:
        return self.trainer.evaluated(self.dataset, self.check)[1]

    def evaluator(self) -> Any:
        """The task's evaluator after the whole evaluation set; made once."""
        return self._evaluator

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast on a GPU, which flash attention needs; none on a CPU, where it is slower."""
        return self.trainer.precision.autocast() if self.trainer.device.type == "cuda" else nullcontext()

    def check_stop(self) -> None:
        """Raise Interrupted if a stop was requested."""
        self.check()

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record figures at the step of the weights that are kept."""
        self.trainer.tracker.log_metrics(metrics, step=self.step)

    def show_table(self, path: Path) -> None:
        """Show a table that is logged to `evaluation/` in MLflow's UI, which can compare it between runs."""
        tables = [{"path": f"evaluation/{path.name}", "type": "table"}]
        self.trainer.tracker.set_tags({"mlflow.loggedArtifacts": json.dumps(tables)})


def outcome_parts(trainer: AdvancedTrainer, folder: Path, *, step: int, check: Callable[..., None]) -> list[Part]:
    """The parts of the report, each with a function that writes its files into `folder` and logs its figures.

    Args:
        trainer: its model holds the weights that are kept.
        step: optimizer steps of those weights.
        check: raises Interrupted if a stop was requested.
    """
    dataset, max_length = trainer.eval_dataset, trainer.train_dataset.max_length
    curves, lengths = folder / "learning_curves.png", folder / "token_lengths.png"
    parts: list[Part] = [
        ("learning curves", lambda: [(learning_curves_figure(_curves(trainer.state.history), curves), "figures")]),
        ("token lengths", lambda: [(token_lengths_figure(_lengths(trainer), max_length, lengths), "figures")]),
    ]
    if dataset is None:
        return parts
    return parts + dataset.task.report(Outcome(trainer, dataset, folder, step, check))


def _lengths(trainer: AdvancedTrainer) -> dict[str, Any]:
    """Tokens of each record by split."""
    splits = {"training": trainer.train_dataset, "evaluation": trainer.eval_dataset}
    return {name: dataset.full_lengths for name, dataset in splits.items() if dataset is not None}


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if name not in ("epoch", "step") and value is not None and not name.startswith("eval_f1_"):
                curves.setdefault(name, []).append((entry["step"], value))
    return curves
