"""One list of records into two: train and test.

Invariant: the split is a pure function of the records' contents, the share and the seed, whatever the order of the file;
records with the same text and description are on one side; every class keeps a record in train.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from mltrack.data.records import Record
from mltrack.errors import ConfigurationError, DatasetError


def split_records(records: Sequence[Record], test_size: float, seed: int, *, stratify: bool) -> tuple[list[Record], list[Record]]:
    """Split records into (train, test), both ordered by content.

    Each class gives its share to test, rounded so that the whole comes out (largest remainders); a class with one distinct
    record stays in train. Shares are counted in distinct records, so duplicates never stand on both sides.

    Args:
        test_size: share of the distinct records that goes to test, between 0 and 1; at least one record does.
        seed: seeds the choice.
        stratify: keep the classes' shares; else all records are one class.

    Raises:
        ConfigurationError: `test_size` is not between 0 and 1.
        DatasetError: too few distinct records to put one on each side.
    """
    if isinstance(test_size, bool) or not isinstance(test_size, (int, float)) or not 0 < test_size < 1:
        raise ConfigurationError(f"test_size: seen {test_size!r}; accepted: a number > 0 and < 1")
    classes = _distinct_by_class(records, stratify)
    num_distinct = sum(map(len, classes.values()))
    free = {label: (len(groups) - 1) for label, groups in classes.items()}  # one group of each class stays in train
    if sum(free.values()) < 1:
        needed = "2 distinct records" + (" of one class" if stratify and num_distinct > 1 else "")
        seen = f"seen {len(records)} record{'s' * (len(records) != 1)} ({num_distinct} distinct"
        seen += f" in {len(classes)} classes)" if stratify and num_distinct > 1 else ")"
        raise DatasetError(f"{seen}, too few to hold out {test_size:g} of them; accepted: at least {needed}", path=records[0].file if records else None)
    quotas = _quotas({label: len(groups) for label, groups in classes.items()}, free, test_size)
    train: list[list[Record]] = []
    test: list[list[Record]] = []
    for index, (label, groups) in enumerate(classes.items()):
        chosen = set(np.random.default_rng([seed, index]).permutation(len(groups))[: quotas[label]].tolist())
        for position, group in enumerate(groups):
            (test if position in chosen else train).append(group)
    return _in_content_order(train), _in_content_order(test)


def _distinct_by_class(records: Sequence[Record], stratify: bool) -> dict[str, list[list[Record]]]:
    """Groups of duplicates per class, both in an order that the file's order does not change."""
    keyed = sorted(((record.content_key, record.label or "", record) for record in records), key=lambda item: item[:2])
    classes: dict[str, list[list[Record]]] = {}
    for _, items in groupby(keyed, key=lambda item: item[0]):
        group = [record for _, _, record in items]
        # duplicates that disagree count for the first label in sorted order
        classes.setdefault((group[0].label or "") if stratify else "", []).append(group)
    return dict(sorted(classes.items()))


def _quotas(sizes: dict[str, int], free: dict[str, int], test_size: float) -> dict[str, int]:
    """How many groups of each class go to test: floors of the shares, then largest remainders until the whole is right."""
    total = min(max(1, round(sum(sizes.values()) * test_size)), sum(free.values()))
    shares = {label: size * test_size for label, size in sizes.items()}
    quotas = {label: min(int(shares[label]), free[label]) for label in sizes}
    while sum(quotas.values()) < total:
        room = [label for label in sizes if quotas[label] < free[label]]
        quotas[max(room, key=lambda label: shares[label] - quotas[label])] += 1
    return quotas


def _in_content_order(groups: list[list[Record]]) -> list[Record]:
    return [record for group in sorted(groups, key=lambda group: group[0].content_key) for record in group]
