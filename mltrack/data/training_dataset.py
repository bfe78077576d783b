"""What a data set of somebody else's must have to be trained on.

Invariant: `CodeDataset` has all of it; nothing of it needs a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mltrack.tasks.contract import Task


class TrainingDataset(Protocol):
    """Examples of one task as token ids.

    It may also have `label_mapping` ({class: index}; a classification must), `collate(examples)` (else batches are
    padded to the right), `location(index)` (where an example comes from, for messages) and `source` (the same of all).
    """

    @property
    def task(self) -> str | Task:
        """A task or its name: it decides the loss and the metrics."""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the token ids; it is saved beside the model."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest example that there could be."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, whole numbers [N]."""

    @property
    def target_counts(self) -> np.ndarray:
        """Targets of each example, whole numbers [N]: labels that are not -100 and not the first; 1 for a class."""

    @property
    def digest(self) -> str:
        """Names the content: a training is resumed only on data of the same digest, and models are compared on it."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """`input_ids`: whole numbers [T]; `labels`: the class index, or whole numbers [T] with -100 where no loss is
        taken. The same each time that it is asked for.
        """
