"""Records as token ids: what the trainer indexes.

Invariant: prompt and completion are tokenized apart, so their boundary is the same whatever the code is; a label is either
the class index or, per token, the token's own id with -100 on the prompt.

    dataset = CodeDataset(records, tokenizer, "code_generation", max_length=256)
    batch = dataset.collate([dataset[0], dataset[1]])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.utils.data

from mltrack.data.collate import IGNORED, collate
from mltrack.data.labels import count_labels, make_label_mapping
from mltrack.data.records import PROMPT_TEMPLATE, Record, as_task, content_digest, label_outside
from mltrack.errors import ConfigurationError, DatasetError

_CHUNK = 1000  # texts a tokenizer call: enough for its threads, few enough for the memory


@dataclass(frozen=True, slots=True)
class _Tokens:
    """One tokenized record."""

    ids: list[int]
    num_prompt: int
    """Leading tokens that are no target."""
    uncut: int
    """Tokens before `max_length` was applied."""


class CodeDataset(torch.utils.data.Dataset):
    """Tokenized records of one task.

    Classification: the tokenizer's own special tokens around the code, cut at `max_length`. Generation: the prompt (the
    tokenizer's start token where it adds one, then the description in `PROMPT_TEMPLATE`), the code, the end token. Where that
    is too long the prompt keeps its end: at least half of `max_length`, more where the code leaves room; the code loses its
    tail, and with it the end token.

    Args:
        records: what `read_records` or `DatasetLoader` returned.
        tokenizer: a Hugging Face tokenizer. One without a pad token pads with its end token.
        task: a `TaskType` or its name.
        max_length: tokens of the longest example.
        label_mapping: class index per label; not given: made of the records.

    Raises:
        DatasetError: a label outside the mapping, or a record of which the tokenizer makes no token.
        ConfigurationError: generation with a tokenizer that has no end token, or `max_length` below 8.
    """

    def __init__(self, records: Sequence[Record], tokenizer: Any, task: str, *, max_length: int = 512, label_mapping: Mapping[str, int] | None = None):
        self.task = as_task(task)
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 8:
            raise ConfigurationError(f"max_length: seen {max_length!r}; accepted: a whole number >= 8")
        self.records = list(records)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.label_mapping = dict(make_label_mapping(self.records, self.task) if label_mapping is None else label_mapping)
        self.pad_token_id = pad_token_id(tokenizer)
        if self.task.is_classification:
            self._classes = np.array([self._class_of(record) for record in self.records], dtype=np.int64)
        tokens = [item for start in range(0, len(self.records), _CHUNK) for item in self._tokenized(self.records[start : start + _CHUNK])]
        for item, record in zip(tokens, self.records, strict=True):
            if not item.ids:
                raise DatasetError(
                    "the tokenizer makes no token of it; accepted: text in the tokenizer's alphabet", path=record.file, record=record.number, field="code"
                )
        self.lengths = np.array([len(item.ids) for item in tokens], dtype=np.int32)
        """Tokens of each example, int32 [N]."""
        self.uncut_lengths = np.array([item.uncut for item in tokens], dtype=np.int32)
        """Tokens that each example would have without `max_length`, int32 [N]."""
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self._ids = np.fromiter((token for item in tokens for token in item.ids), dtype=np.int32, count=int(self._offsets[-1]))
        self._num_prompt = np.array([item.num_prompt for item in tokens], dtype=np.int32)
        targets = np.ones(len(tokens), dtype=np.int32) if self.task.is_classification else self.lengths - self._num_prompt
        self.target_counts = targets
        """What each example adds to the count that its loss is divided by: target tokens, or 1; int32 [N]."""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` int64 [T], `labels` (the class index, or int64 [T] with -100 on the prompt) and `index`."""
        index = range(len(self))[index]
        input_ids = self._ids[self._offsets[index] : self._offsets[index + 1]].astype(np.int64)
        if self.task.is_classification:
            return {"input_ids": input_ids, "labels": int(self._classes[index]), "index": index}
        labels = input_ids.copy()
        labels[: self._num_prompt[index]] = IGNORED
        return {"input_ids": input_ids, "labels": labels, "index": index}

    @property
    def id2label(self) -> dict[int, str]:
        """Label per class index; empty for generation."""
        return {index: label for label, index in self.label_mapping.items()}

    @property
    def num_labels(self) -> int:
        """Number of classes, absent ones included; 0 for generation."""
        return len(self.label_mapping)

    @property
    def class_counts(self) -> dict[str, int]:
        """Records per class, in index order."""
        return count_labels(self.records, self.label_mapping)

    @property
    def truncated(self) -> int:
        """How many examples `max_length` has cut."""
        return int((self.uncut_lengths > self.lengths).sum())

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the records' contents and labels, whatever their order."""
        return content_digest(self.records)

    @property
    def source(self) -> str:
        """The file or files that the records come from."""
        return ", ".join(dict.fromkeys(record.file for record in self.records))

    def place(self, index: int) -> str:
        """Where an example's record stands: "file: record N"."""
        return self.records[index].place

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch of examples, padded with this data set's padding id; see `mltrack.data.collate`."""
        return collate(examples, self.pad_token_id, max_length=self.max_length)

    def _class_of(self, record: Record) -> int:
        if record.label not in self.label_mapping:
            raise label_outside(record, self.label_mapping)
        return self.label_mapping[record.label]

    def _tokenized(self, records: Sequence[Record]) -> list[_Tokens]:
        return self._tokenized_texts(records) if self.task.is_classification else self._tokenized_pairs(records)

    def _tokenized_texts(self, records: Sequence[Record]) -> list[_Tokens]:
        texts = [record.text for record in records]
        rows = self.tokenizer(texts, truncation=True, max_length=self.max_length, verbose=False)["input_ids"]
        uncut = [len(row) for row in rows]
        # only a row as long as allowed can have been cut: count those again
        full = [position for position, length in enumerate(uncut) if length == self.max_length]
        if full:
            again = self.tokenizer([texts[position] for position in full], verbose=False)["input_ids"]
            for position, row in zip(full, again, strict=True):
                uncut[position] = len(row)
        return [_Tokens(list(row), 0, length) for row, length in zip(rows, uncut, strict=True)]

    def _tokenized_pairs(self, records: Sequence[Record]) -> list[_Tokens]:
        end = end_token_id(self.tokenizer)
        prompts = prompt_ids(self.tokenizer, [record.description or "" for record in records])
        codes = self.tokenizer([record.text for record in records], add_special_tokens=False, verbose=False)["input_ids"]
        return [self._joined(prompt, [*code, end]) for prompt, code in zip(prompts, codes, strict=True)]

    def _joined(self, prompt: list[int], completion: list[int]) -> _Tokens:
        room = max(self.max_length // 2, self.max_length - len(completion))
        kept = prompt if len(prompt) <= room else cut_prompt(self.tokenizer, prompt, room)
        ids = [*kept, *completion][: self.max_length]
        return _Tokens(ids, len(kept), len(prompt) + len(completion))


def prompt_ids(tokenizer: Any, descriptions: Sequence[str]) -> list[list[int]]:
    """Token ids of the prompts that ask for what the descriptions say, as in training: what generation starts from."""
    rows = tokenizer([PROMPT_TEMPLATE.format(description=text) for text in descriptions], add_special_tokens=False, verbose=False)["input_ids"]
    start = [tokenizer.bos_token_id] if _adds_start(tokenizer) else []
    return [[*start, *row] for row in rows]


def cut_prompt(tokenizer: Any, prompt: list[int], room: int) -> list[int]:
    """The end of a prompt that is longer than `room` tokens, behind the start token where the tokenizer adds one."""
    if _adds_start(tokenizer):
        return [prompt[0], *prompt[len(prompt) - room + 1 :]]
    return prompt[len(prompt) - room :]


def end_token_id(tokenizer: Any) -> int:
    """The id that ends a completion.

    Raises:
        ConfigurationError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(f"the tokenizer {type(tokenizer).__name__} has no end token; accepted for code_generation: one with an eos_token")
    return int(tokenizer.eos_token_id)


def pad_token_id(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's own, else its end token, else 0 (the attention mask hides it in any case)."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _adds_start(tokenizer: Any) -> bool:
    if tokenizer.bos_token_id is None:
        return False
    row = tokenizer("x", verbose=False)["input_ids"]
    return len(row) > 0 and row[0] == tokenizer.bos_token_id
