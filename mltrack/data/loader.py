"""A data file, or the built-in source, as tokenized data sets of one task.

Invariant: the label mapping is that of all records, so that both sides of a split share it, whichever classes they hold.

    loader = DatasetLoader("data.jsonl", tokenizer, task="text_classification")
    train, test = loader.get_train_test_split(test_size=0.2)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mltrack.data.dataset import CodeDataset
from mltrack.data.labels import check_classes, count_labels, make_label_mapping
from mltrack.data.readers import read_records
from mltrack.data.records import Record, as_task, content_digest, label_outside
from mltrack.data.splits import split_records
from mltrack.data.stdlib_source import STDLIB, stdlib_records
from mltrack.errors import ConfigurationError, DatasetError, did_you_mean

_PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)


class DatasetLoader:
    """Reads records once, when they are first needed.

    Args:
        data_path: a file that `read_records` accepts, or `stdlib`.
        tokenizer: a Hugging Face tokenizer; needed for data sets, not for records.
        task: a `TaskType` or its name.
        max_length: tokens of the longest example.
        on_bad_record: "stop" raises at the first bad record, "skip" leaves it out and keeps its message in `skipped`.
        num_labels: number of classes that the data must have.
        seed: seeds the split.
        progress: called with (done, total) while the built-in source is scanned.
        label_mapping: the classes of another file, usually the training file; a record of none of them is a bad record.
        truncation: what is kept of a text that is too long; see `CodeDataset`.

    Raises:
        ConfigurationError: an option outside of what is accepted, at construction.
        DatasetError: whatever is wrong with the data, when the records are first needed.
    """

    def __init__(
        self,
        data_path: str | Path,
        tokenizer: Any = None,
        task: str = "text_classification",
        max_length: int = 512,
        *,
        on_bad_record: str = "stop",
        num_labels: int | None = None,
        seed: int = 42,
        progress: Callable[[int, int], None] | None = None,
        label_mapping: Mapping[str, int] | None = None,
        truncation: str = "head",
    ):
        self.task = as_task(task)
        if on_bad_record not in ("stop", "skip"):
            raise ConfigurationError(f"on_bad_record: seen {on_bad_record!r}; {did_you_mean(str(on_bad_record), ('stop', 'skip'))}")
        if num_labels is not None and not self.task.is_classification:
            raise ConfigurationError(f"num_labels: seen {num_labels}, but {self.task} has no classes; accepted: leave it out")
        self.data_path = str(data_path)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        self.seed = seed
        self.skipped: list[str] = []
        """One line for each record that was left out."""
        self._on_bad_record = on_bad_record
        self._num_labels = num_labels
        self._progress = progress
        self._given_mapping = dict(label_mapping) if label_mapping is not None else None

    @cached_property
    def records(self) -> list[Record]:
        """All good records, in the file's order."""
        self.skipped.clear()
        if self.data_path == STDLIB:
            records = stdlib_records(self.task, progress=self._progress)
        else:
            records = read_records(self.data_path, self.task, on_bad_record=self._on_bad_record, on_skip=self._skip)
        if self.task.is_classification:
            records = self._checked(records)
        return records

    @cached_property
    def label_mapping(self) -> dict[str, int]:
        """Class index per label; empty for generation."""
        if self._given_mapping is not None:
            return dict(self._given_mapping)
        return make_label_mapping(self.records, self.task)

    def split_records(self, test_size: float = 0.2) -> tuple[list[Record], list[Record]]:
        """(train, test) records, stratified by label; needs no tokenizer."""
        return split_records(self.records, test_size, self.seed, stratify=self.task.is_classification)

    def get_train_test_split(self, test_size: float = 0.2) -> tuple[CodeDataset, CodeDataset]:
        """(train, test) data sets, stratified by label and seeded; duplicates stand on one side."""
        train, test = self.split_records(test_size)
        return self.dataset(train), self.dataset(test)

    def load(self) -> CodeDataset:
        """One data set of all records."""
        return self.dataset(self.records)

    def dataset(self, records: Sequence[Record], tokenizer: Any = None, *, progress: Callable[[int, int], None] | None = None) -> CodeDataset:
        """A data set of these records with this loader's classes; `progress` is called with (done, total) while they are tokenized.

        Raises:
            ConfigurationError: there is no tokenizer, here or in the loader.
        """
        chosen = tokenizer if tokenizer is not None else self.tokenizer
        if chosen is None:
            raise ConfigurationError("tokenizer: seen None; accepted: a Hugging Face tokenizer, given to DatasetLoader or to dataset()")
        options: dict[str, Any] = {"max_length": self.max_length, "label_mapping": self.label_mapping, "truncation": self.truncation}
        return CodeDataset(records, chosen, self.task, **options, progress=progress)

    def get_statistics(self) -> dict[str, Any]:
        """Counts of records, classes and skipped ones; percentiles of characters and, with a tokenizer, of tokens.

        `tokens` are counted before `max_length` cuts; `truncated` is the share of records that it cuts.
        """
        characters = [len(record.text) + len(record.description or "") for record in self.records]
        statistics: dict[str, Any] = {
            "records": len(self.records),
            "distinct": len({record.content_key for record in self.records}),
            "skipped": len(self.skipped),
            "classes": count_labels(self.records, self.label_mapping),
            "characters": _percentiles(characters),
            "tokens": None,
            "truncated": None,
        }
        if self.tokenizer is not None:
            dataset = self.load()
            statistics["tokens"] = _percentiles(dataset.uncut_lengths)
            statistics["truncated"] = dataset.truncated_share
        return statistics

    def get_info(self) -> dict[str, Any]:
        """Where the records come from and what is done with them."""
        return {
            "source": self.data_path,
            "digest": content_digest(self.records),
            "task": self.task.value,
            "max_length": self.max_length,
            "records": len(self.records),
            "label_mapping": dict(self.label_mapping),
            "seed": self.seed,
        }

    def _skip(self, error: DatasetError) -> None:
        self.skipped.append(str(error))

    def _checked(self, records: list[Record]) -> list[Record]:
        if self._given_mapping is None:
            mapping = make_label_mapping(records, self.task)
            check_classes(records, mapping, self._num_labels, self.data_path)
            return records
        good = []
        for record in records:
            if record.label in self._given_mapping:
                good.append(record)
                continue
            error = label_outside(record, self._given_mapping)
            if self._on_bad_record == "stop":
                raise error
            self._skip(error)
        if not good:
            raise DatasetError(f"none of the {len(records)} records has a known label; the first: {self.skipped[-len(records)]}", path=self.data_path)
        return good


def _percentiles(values: Sequence[int] | np.ndarray) -> dict[str, int]:
    found = np.percentile(np.asarray(values), _PERCENTILES, method="higher")
    return {"min" if p == 0 else "max" if p == 100 else f"p{p}": int(value) for p, value in zip(_PERCENTILES, found, strict=True)}
