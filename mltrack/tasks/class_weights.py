"""Rare classes counted more in the training loss.

Invariant: the weights' mean over the training records is 1, and the sum of the weighted losses is divided by the number
of examples: so a step is the same however it is cut into micro-batches. Evaluation never sees the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch.nn import functional as F

from mltrack.errors import ConfigurationError
from mltrack.tasks.classification import class_logits
from mltrack.tasks.contract import Batch, Task


class Labelled(Protocol):
    """What is asked of a training set."""

    label_mapping: dict[str, int]

    @property
    def class_counts(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class WeightedClassification:
    """A classification objective whose examples count by their class.

    Args:
        weights: by class index.
    """

    weights: tuple[float, ...]

    def sums(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(weighted sum of cross entropies in nats, number of examples)."""
        logits, labels = class_logits(model, batch), batch["labels"]
        weight = _on(logits.device, logits.dtype, self.weights)
        return F.cross_entropy(logits, labels, weight=weight, reduction="sum"), (labels != -100).sum()


@lru_cache
def _on(device: torch.device, dtype: torch.dtype, weights: tuple[float, ...]) -> torch.Tensor:
    """Copied there once: a copy makes a GPU wait."""
    return torch.tensor(weights, device=device, dtype=dtype)


def weighted(task: Task, class_weights: str, dataset: Labelled) -> Task | WeightedClassification:
    """The task's objective with `class_weights` none or balanced.

    Raises:
        ConfigurationError: a task without classes.
    """
    if class_weights == "none":
        return task
    if not task.type.is_classification:
        raise ConfigurationError(f"class_weights: seen {class_weights}, but {task.type} has no classes; accepted: none")
    counts = dataset.class_counts
    return WeightedClassification(
        balanced({label: counts[label] for label in sorted(counts, key=dataset.label_mapping.__getitem__)})
    )


def balanced(counts: Mapping[str, int]) -> tuple[float, ...]:
    """records / (classes * records of the class), in the order of `counts`; a class without a record gets 0 and is not
    counted among the classes.
    """
    present = [count for count in counts.values() if count]
    return tuple(sum(present) / (len(present) * count) if count else 0.0 for count in counts.values())
