"""Token classification as a task of mltrack: one tag a word.

A record is {"words": ["def", "f"], "tags": ["keyword", "name"]}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from mltrack.config import option
from mltrack.data.encoding import plain_ids, special_tokens_around
from mltrack.records.record import RawRecord, Record
from mltrack.store.light_model import Serving
from mltrack.tasks.contract import Card, Head, Rows, Task


@dataclass(kw_only=True)
class Options:
    """What this task alone can be told."""

    lowercase: bool = option(False, fixes_result=True, help="Read words without regard to case.")


@dataclass(frozen=True, eq=False)
class TokenClassification(Task):
    """One tag a word."""

    fields: ClassVar = ("words", "tags")
    has_classes: ClassVar = True
    truncations: ClassVar = ("head", "drop")
    head: ClassVar = Head("AutoModelForTokenClassification", "RobertaForTokenClassification")
    card: ClassVar = Card("It tags words as it has seen them tagged.")
    serving: ClassVar = Serving(
        file=Path(__file__).parent / "tag_server.py",
        inputs=({"type": "string", "required": True},),
        outputs=({"type": "array", "items": {"type": "string"}, "name": "tags", "required": True},),
        params=None,
        example="def f ( )",
        pipeline="TokenClassificationPipeline",
        pipeline_task="token-classification",
    )
    options: ClassVar = Options

    def parse(self, raw: RawRecord) -> Record:
        words, tags = raw.value("words"), raw.value("tags")
        for field, values in (("words", words), ("tags", tags)):
            if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
                raise raw.refused(field, "is no list of text; use a list with a text for each word")
        if len(words) != len(tags):
            raise raw.refused("tags", f"has {len(tags)} tags for {len(words)} words; use one a word")
        text = " ".join(words)
        return raw.record(text.lower() if self.given.get("lowercase") else text, label=" ".join(tags))

    def columns(self, record: Record) -> dict[str, Any]:
        return {"words": record.text.split(" "), "tags": str(record.label).split(" ")}

    def label_mapping(self, records: Sequence[Record]) -> dict[str, int]:
        tags = sorted({tag for record in records for tag in str(record.label).split(" ")})
        return {tag: index for index, tag in enumerate(tags)}

    def class_counts(self, records: Sequence[Record], label_mapping: Mapping[str, int]) -> dict[str, int]:
        seen = [tag for record in records for tag in str(record.label).split(" ")]
        return {tag: seen.count(tag) for tag in label_mapping}

    def known(self, records: Sequence[Record], label_mapping: Mapping[str, int]) -> np.ndarray:
        return np.array([set(str(record.label).split(" ")) <= label_mapping.keys() for record in records], dtype=bool)

    def encoding(self, tokenizer: Any, max_length: int, truncation: str) -> TagEncoding:
        return TagEncoding(tokenizer, max_length)

    def targets(self, records: Sequence[Record], rows: Rows, label_mapping: Mapping[str, int]) -> TagOfToken:
        return TagOfToken(records, rows, label_mapping)

    def defaults(self, model_name: str) -> dict[str, Any]:
        return {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "max_length": 64}

    def sums(self, model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        logits, labels = _logits(model, batch), batch["labels"]
        return _cross_entropy(logits, labels), (labels != -100).sum()

    def evaluator(self, label_names: Sequence[str] | None = None, *, keeps_predictions: bool = False) -> TagEvaluator:
        return TagEvaluator()


class TagEncoding:
    """Each word's tokens, with a mark on its first one."""

    marks_words = True

    def __init__(self, tokenizer: Any, max_length: int):
        self._tokenizer, self._max_length = tokenizer, max_length
        self._before, self._behind = special_tokens_around(tokenizer)

    def facts(self) -> dict[str, Any]:
        return {"task": "tags"}

    def tokens(self, records: Sequence[Record]) -> tuple[list[Any], ...]:
        texts = [record.text.split(" ") for record in records]
        ids = iter(plain_ids(self._tokenizer, [f" {word}" for words in texts for word in words]))
        return ([[next(ids) for _ in words] for words in texts],)

    def row(self, words: list[list[int]]) -> tuple[list[int], int, int, list[int]]:
        ids, marks = list(self._before), [0] * len(self._before)
        for number, word in enumerate(words, start=1):
            ids += word
            marks += [number, *[0] * (len(word) - 1)]
        full_length, room = len(ids) + len(self._behind), self._max_length - len(self._behind)
        return [*ids[:room], *self._behind], 0, full_length, [*marks[:room], *[0] * len(self._behind)]


class TagOfToken:
    """The class of each word's first token, -100 elsewhere."""

    def __init__(self, records: Sequence[Record], rows: Rows, label_mapping: Mapping[str, int]):
        self._records, self._rows, self._classes = records, rows, label_mapping
        self.counts = np.array([(rows.marks_of(i) > 0).sum() for i in range(len(records))], dtype=np.int32)

    def of(self, index: int, input_ids: np.ndarray) -> np.ndarray:
        marks = self._rows.marks_of(index)
        classes = np.array([-100, *(self._classes[tag] for tag in str(self._records[index].label).split(" "))])
        return classes[marks]


class TagEvaluator:
    """Loss a tag, and the share of tags that are right."""

    def __init__(self) -> None:
        self._loss, self._right, self._count = 0.0, 0, 0

    def update(self, model: Any, batch: Mapping[str, Any]) -> None:
        logits, labels = _logits(model, batch), batch["labels"]
        targets = labels != -100
        self._loss += float(_cross_entropy(logits.double(), labels))
        self._right += int((logits.argmax(dim=-1)[targets] == labels[targets]).sum())
        self._count += int(targets.sum())

    def merge(self, other: Self) -> None:
        self._loss, self._right = self._loss + other._loss, self._right + other._right
        self._count += other._count

    def compute(self) -> dict[str, float]:
        if not self._count:
            return {"loss": math.nan, "accuracy": math.nan}
        return {"loss": self._loss / self._count, "accuracy": self._right / self._count}


def _logits(model: Any, batch: Mapping[str, Any]) -> Any:
    return model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")).logits.float()


def _cross_entropy(logits: Any, labels: Any) -> Any:
    from torch.nn import functional as F

    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


TASK = TokenClassification("token_classification")
