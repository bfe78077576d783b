"""A data path, or the built-in source, as tokenized data sets of one task.

Invariant: the label mapping is made from all records, so both sides of a split share it.

    loader = DatasetLoader("data.jsonl", tokenizer, task="text_classification")
    train, test = loader.get_train_test_split(test_size=0.2)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mltrack.config import OPTIONS
from mltrack.data.dataset import CodeDataset
from mltrack.errors import ConfigurationError, DatasetError, did_you_mean, one_of
from mltrack.records.bad_records import BadRecords
from mltrack.records.builtin.stdlib_source import STDLIB
from mltrack.records.labels import MAX_CLASSES, in_index_order
from mltrack.records.readers import find_parts, find_sources, iterate_records, state_of
from mltrack.records.readers.reading import Pairs, as_pairs
from mltrack.records.record import Record, label_outside
from mltrack.records.record_cache import gather, kept_table, table_name
from mltrack.records.splits import split_records
from mltrack.records.table import digest_of, keys_of, percentiles, select
from mltrack.tasks.contract import Task
from mltrack.tasks.names import TaskType, package_of, task_named

_LABELS = 2
"""Version of the reading of labels; part of the name of a cached table."""
_LOG = logging.getLogger("mltrack.data")


class DatasetLoader:
    """Reads records once, on first use.

    Args:
        data_path: a file, a folder, a glob or a Hugging Face data set, as `mltrack.records.readers.find_sources`
            accepts it, or `stdlib`; in a folder with training files beside validation or test files (`train.jsonl`,
            `test/...`), the training files, with a warning.
        tokenizer: a Hugging Face tokenizer; needed for data sets, not for records.
        task: a task or its name.
        max_length: tokens of the longest example.
        columns: the columns of fields with another name: {"code": "func"}, or "code=func,label=target".
        labels: the classes of the data's labels: {"0": "safe"}, or "0=safe,1=unsafe".
        on_bad_record: "stop" raises at the first bad record, "skip" skips it: all are counted in `num_skipped`, the
            first ones are in `skipped`.
        bad_records_path: JSON Lines file of the skipped records; default: `bad_records.keep(path)` writes it later.
        num_labels: number of classes that the data must have.
        seed: seeds the split.
        group: name of a column whose equal values stay on one side of the split.
        progress: called with (done, total) while the built-in source is scanned.
        label_mapping: the classes of another file, usually the training file; a record of another class is bad.
        truncation: the part of a long text to keep; see `CodeDataset`.
        spelled_like: classes of an earlier training; a label of equal value (1 and 1.0) takes their spelling.
        class_names: use the class names of a Parquet file's schema; False: use the numbers, as in mltrack 0.1.

    Raises:
        ConfigurationError: an invalid option, at construction.
        DatasetError: invalid data, on first use of the records.
    """

    def __init__(
        self,
        data_path: str | Path,
        tokenizer: Any = None,
        task: str | Task = TaskType.TEXT_CLASSIFICATION,
        max_length: int = 512,
        *,
        columns: Pairs = None,
        labels: Pairs = None,
        on_bad_record: str = "stop",
        bad_records_path: str | Path | None = None,
        num_labels: int | None = None,
        seed: int = 42,
        progress: Callable[[int, int], None] | None = None,
        label_mapping: Mapping[str, int] | None = None,
        truncation: str = "head",
        group: str | None = None,
        spelled_like: Iterable[str] = (),
        class_names: bool = True,
    ):
        self.task = task_named(task)
        if num_labels is not None and not self.task.has_classes:
            raise ConfigurationError(
                f"num_labels={num_labels} does not work with {self.task}, which has no classes; leave it out"
            )
        self.data_path = str(data_path)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        self.seed = seed
        self.group = group
        self.columns, self.labels = as_pairs("columns", columns), as_pairs("labels", labels)
        fields = dict.fromkeys(("code", "label", "description", *self.task.fields))
        unknown = next((field for field in self.columns if field not in fields), None)
        if unknown is not None:
            raise ConfigurationError(
                f"columns: unknown field {unknown!r}; use {one_of(fields)}{did_you_mean(unknown, fields)}"
            )
        if "label" in self.task.fields and self._column("code") == self._column("label"):
            raise ConfigurationError(
                f"columns: code and label are both read from {self._column('code')!r}, so the code would hold its own"
                " label; use two columns"
            )
        self.bad_records = BadRecords(bad_records_path)
        """The skipped records."""
        self.num_read = 0
        """Records read, including bad ones; 0 before reading."""
        self._on_bad_record = OPTIONS["on_bad_record"].check(on_bad_record)
        self._num_labels = num_labels
        self.class_names = class_names
        self._progress = progress
        self._given_mapping = in_index_order(label_mapping) if label_mapping is not None else None
        self._known = list(spelled_like if self._given_mapping is None else self._given_mapping)

    @property
    def num_skipped(self) -> int:
        """Number of skipped records."""
        return self.bad_records.count

    @property
    def skipped(self) -> list[str]:
        """One line for each of the first skipped records."""
        return self.bad_records.lines

    @cached_property
    def records(self) -> Sequence[Record]:
        """All good records, in the order of the files: a list, or a `RecordTable` if they are many."""
        records: Sequence[Record] = (
            self.task.builtin_records(self._progress) if self.data_path == STDLIB else self._read()
        )
        self.num_read = len(records) + self.num_skipped
        return self._checked(records)

    @cached_property
    def label_mapping(self) -> dict[str, int]:
        """Class index per label, in index order; empty for generation."""
        if self._given_mapping is not None:
            return dict(self._given_mapping)
        return self.task.label_mapping(self.records)

    def split_records(self, test_size: float = 0.2) -> tuple[Sequence[Record], Sequence[Record]]:
        """(train, test) records, stratified by label; needs no tokenizer."""
        return split_records(
            self.records,
            test_size,
            self.seed,
            stratify=self.task.stratified,
            group=self.group,
            progress=self._progress,
        )

    def get_train_test_split(self, test_size: float = 0.2) -> tuple[CodeDataset, CodeDataset]:
        """(train, test) data sets, stratified by label and seeded; copies, near-duplicates and groups stay together."""
        train, test = self.split_records(test_size)
        return self.dataset(train), self.dataset(test)

    def load(self) -> CodeDataset:
        """One data set of all records."""
        return self.dataset(self.records)

    def dataset(
        self, records: Sequence[Record], tokenizer: Any = None, *, progress: Callable[[int, int], None] | None = None
    ) -> CodeDataset:
        """A data set of these records with this loader's classes; `progress` is called with (done, total) during
        tokenization.

        Raises:
            ConfigurationError: neither the call nor the loader has a tokenizer.
        """
        chosen = tokenizer if tokenizer is not None else self.tokenizer
        if chosen is None:
            raise ConfigurationError(
                "tokenizer is None; give a Hugging Face tokenizer to DatasetLoader or to dataset()"
            )
        options: dict[str, Any] = {
            "max_length": self.max_length,
            "label_mapping": self.label_mapping,
            "truncation": self.truncation,
        }
        return CodeDataset(records, chosen, self.task, **options, progress=progress)

    def get_statistics(self) -> dict[str, Any]:
        """Counts of records, classes and skipped records; percentiles of characters and, with a tokenizer, of tokens.

        `tokens` are counted before truncation; `truncated` is the share of records longer than `max_length`.
        """
        characters = np.fromiter(
            (len(record.text) + len(record.description or "") for record in self.records), np.int64
        )
        statistics: dict[str, Any] = {
            "records": len(self.records),
            "distinct": len(np.unique(keys_of(self.records))),
            "skipped": self.num_skipped,
            "classes": self.task.class_counts(self.records, self.label_mapping),
            "characters": percentiles(characters),
            "tokens": None,
            "truncated": None,
        }
        if self.tokenizer is not None:
            dataset = self.load()
            statistics["tokens"] = percentiles(dataset.full_lengths)
            statistics["truncated"] = dataset.truncated_share
        return statistics

    def get_info(self) -> dict[str, Any]:
        """The source of the records and the options of this loader."""
        return {
            "source": self.data_path,
            "digest": digest_of(self.records),
            "task": self.task.name,
            "max_length": self.max_length,
            "records": len(self.records),
            "label_mapping": dict(self.label_mapping),
            "seed": self.seed,
        }

    def _read(self) -> Sequence[Record]:
        """The records of files; many records come from the table of an earlier start, if the files are unchanged."""
        path, parts = self.data_path, find_parts(self.data_path)
        if parts is not None and parts.are_several:
            _LOG.warning(parts.line(path))
            path = f"{path}:train"
        sources = find_sources(path)
        state = state_of(sources)
        most = (
            max(MAX_CLASSES, self._num_labels or 0) if self.task.has_classes and self._given_mapping is None else None
        )
        what = repr(
            (
                os.path.abspath(self.data_path),
                self.data_path,
                self.task.name,
                package_of(self.task.name),
                self.columns,
                self.labels,
                most,
                self._known,
                self.class_names,
                _LABELS,
                *sorted(self.task.given.items()),
            )
        )
        name = None if state is None else table_name(what, state)
        kept = None if name is None else kept_table(name)
        if kept is not None:
            return kept
        records = iterate_records(
            path,
            self.task,
            columns=self.columns,
            labels=self.labels,
            on_bad_record=self._on_bad_record,
            on_skip=self.bad_records.add,
            class_names=self.class_names,
        )
        records = self.task.read_labels(
            records, known=self._known, most=most, source=self.data_path, column=self._column("label")
        )
        return gather(records, name, whole=lambda: not self.num_skipped and state_of(sources) == state)

    def _column(self, field: str) -> str:
        return self.columns.get(field, field)

    def _checked(self, records: Sequence[Record]) -> Sequence[Record]:
        if self._given_mapping is None:
            self.task.check_classes(records, self.task.label_mapping(records), self._num_labels, self.data_path)
            return records
        known = self.task.known(records, self._given_mapping)
        first_bad = None
        for index in np.flatnonzero(~known):
            record = records[int(index)]
            error = label_outside(record, self._given_mapping, self._column("label"))
            if self._on_bad_record == "stop":
                raise error
            first_bad = first_bad or error
            values = {self._column(field): value for field, value in self.task.columns(record).items()}
            self.bad_records.add(error, values | record.extra)
        if not known.any():
            raise DatasetError(
                f"none of the {len(records)} records has a known label; the first: {first_bad}", path=self.data_path
            )
        return records if first_bad is None else select(records, np.flatnonzero(known))
