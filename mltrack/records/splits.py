"""Splits records into train and test without leaks.

Invariant: the split is a pure function of the records' contents (and groups), the share and the seed, in any order of
the file; exact duplicates, near-duplicates and the records of one group are on one side; every class keeps a record in
train.

    train, test = split_indices(records, 0.1, seed=42, stratify=True, group="commit")
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mltrack.errors import ConfigurationError, DatasetError, did_you_mean, one_of
from mltrack.records.record import Record
from mltrack.records.similar.near_duplicates import Progress, distinct_keys, duplicate_groups, joined
from mltrack.records.table import keys_of, labels_of, select


def split_records(
    records: Sequence[Record],
    test_size: float,
    seed: int,
    *,
    stratify: bool,
    group: str | None = None,
    near: bool = True,
    progress: Progress | None = None,
) -> tuple[Sequence[Record], Sequence[Record]]:
    """(train, test) records, ordered by content: selections of a table, or lists; see `split_indices`."""
    train, test = split_indices(records, test_size, seed, stratify=stratify, group=group, near=near, progress=progress)
    return select(records, train), select(records, test)


def split_indices(
    records: Sequence[Record],
    test_size: float,
    seed: int,
    *,
    stratify: bool,
    group: str | None = None,
    near: bool = True,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the records in (train, test), int64 each, ordered by content.

    Records that must stay together form a unit. A unit belongs to the most frequent label of its distinct records; of
    equally frequent ones, to the one that is rarer in all records. Each class gives its share of distinct records to
    test, rounded by largest remainders so that the total is right, in random units that still fit into the share. A
    unit with the only records of a class always stays in train.

    Args:
        test_size: share of the distinct records that goes to test, between 0 and 1; at least one unit does.
        seed: seeds the choice.
        stratify: keep the classes' shares; else all records are one class.
        group: name of a column; records with the same value are one unit, those without a value are single.
        near: near-duplicates are one unit; False: only exact duplicates.
        progress: called with (done, total) during the search for near-duplicates.

    Raises:
        ConfigurationError: `test_size` is not between 0 and 1.
        DatasetError: too few units to put one on each side, each unit has the only records of a class, or no record has
            the `group` column.
    """
    if isinstance(test_size, bool) or not isinstance(test_size, (int, float)) or not 0 < test_size < 1:
        raise ConfigurationError(f"test_size must be a number > 0 and < 1, not {test_size!r}")
    _, _, content = distinct_keys(keys_of(records))
    groupings = [content]
    if near and len(records):
        groupings.append(duplicate_groups(records, progress=progress).near)
    if group is not None:
        groupings.append(group_numbers(records, group))
    units = joined(len(records), groupings)
    labels = [str(label or "") for label in labels_of(records)] if stratify else [""] * len(records)
    classes = _units_by_class(units, content, labels)
    weights = {label: np.array([len(set(content[unit])) for unit in found]) for label, found in classes.items()}
    most = {
        label: int(weight.sum() - weight.min()) for label, weight in weights.items()
    }  # one unit of each class stays in train
    if sum(most.values()) < 1:
        raise _too_few(records, content, classes, test_size, stratify)
    quotas = _quotas({label: int(weight.sum()) for label, weight in weights.items()}, most, test_size)
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    held = {
        label: [frozenset(labels[index] for index in unit.tolist()) for unit in found]
        for label, found in classes.items()
    }
    in_train = Counter(label for found in held.values() for words in found for label in words)
    for index, (label, found) in enumerate(classes.items()):
        order = np.random.default_rng([seed, index]).permutation(len(found))
        chosen = _fitting(order, weights[label], quotas[label], held[label], in_train)
        for position, unit in enumerate(found):
            (test if position in chosen else train).append(unit)
    if not test:  # every unit exceeds its class's share: take the smallest one of the class with most to give
        free = [
            (label, n)
            for label, found in held.items()
            for n, words in enumerate(found)
            if all(in_train[word] > 1 for word in words)
        ]
        if not free:
            word = min(in_train, key=lambda label: (in_train[label], label))
            raise DatasetError(
                f"class '{word}' has its only records among near-duplicates or in a group of other classes, and no"
                " others could be held out; add records, or give validation_path",
                path=records[0].file,
            )
        label, position = min(
            free, key=lambda unit: (len(classes[unit[0]]) < 2, -most[unit[0]], weights[unit[0]][unit[1]])
        )
        smallest = classes[label][position]
        train = [unit for unit in train if unit is not smallest]
        test = [smallest]
    return _in_content_order(train, content, labels), _in_content_order(test, content, labels)


