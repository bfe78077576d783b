"""Records as token ids, as the trainer uses them.

Invariant: an example is its record's row of token ids (see `mltrack.data.encoding`); a label is either the class index
or, per token, the token's own id with -100 on the prompt. Token ids lie in one array, mapped from the cache if the
set is large.

    dataset = CodeDataset(records, tokenizer, "code_generation", max_length=256)
    batch = dataset.collate([dataset[0], dataset[1]])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.utils.data

from mltrack.data.collate import collate
from mltrack.data.encoding import Encoder, Progress, cut_prompt, end_token_id, pad_token_id, prompt_ids
from mltrack.data.special_tokens import read_as_text
from mltrack.data.token_cache import token_rows
from mltrack.errors import ConfigurationError, DatasetError
from mltrack.records.labels import in_index_order
from mltrack.records.record import Record
from mltrack.records.table import digest_of, files_of, select
from mltrack.tasks.contract import Task
from mltrack.tasks.names import task_named

__all__ = ["CodeDataset", "cut_prompt", "end_token_id", "pad_token_id", "prompt_ids"]


class LabelledDataset(torch.utils.data.Dataset):
    """A data set whose classes have indices."""

    label_mapping: dict[str, int]
    """Class index per label, in index order; empty for a task without classes."""

    @property
    def id2label(self) -> dict[int, str]:
        """Label per class index; empty without classes."""
        return {index: label for label, index in self.label_mapping.items()}

    @property
    def num_labels(self) -> int:
        """Number of classes, absent ones included; 0 without classes."""
        return len(self.label_mapping)


class CodeDataset(LabelledDataset):
    """Tokenized records of one task.

    Args:
        records: from `read_records` or `DatasetLoader`.
        tokenizer: a Hugging Face tokenizer. Without a pad token it pads with its end token. It is switched to read
            special tokens in a text (`</s>` in a program) as text, and saved that way.
        task: a task or its name.
        max_length: tokens of the longest example.
        label_mapping: class index per label, in any order; default: made from the records.
        truncation: the part of a long text to keep: head, tail, both; drop leaves the record out. Generation: head or
            drop.
        cache: keep the token ids of 2,000 or more records in the cache folder, and read them from there.
        progress: called with (done, total) while records are tokenized.

    Raises:
        DatasetError: a label outside the mapping, a record without any token, or no record left by `drop`.
        ConfigurationError: generation with a tokenizer without end token, `max_length` below 8, or a truncation that
            the task does not support.
    """

    def __init__(
        self,
        records: Sequence[Record],
        tokenizer: Any,
        task: str | Task,
        *,
        max_length: int = 512,
        label_mapping: Mapping[str, int] | None = None,
        truncation: str = "head",
        cache: bool = True,
        progress: Progress | None = None,
    ):
        self.task = task_named(task)
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 8:
            raise ConfigurationError(f"max_length must be a whole number >= 8, not {max_length!r}")
        self._given = list(records) if isinstance(records, list) else records
        self.records: Sequence[Record] = self._given
        """Record of each example, without those that `drop` leaves out."""
        self.tokenizer = tokenizer
        self.max_length, self.truncation = max_length, truncation
        self.label_mapping = in_index_order(
            self.task.label_mapping(self.records) if label_mapping is None else label_mapping
        )
        self.pad_token_id = pad_token_id(tokenizer)
        read_as_text(tokenizer)
        self._rows = token_rows(
            self.records, Encoder(tokenizer, self.task, max_length, truncation), cache=cache, progress=progress
        )
        if truncation == "drop":
            self._drop()
        self._targets = self.task.targets(self.records, self._rows, self.label_mapping)
        self.lengths: np.ndarray = self._rows.lengths
        """Tokens of each example, int32 [N]."""
        self.full_lengths: np.ndarray = self._rows.full_lengths
        """Tokens of each example without the limit of `max_length`, int32 [N]."""
        self.target_counts: np.ndarray = self._targets.counts
        """Contribution of each example to the divisor of the loss: target tokens, or 1; int32 [N]."""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` int64 [T], `labels` (the class index, or int64 [T] with -100 on the prompt) and `index`."""
        index = range(len(self))[index]
        input_ids = self._rows.row(index)
        return {"input_ids": input_ids, "labels": self._targets.of(index, input_ids), "index": index}

    @cached_property
    def class_counts(self) -> dict[str, int]:
        """Examples per class, in index order; empty for generation."""
        return self.task.class_counts(self.records, self.label_mapping)

    @cached_property
    def record_counts(self) -> dict[str, int]:
        """Records per class, in index order, including those that `drop` leaves out; empty for generation."""
        return self.task.class_counts(self._given, self.label_mapping) if self.dropped else self.class_counts

    @property
    def truncated(self) -> int:
        """Number of examples cut by `max_length`."""
        return int((self.full_lengths > self.lengths).sum())

    @property
    def dropped(self) -> int:
        """Number of records left out by `truncation="drop"`."""
        return len(self._given) - len(self.records)

    @property
    def truncated_share(self) -> float:
        """Share of the records longer than `max_length`, cut or left out."""
        return (self.truncated + self.dropped) / max(1, len(self._given))

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the records' contents and labels, independent of order and tokenizer; includes those that
        `drop` leaves out.
        """
        return digest_of(self._given)

    @cached_property
    def source(self) -> str:
        """The file or files of the records."""
        return ", ".join(files_of(self._given))

    def location(self, index: int) -> str:
        """The place of an example's record: "file: record N"."""
        return self.records[index].location

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch of examples, padded with this data set's pad token; see `mltrack.data.collate`."""
        return collate(examples, self.pad_token_id, max_length=self.max_length)

    def _drop(self) -> None:
        kept = np.flatnonzero(self._rows.full_lengths <= self.max_length)
        if len(kept) == len(self.records):
            return
        if not len(kept):
            raise DatasetError(
                f"none of the {len(self.records):,} records fits into max_length={self.max_length} tokens; use a"
                " larger max_length, or truncation=head",
                path=self.source,
            )
        self._rows, self.records = self._rows.select(kept), select(self.records, kept)
