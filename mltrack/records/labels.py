"""The class index of each label.

Invariant: the mapping is a pure function of the set of labels: sorted, numbers as numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from mltrack.errors import DatasetError
from mltrack.records.record import Record, label_value
from mltrack.records.table import labels_of

MAX_CLASSES = 1000
"""More labels than this are an error, unless `num_labels` allows them."""


def make_label_mapping(records: Sequence[Record]) -> dict[str, int]:
    """Class index per label, in index order."""
    labels = {str(label) for label in labels_of(records)}
    return {label: index for index, label in enumerate(sorted(labels, key=_sort_key(labels)))}


def in_index_order(label_mapping: Mapping[str, int]) -> dict[str, int]:
    """The same mapping in index order; config.json sorts it by the labels' text, "10" before "2"."""
    return dict(sorted(label_mapping.items(), key=lambda item: item[1]))


def count_labels(records: Sequence[Record], label_mapping: Mapping[str, int]) -> dict[str, int]:
    """Records per class, in index order; a class without records counts 0."""
    seen = Counter(labels_of(records))
    return {label: seen.get(label, 0) for label in label_mapping}


def one_spelling(records: Iterable[Record], known: Iterable[str] = ()) -> Iterator[Record]:
    """The same records; a label with the value of a known class or of an earlier label (true and True) takes its
    spelling.
    """
    spelled: dict[str, str] = {}
    by_value: dict[str, str] = {}
    for label in known:
        spelled[label] = by_value[label_value(label)] = label
    for record in records:
        label = str(record.label)
        if label not in spelled:
            spelled[label] = by_value.setdefault(label_value(label), label)
        yield record if spelled[label] == label else replace(record, label=spelled[label])


def few_labels(records: Iterable[Record], most: int, source: str, column: str = "label") -> Iterator[Record]:
    """The same records, if they have at most `most` labels; so a wrong column is found before it fills the memory.

    Raises:
        DatasetError: at the first record with one label too many.
    """
    seen: set[str | None] = set()
    for record in records:
        if record.label not in seen:
            seen.add(record.label)
            if len(seen) > most:
                raise DatasetError(
                    f"has more than {most:,} classes by record {record.number:,}, such as {str(record.label)[:40]!r};"
                    " name another column with columns=label=COLUMN, or set num_labels if there are so many",
                    path=source,
                    field=column,
                )
        yield record


def check_classes(
    records: Sequence[Record], label_mapping: Mapping[str, int], num_labels: int | None, source: str
) -> None:
    """Refuse a training set with a single class, or with another number of classes than `num_labels`.

    Raises:
        DatasetError: with both numbers.
    """
    counts = {label: count for label, count in count_labels(records, label_mapping).items() if count}
    if len(counts) < 2:
        only = ", ".join(f"'{label}'" for label in counts)
        raise DatasetError(
            f"has one class only, {only} in all {len(records)} records; two or more are needed",
            path=source,
            field="label",
        )
    if num_labels is not None and num_labels != len(label_mapping):
        names = ", ".join(list(label_mapping)[:10]) + (", ..." if len(label_mapping) > 10 else "")
        raise DatasetError(
            f"num_labels is {num_labels}, but there are {len(label_mapping)} classes: {names}; leave num_labels out or"
            f" set it to {len(label_mapping)}",
            path=source,
            field="label",
        )


def _sort_key(labels: set[str]) -> Callable[[str], tuple[int, str]]:
    # "07" and "7" are two labels, so the text breaks the tie
    numeric = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels)
    return (lambda label: (int(label), label)) if numeric else (lambda label: (0, label))
