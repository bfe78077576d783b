"""What the trainer and the evaluation ask of a task.

Invariant: sums and counts, never means; whoever adds them up decides what they are divided by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import torch

from mltrack.config import TaskType

Batch = Mapping[str, torch.Tensor]
"""input_ids [B, T] int64, attention_mask [B, T] int64 (right padding; absent where nothing is padded), labels [B] or
[B, T] int64, and for packed examples position_ids [B, T] int64 instead of a mask; all on the model's device."""


class Evaluator(Protocol):
    """Adds up batches; what `compute` gives depends neither on how the records were batched nor on their order."""

    def update(self, model: torch.nn.Module, batch: Batch) -> None:
        """Add a batch. The caller has put the model in evaluation mode and holds inference_mode and autocast."""

    def merge(self, other: Self) -> None:
        """Add what another evaluator (of another rank) has seen."""

    def compute(self) -> dict[str, float]:
        """The metrics by name, without the `eval_` prefix; `loss` is among them. NaN where nothing was added."""


class Task(Protocol):
    """One of the three tasks."""

    @property
    def type(self) -> TaskType:
        """Which one."""

    def defaults(self, model_name: str) -> dict[str, Any]:
        """epochs, batch_size, learning_rate and max_length where the user gave none."""

    def sums(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward pass: (loss_sum, count).

        Returns:
            loss_sum: float32, 0-dim, with gradient: cross entropy in nats, summed over what `count` counts.
            count: int64, 0-dim: examples (classification) or target tokens (generation).
        """

    def evaluator(self, label_names: Sequence[str] | None = None) -> Evaluator:
        """A new, empty evaluator; `label_names` in the order of their indices name the classes in the metrics."""
