"""Problems of data, found before training: leaks, copies, contradictions, imbalance, lengths, broken code.

Invariant: a report depends on the contents and groups alone and is plain JSON; each problem is a `Finding` with the
threshold that it exceeds, so the reader need not know the limits.

    report = check_data(train, valid)
    report.findings                  # [Finding(name="near_overlap", value=0.12, limit=0.0, line="...")]
    report.shares()                  # {"near_overlap": 0.12, ...}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mltrack.errors import ConfigurationError, DatasetError, did_you_mean, one_of
from mltrack.records.record import Record
from mltrack.records.similar.near_duplicates import DuplicateGroups, Progress, distinct_keys, duplicate_groups
from mltrack.records.similar.syntax import parsed
from mltrack.records.splits import group_numbers
from mltrack.records.table import keys_of, labels_of, percentiles

THRESHOLDS: Mapping[str, float] = {
    "exact_overlap": 0.0,
    "near_overlap": 0.0,
    "group_overlap": 0.0,
    "exact_duplicates": 0.1,
    "near_duplicates": 0.3,
    "label_conflicts": 0.01,
    "imbalance": 50.0,
    "unparsable": 0.1,
}
"""Largest values without a finding. Shares from 0 to 1: overlaps, of the validation records; duplicates, conflicts and
code that does not parse, of all records (the larger of both sets). `imbalance`: records of the largest class per record
of the smallest."""

_SHOWN = 5  # places named per finding


@dataclass(frozen=True, slots=True)
class Finding:
    """One value above its threshold."""

    name: str
    value: float
    limit: float
    line: str
    """For people: what, how much, where."""


@dataclass(slots=True)
class SetReport:
    """One set of records."""

    records: int
    distinct: int
    """Different contents."""
    exact_duplicates: int
    """Records with the content of an earlier one."""
    near_duplicates: int
    """Further records that are near-duplicates of an earlier one."""
    largest_group: int
    """Records of the largest group of near-duplicates."""
    label_conflicts: int
    """Records whose code (ignoring layout, comments and names it defines) has another label elsewhere in the set."""
    classes: dict[str, int]
    """Records per class, the largest first; empty without labels."""
    imbalance: float | None
    """Records of the largest class per record of the smallest."""
    characters: dict[str, int]
    """Lengths of the code: min, percentiles, max."""
    python: int
    """Python records among the 5,000 (evenly spread) that are examined."""
    unparsable: int
    """Those of them that this interpreter cannot parse; `stdlib` comes from it, so its records are not parsed."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Places by problem: conflicts, unparsable."""


@dataclass(slots=True)
class DataReport:
    """What `check_data` found."""

    train: SetReport
    valid: SetReport | None
    exact_overlap: int = 0
    """Validation records whose content is also in training."""
    near_overlap: int = 0
    """Further validation records that are near-duplicates of one in training."""
    group_overlap: int = 0
    """Validation records of a group that has records in training."""
    conflicting_overlap: int = 0
    """Validation records whose code (ignoring layout, comments and names it defines) has another label in training."""
    overlap_examples: dict[str, list[str]] = field(default_factory=dict)
    """"validation place ~ training place" by the kind of overlap."""
    findings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def shares(self) -> dict[str, float]:
        """The values that `THRESHOLDS` are for."""
        sets = [one for one in (self.train, self.valid) if one is not None]
        valid = self.valid.records if self.valid is not None else 1
        inside = {
            name: max(getattr(one, name) / one.records for one in sets)
            for name in ("exact_duplicates", "near_duplicates", "label_conflicts")
        }
        return {
            "exact_overlap": self.exact_overlap / valid,
            "near_overlap": self.near_overlap / valid,
            "group_overlap": self.group_overlap / valid,
            **inside,
            "label_conflicts": max(inside["label_conflicts"], self.conflicting_overlap / valid),
            "imbalance": self.train.imbalance or 1.0,
            "unparsable": max(one.unparsable / max(1, one.python) for one in sets),
        }


def check_data(
    train: Sequence[Record],
    valid: Sequence[Record] | None = None,
    *,
    group: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    classes: bool = True,
    progress: Progress | None = None,
) -> DataReport:
    """Check training records and, if given, validation records.

    Args:
        group: name of a column whose equal values should be on one side.
        thresholds: override those of `THRESHOLDS`, by name.
        classes: labels are classes, which are counted.
        progress: called with (done, total) during the search for near-duplicates; after a split of the same records
            they are cached.

    Raises:
        ConfigurationError: a threshold has an unknown name.
        DatasetError: there is no record in training, or no record has the `group` column.
    """
    limits = {**THRESHOLDS, **(thresholds or {})}
    unknown = next((name for name in limits if name not in THRESHOLDS), None)
    if unknown is not None:
        raise ConfigurationError(
            f"unknown threshold {unknown!r}; use {one_of(THRESHOLDS)}{did_you_mean(unknown, THRESHOLDS)}"
        )
    if not len(train):
        raise DatasetError("there are no training records; at least one is needed")
    both = _Pooled(train, valid if valid is not None else ())
    keys = np.concatenate([keys_of(side) for side in (train, valid) if side is not None and len(side)])
    content = distinct_keys(keys)[2]
    groups = duplicate_groups(both, keys=keys, progress=progress)
    cut = len(train)
    numbers = group_numbers(both, group) if group is not None else None
    report = DataReport(_set_report(train, keys[:cut], content[:cut], _part(groups, slice(None, cut)), classes), None)
    if valid is not None and len(valid):
        report.valid = _set_report(valid, keys[cut:], content[cut:], _part(groups, slice(cut, None)), classes)
        exact = np.isin(content[cut:], content[:cut])
        near = np.isin(groups.near[cut:], groups.near[:cut]) & ~exact
        report.exact_overlap, report.near_overlap = int(exact.sum()), int(near.sum())
        conflicting = _conflicts_across(groups.same, np.concatenate([labels_of(train), labels_of(valid)]), cut)
        report.conflicting_overlap = int(conflicting.sum())
        report.overlap_examples = {
            "exact_overlap": _overlap_examples(both, cut, content, exact),
            "near_overlap": _overlap_examples(both, cut, groups.near, near),
            "label_conflicts": _overlap_examples(both, cut, groups.same, conflicting),
        }
        if numbers is not None:
            report.group_overlap = int((np.isin(numbers[cut:], numbers[:cut]) & (numbers[cut:] >= 0)).sum())
    report.findings = [
        _finding(name, value, limits[name], report) for name, value in report.shares().items() if value > limits[name]
    ]
    return report