def group_numbers(records: Sequence[Record], column: str) -> np.ndarray:
    """A number per value of a column, -1 without one (no such field, null, blank, or NaN): int64 [N].

    7, 7.0 and "7" are one value: in many files a column of whole numbers with gaps is a column of floats.

    Raises:
        DatasetError: no record has the column, or a value is neither text nor a number.
    """
    numbers: dict[str, int] = {}
    columns: set[str] = set()
    found = np.full(len(records), -1, dtype=np.int64)
    for index, record in enumerate(records):
        value = record.extra.get(column)
        columns.update(record.extra)
        if (
            value is None
            or (isinstance(value, float) and math.isnan(value))
            or (isinstance(value, str) and not value.strip())
        ):
            continue
        if not isinstance(value, (str, int, float)):
            raise DatasetError(
                f"must be text or a number, not {str(value)[:40]}",
                path=record.file,
                record=record.number,
                field=column,
            )
        word = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        found[index] = numbers.setdefault(word, len(numbers))
    if not numbers and len(records):
        remedy = (
            f"use {one_of(sorted(columns))}{did_you_mean(column, columns)}"
            if columns
            else "the records have no columns besides the task's"
        )
        raise DatasetError(f"group: no record has the column '{column}'; {remedy}", path=records[0].file)
    return found


def _units_by_class(units: np.ndarray, content: np.ndarray, labels: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """The positions of each unit's records, per class, both in an order independent of the file's."""
    members: dict[int, list[int]] = {}
    for index in np.lexsort((np.arange(len(units)), content)).tolist():
        members.setdefault(int(units[index]), []).append(index)
    totals: Counter[str] = Counter(labels)
    classes: dict[str, list[np.ndarray]] = {}
    for unit in members.values():  # by the first content of each
        counts: Any = Counter(label for _, label in {(content[index], labels[index]) for index in unit})
        label = min(counts, key=lambda word: (-counts[word], totals[word], word))
        classes.setdefault(label, []).append(np.array(unit, dtype=np.int64))
    return dict(sorted(classes.items()))


def _quotas(sizes: dict[str, int], most: dict[str, int], test_size: float) -> dict[str, int]:
    """Distinct records per class for test: floors of the shares, then largest remainders until the total is right."""
    total = min(max(1, round(sum(sizes.values()) * test_size)), sum(most.values()))
    shares = {label: size * test_size for label, size in sizes.items()}
    quotas = {label: min(int(shares[label]), most[label]) for label in sizes}
    while sum(quotas.values()) < total:
        room = [label for label in sizes if quotas[label] < most[label]]
        quotas[max(room, key=lambda label: shares[label] - quotas[label])] += 1
    return quotas


def _fitting(
    order: np.ndarray, weights: np.ndarray, quota: int, held: Sequence[frozenset[str]], in_train: Counter[str]
) -> set[int]:
    """Units, in this order, that still fit into the quota and whose classes all have another unit in train.

    Args:
        held: the classes of each unit's records.
        in_train: units of train with records of a class; counted down.
    """
    chosen: set[int] = set()
    for position in order.tolist():
        if weights[position] <= quota and all(in_train[label] > 1 for label in held[position]):
            chosen.add(position)
            quota -= int(weights[position])
            in_train.subtract(held[position])
    return chosen


def _in_content_order(units: Sequence[np.ndarray], content: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    indices = np.concatenate(units) if units else np.zeros(0, dtype=np.int64)
    return np.array(sorted(indices.tolist(), key=lambda index: (content[index], labels[index])), dtype=np.int64)


def _too_few(
    records: Sequence[Record],
    content: np.ndarray,
    classes: dict[str, list[np.ndarray]],
    test_size: float,
    stratify: bool,
) -> DatasetError:
    num_distinct = len(set(content.tolist()))
    num_units = sum(map(len, classes.values()))
    several = stratify and num_distinct > 1
    counts = f"{len(records)} ({num_distinct} distinct"
    counts += f", {num_units} once near-duplicates and groups are kept together" if num_units < num_distinct else ""
    counts += f", in {len(classes)} class{'es' * (len(classes) != 1)})" if several else ")"
    needed = "2 distinct records" + (" of one class" if several else "")
    return DatasetError(
        f"too few records to hold out {test_size:g} of them: {counts}; at least {needed} are needed",
        path=records[0].file if records else None,
    )
