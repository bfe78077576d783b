"""The attributes that any data set needs for training.

Invariant: `CodeDataset` has all of them; none needs a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mltrack.tasks.contract import Task


class TrainingDataset(Protocol):
    """Examples of one task as token ids.

    It may also have `label_mapping` ({class: index}; a classification must), `collate(examples)` (else batches are
    padded to the right), `location(index)` (the origin of an example, for messages) and `source` (that of all).
    """

    @property
    def task(self) -> str | Task:
        """A task or its name; decides the loss and the metrics."""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the token ids; saved with the model."""

    @property
    def max_length(self) -> int:
        """Most tokens that an example may have."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, whole numbers [N]."""

    @property
    def target_counts(self) -> np.ndarray:
        """Targets of each example, whole numbers [N]: labels that are not -100 and not the first; 1 for a class."""

    @property
    def digest(self) -> str:
        """Identifies the content: a training resumes only on data of the same digest, and models are compared on it."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """`input_ids`: whole numbers [T]; `labels`: the class index, or whole numbers [T] with -100 for tokens
        without loss. Every call must return the same.
        """
