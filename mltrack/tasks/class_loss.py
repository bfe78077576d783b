"""One class per record: cross entropy over the classes; accuracy, F1, precision, recall.

Invariant: losses are summed in float64 in evaluation, so the batch size changes nothing but rounding. If rare classes
count more in training, the weights' mean over the training records is 1 and the weighted sum is divided by the number
of examples, so a step does not depend on how it is split into micro-batches. Evaluation is never weighted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch.nn import functional as F

from mltrack.evaluation.metrics import classification_metrics
from mltrack.tasks.contract import Batch


def class_loss(
    model: torch.nn.Module, batch: Batch, weights: tuple[float, ...] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(summed cross entropy in nats, number of examples).

    Args:
        weights: by class index.
    """
    logits, labels = class_logits(model, batch), batch["labels"]
    weight = None if weights is None else _on(logits.device, logits.dtype, weights)
    return F.cross_entropy(logits, labels, weight=weight, reduction="sum"), (labels != -100).sum()


@dataclass(frozen=True)
class WeightedClasses:
    """A classification objective whose examples are weighted by class.

    Args:
        weights: by class index.
    """

    weights: tuple[float, ...]

    def sums(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(weighted sum of cross entropies in nats, number of examples)."""
        return class_loss(model, batch, self.weights)


def balanced(counts: Mapping[str, int]) -> tuple[float, ...]:
    """records / (classes * records of the class), in the order of `counts`; a class without a record gets 0 and does
    not count as a class.
    """
    present = [count for count in counts.values() if count]
    return tuple(sum(present) / (len(present) * count) if count else 0.0 for count in counts.values())


class ClassificationEvaluator:
    """Keeps each batch's loss and each record's label and prediction.

    Attributes:
        label_names: of the classes, by index; None: the indices that occur, as words.
    """

    def __init__(self, label_names: Sequence[str] | None = None):
        self.label_names = list(label_names) if label_names is not None else None
        self._losses: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._predictions: list[torch.Tensor] = []

    def update(self, model: torch.nn.Module, batch: Batch) -> None:
        """Add a batch."""
        logits, labels = class_logits(model, batch), batch["labels"]
        loss, predictions = _float64(F.cross_entropy(logits, labels, reduction="none")).sum(), logits.argmax(dim=-1)
        self._losses.append(
            loss
        )  # added only once all of it is computed: a batch that runs out of memory leaves no trace
        self._labels.append(labels)
        self._predictions.append(predictions)

    def merge(self, other: Self) -> None:
        """Add another evaluator's batches."""
        self._losses += other._losses
        self._labels += other._labels
        self._predictions += other._predictions

    @property
    def labels(self) -> list[int]:
        """Class index of each record, in the order of the batches."""
        return [label for batch in self._labels for label in batch.tolist()]

    @property
    def predictions(self) -> list[int]:
        """Predicted class index of each record, in the same order."""
        return [label for batch in self._predictions for label in batch.tolist()]

    def compute(self) -> dict[str, float]:
        """loss, accuracy, macro and weighted F1, macro precision and recall, f1_<class>."""
        labels, predictions = self.labels, self.predictions
        names = (
            self.label_names
            if self.label_names is not None
            else [str(i) for i in range(max([1, *labels, *predictions]) + 1)]
        )
        loss = math.fsum(value.item() for value in self._losses) / len(labels) if labels else math.nan
        return {"loss": loss, **classification_metrics(labels, predictions, names)}


def class_logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """float32 [B, classes]."""
    output: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")).logits
    return output.float()


@lru_cache
def _on(device: torch.device, dtype: torch.dtype, weights: tuple[float, ...]) -> torch.Tensor:
    """The weights on the device, copied once: a copy makes a GPU wait."""
    return torch.tensor(weights, device=device, dtype=dtype)


def _float64(values: torch.Tensor) -> torch.Tensor:
    """The values in float64; on the CPU if the device (mps) has none."""
    return values.cpu().double() if values.device.type == "mps" else values.double()
