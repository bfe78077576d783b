"""Somebody who shows how a training goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mltrack.training.schedule import Plan
from mltrack.training.state import TrainingState


class Listener(Protocol):
    """Is told of every step and evaluation; what it raises ends the training."""

    def on_start(self, state: TrainingState, plan: Plan) -> None: ...

    def on_step(self, state: TrainingState, metrics: Mapping[str, float]) -> None: ...

    def on_evaluation_batch(self, done: int, total: int) -> None: ...

    def on_evaluation(self, state: TrainingState, metrics: Mapping[str, float]) -> None: ...
