"""Completes a data set that is not a `CodeDataset` for the trainer.

Invariant: the data set's own values are unchanged; it has no records, so nothing is reported about them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from mltrack.addresses import redact
from mltrack.data.collate import collate
from mltrack.data.dataset import CodeDataset, LabelledDataset, pad_token_id
from mltrack.data.training_dataset import TrainingDataset
from mltrack.errors import ConfigurationError
from mltrack.records.labels import in_index_order
from mltrack.records.record import Record
from mltrack.tasks.names import task_named

_NEEDED = ("task", "tokenizer", "max_length", "lengths", "target_counts", "digest", "__len__", "__getitem__")


def completed(dataset: TrainingDataset) -> CodeDataset:
    """The data set with all that the trainer uses of a `CodeDataset`; a `CodeDataset` is unchanged.

    Raises:
        ConfigurationError: an attribute of `TrainingDataset` is missing or does not match the number of examples.
    """
    if isinstance(dataset, CodeDataset | OwnDataset):
        return cast(CodeDataset, dataset)
    return cast(CodeDataset, OwnDataset(dataset))


class OwnDataset(LabelledDataset):
    """See `completed`."""

    records: Sequence[Record] = ()
    truncation = "the data set's own"
    truncated = dropped = 0
    truncated_share = 0.0

    def __init__(self, given: TrainingDataset):
        name = type(given).__name__
        if missing := [one for one in _NEEDED if not hasattr(given, one)]:
            raise ConfigurationError(
                f"data set {name} has no {missing[0]}; it needs {', '.join(_NEEDED)} (mltrack.TrainingDataset)"
            )
        self._given = given
        self.task = task_named(given.task)
        self.tokenizer, self.max_length, self.digest = given.tokenizer, int(given.max_length), _sha256(given.digest)
        self.pad_token_id = pad_token_id(given.tokenizer)
        self.lengths, self.target_counts = self._whole_numbers("lengths"), self._whole_numbers("target_counts")
        self.full_lengths = self.lengths
        self.label_mapping = in_index_order(getattr(given, "label_mapping", None) or {})
        if self.task.has_classes and not self.label_mapping:
            raise ConfigurationError(f"data set {name} is for {self.task} and needs a label_mapping ({{class: index}})")
        self.source = redact(str(getattr(given, "source", name)))

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {**self._given[index], "index": index}

    def location(self, index: int) -> str:
        """Where an example comes from."""
        said = getattr(self._given, "location", None)
        return str(said(index)) if said is not None else f"{self.source}: example {index}"

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch, with the numbers of its examples as `index`."""
        own = getattr(self._given, "collate", None)
        if own is None:
            return collate(examples, self.pad_token_id, max_length=self.max_length)
        return {**own(examples), "index": torch.tensor([example["index"] for example in examples])}

    @cached_property
    def class_counts(self) -> dict[str, int]:
        """Examples per class, in index order, counted one by one; empty for generation."""
        if not self.label_mapping:
            return {}
        labels = np.fromiter((int(self[number]["labels"]) for number in range(len(self))), dtype=np.int64)
        counts = np.bincount(labels, minlength=max(self.label_mapping.values()) + 1)
        return {label: int(counts[index]) for label, index in self.label_mapping.items()}

    @property
    def record_counts(self) -> dict[str, int]:
        """Same as `class_counts`: nothing is left out."""
        return self.class_counts

    def _whole_numbers(self, name: str) -> np.ndarray:
        """int32 [N]"""
        values = np.asarray(getattr(self._given, name))
        if values.shape != (len(self._given),) or not np.issubdtype(values.dtype, np.integer) or (values < 0).any():
            raise ConfigurationError(
                f"data set {type(self._given).__name__}: {name} must be {len(self._given)} whole numbers >= 0, one"
                f" per example, not {values.dtype} {list(values.shape)}"
            )
        return values.astype(np.int32)


def _sha256(digest: object) -> str:
    """sha256 (hex) of any digest, since only its first characters are compared and shown."""
    return hashlib.sha256(str(digest).encode("utf-8", "surrogatepass")).hexdigest()