class _Pooled(Sequence[Record]):
    """Two sequences one after the other, without a copy."""

    def __init__(self, first: Sequence[Record], second: Sequence[Record]):
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: Any) -> Any:
        cut = len(self._first)
        return self._first[index] if index < cut else self._second[index - cut]


def _part(groups: DuplicateGroups, where: slice) -> DuplicateGroups:
    return DuplicateGroups(groups.near[where], groups.same[where])


def _set_report(
    records: Sequence[Record], keys: np.ndarray, content: np.ndarray, groups: DuplicateGroups, has_classes: bool
) -> SetReport:
    labels = labels_of(records)
    sizes = np.unique(groups.near, return_counts=True)[1]
    distinct = len(np.unique(content))
    counts = Counter(str(label) for label in labels if label is not None)
    conflicts = _conflicts(groups.same, labels) if counts else []
    classes = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))) if has_classes else {}
    python, unparsable = parsed(records, keys)
    return SetReport(
        records=len(records),
        distinct=distinct,
        exact_duplicates=len(records) - distinct,
        near_duplicates=distinct - len(sizes),
        largest_group=int(sizes.max()),
        label_conflicts=len(conflicts),
        classes=classes,
        imbalance=max(classes.values()) / min(classes.values()) if classes else None,
        characters=percentiles([len(record.text) for record in records]),
        python=python,
        unparsable=len(unparsable),
        examples={
            "label_conflicts": [f"{records[index].location} is {labels[index]}" for index in conflicts[:_SHOWN]],
            "unparsable": [f"{records[index].location}: {why}" for index, why in unparsable[:_SHOWN]],
        },
    )


def _conflicts(same: np.ndarray, labels: np.ndarray) -> list[int]:
    """Records whose code has several labels, grouped by code."""
    words: dict[int, set[Any]] = {}
    for number, label in zip(same.tolist(), labels, strict=True):
        words.setdefault(number, set()).add(label)
    return sorted(
        (index for index, number in enumerate(same.tolist()) if len(words[number]) > 1),
        key=lambda index: (same[index], index),
    )


def _conflicts_across(same: np.ndarray, labels: np.ndarray, cut: int) -> np.ndarray:
    """Whether each record from `cut` on has the code, but not the label, of one before `cut`: bool [N - cut]."""
    words: dict[int, set[Any]] = {}
    for number, label in zip(same[:cut].tolist(), labels[:cut], strict=True):
        words.setdefault(number, set()).add(label)
    later = zip(same[cut:].tolist(), labels[cut:], strict=True)
    return np.array(
        [label is not None and bool(words.get(number, {label}) - {label}) for number, label in later], dtype=bool
    )


def _overlap_examples(both: Sequence[Record], cut: int, numbers: np.ndarray, overlapping: np.ndarray) -> list[str]:
    found = [int(index) for index in np.flatnonzero(overlapping)[:_SHOWN]]
    firsts = [int(np.flatnonzero(numbers[:cut] == numbers[cut + index])[0]) for index in found]
    return [
        f"{both[cut + index].location} ~ {both[first].location}" for index, first in zip(found, firsts, strict=True)
    ]


def _finding(name: str, value: float, limit: float, report: DataReport) -> Finding:
    sets = [one for one in (report.train, report.valid) if one is not None]
    said = {
        "exact_overlap": "validation records that are also in training",
        "near_overlap": "validation records with a near-duplicate in training",
        "group_overlap": "validation records of a group that is also in training",
        "exact_duplicates": "exact duplicates within a set",
        "near_duplicates": "near-duplicates within a set",
        "label_conflicts": "records whose code has another label elsewhere",
        "unparsable": "Python records that do not parse",
    }
    if name == "imbalance":
        largest, smallest = next(iter(report.train.classes)), next(reversed(report.train.classes))
        line = (
            f"imbalance: '{largest}' has {value:.1f} times the records of '{smallest}' (threshold: {limit:g});"
            " class_weights=balanced evens it out"
        )
        return Finding(name, value, limit, line)
    places = report.overlap_examples.get(name, []) or [place for one in sets for place in one.examples.get(name, [])]
    shown = f": {'; '.join(places[:2])}" if places else ""
    return Finding(name, value, limit, f"{name}: {value:.1%} {said[name]} (threshold: {limit:.1%}){shown}")
