"""Overview of some records: counts, lengths, examples.

Invariant: nothing is trained or stored; a count over a part of the records says how many they were.

    found = inspect_records(loader, tokenizer)
    found.statistics["records"], found.histogram
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mltrack.data.encoding import Encoder
from mltrack.data.loader import DatasetLoader
from mltrack.records.record import Record
from mltrack.records.table import digest_of, keys_of, labels_of, percentiles, select

MOST_TOKENIZED = 20_000
"""Most records whose tokens are counted; of more, this many evenly spread ones."""

_EXAMPLES = 3
_BINS = 16


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: the count of lengths from `first` to `last`, both included."""

    first: int
    last: int
    count: int


@dataclass(frozen=True)
class Inspection:
    """What `inspect_records` found."""

    statistics: dict[str, Any]
    """records, distinct, read, skipped, classes, characters, tokens (percentiles), tokenized, truncated (share),
    digest.
    """
    histogram: list[Bin]
    """Of the tokens, before truncation."""
    examples: Sequence[Record]
    """One of each class, or evenly spread ones."""


def inspect_records(
    loader: DatasetLoader, tokenizer: Any, *, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Inspect the records of a loader.

    Args:
        loader: its task and `max_length` decide how tokens are counted.
        tokenizer: a Hugging Face tokenizer.
        progress: called with (tokenized records, total).

    Raises:
        DatasetError: invalid data.
    """
    records = loader.records
    lengths = token_lengths(evenly(records, MOST_TOKENIZED), tokenizer, loader, progress)
    statistics = {
        "source": loader.data_path,
        "task": loader.task.name,
        "digest": digest_of(records),
        "records": len(records),
        "distinct": len(np.unique(keys_of(records))),
        "read": loader.num_read,
        "skipped": loader.num_skipped,
        "classes": loader.task.class_counts(records, loader.label_mapping),
        "characters": percentiles(
            np.fromiter((len(record.text) + len(record.description or "") for record in records), np.int64)
        ),
        "tokens": percentiles(lengths),
        "tokenized": len(lengths),
        "max_length": loader.max_length,
        "truncated": float((lengths > loader.max_length).mean()),
    }
    return Inspection(statistics, histogram(lengths), _examples(records))


def evenly(records: Sequence[Record], most: int) -> Sequence[Record]:
    """All records, or `most` evenly spread ones."""
    return records if len(records) <= most else select(records, np.linspace(0, len(records) - 1, most).astype(np.int64))


def token_lengths(
    records: Sequence[Record], tokenizer: Any, loader: DatasetLoader, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Tokens of each record, prompt and special tokens included, before truncation: int32 [N]."""
    encoder = Encoder(tokenizer, loader.task, loader.max_length)
    return np.concatenate([rows.full_lengths for rows in encoder.rows(records, progress)])


def histogram(lengths: np.ndarray, bins: int = _BINS) -> list[Bin]:
    """Bars of equal width, a power of two; a last one may hold the lengths beyond the 99th percentile."""
    longest, most = int(lengths.max()), int(np.percentile(lengths, 99, method="higher"))
    width = 1 << (-(-(most + 1) // bins) - 1).bit_length()
    edges = list(range(0, most + 1, width))
    found = [Bin(edge, edge + width - 1, int(((lengths >= edge) & (lengths < edge + width)).sum())) for edge in edges]
    beyond = int((lengths > found[-1].last).sum())
    return [*found, Bin(found[-1].last + 1, longest, beyond)] if beyond else found


def _examples(records: Sequence[Record]) -> Sequence[Record]:
    labels = labels_of(records)
    firsts = {label: index for index, label in reversed(list(enumerate(labels)))}
    if len(firsts) > 1:
        return [records[index] for index in sorted(firsts.values())[:_EXAMPLES]]
    return list(evenly(records, _EXAMPLES))
