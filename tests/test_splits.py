"""A split is seeded, stratified, free of duplicates across its sides, and does not depend on the file's order."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mltrack.errors import ConfigurationError, DatasetError
from mltrack.records.record import Record
from mltrack.records.splits import split_records


def made(labels: str) -> list[Record]:
    return [Record(f"code {n}", label, None, "a.jsonl", n) for n, label in enumerate(labels, start=1)]


def contents(records: list[Record]) -> list[tuple[str, str | None]]:
    return [(r.text, r.label) for r in records]


@pytest.mark.parametrize("test_size", [0.1, 0.2, 0.5, 0.9])
def test_sides_are_whole_disjoint_and_of_the_right_size(test_size: float) -> None:
    records = made("a" * 70 + "b" * 25 + "c" * 5)
    train, test = split_records(records, test_size, 42, stratify=True)
    assert sorted(r.number for r in train + test) == list(range(1, 101))
    assert len(test) == round(100 * test_size)
    shares = Counter(r.label for r in test)
    for label, size in (("a", 70), ("b", 25), ("c", 5)):
        assert abs(shares[label] - size * test_size) < 1


@pytest.mark.parametrize("stratify", [True, False])
def test_the_order_of_the_file_changes_nothing(stratify: bool) -> None:
    records = made("aab" * 20)
    shuffled = random.Random(1).sample(records, len(records))
    first, second = (
        split_records(records, 0.2, 42, stratify=stratify),
        split_records(shuffled, 0.2, 42, stratify=stratify),
    )
    assert [contents(side) for side in first] == [contents(side) for side in second]


def test_the_seed_changes_the_choice() -> None:
    records = made("ab" * 50)
    tests = {tuple(contents(split_records(records, 0.2, seed, stratify=True)[1])) for seed in range(5)}
    assert len(tests) == 5


def test_duplicates_stand_on_one_side() -> None:
    records = (
        made("a" * 40)
        + [Record("twin", "a", None, "a.jsonl", 100 + n) for n in range(6)]
        + [Record("twin", "b", None, "a.jsonl", 200)]
    )
    for seed in range(20):
        train, test = split_records(records, 0.3, seed, stratify=False)
        assert len(train) + len(test) == len(records)
        assert not {r.text for r in train} & {r.text for r in test}


def test_the_same_code_with_another_description_is_no_duplicate() -> None:
    records = [Record("pass", None, f"does {n}", "a.jsonl", n) for n in range(10)]
    train, test = split_records(records, 0.2, 0, stratify=False)
    assert (len(train), len(test)) == (8, 2)


def test_every_class_keeps_a_record_in_train() -> None:
    for seed in range(10):
        train, test = split_records(made("a" * 20 + "b" * 2 + "c"), 0.9, seed, stratify=True)
        assert Counter(r.label for r in train) >= Counter("abc")
        assert "c" not in {r.label for r in test}


@pytest.mark.parametrize("test_size", [0.1, 0.3, 0.6])
def test_a_class_among_near_duplicates_of_others_keeps_a_record_in_train(test_size: float) -> None:
    """Of `rare` and `odd` each record is grouped with more records of another class, which the group counts for."""
    groups = [
        ("safe", "safe", "rare"),
        ("unsafe", "unsafe", "rare"),
        ("safe", "safe", "safe", "odd"),
        *[("safe",)] * 20,
        *[("unsafe",)] * 9,
    ]
    records = [
        Record(f"code {group} {n}", label, None, "a.jsonl", 100 * group + n, {"commit": group})
        for group, unit in enumerate(groups)
        for n, label in enumerate(unit)
    ]
    for seed in range(60):
        train, test = split_records(records, test_size, seed, stratify=True, group="commit", near=False)
        assert {record.label for record in train} == {"safe", "unsafe", "rare", "odd"}, seed
        assert test, seed
        assert not {record.extra["commit"] for record in train} & {record.extra["commit"] for record in test}


def test_a_class_that_nothing_can_be_held_out_beside_is_named() -> None:
    units = [("a", "a", "c"), ("b", "b", "c")]
    records = [
        Record(f"code {unit} {n}", label, None, "a.jsonl", n, {"commit": unit})
        for unit, words in enumerate(units)
        for n, label in enumerate(words)
    ]
    with pytest.raises(DatasetError, match=r"a\.jsonl: .*too few"):
        split_records(records, 0.3, 0, stratify=True, group="commit")
    units = [("a", "a", "c"), ("a", "a", "d")]
    records = [
        Record(f"code {unit} {n}", label, None, "a.jsonl", n, {"commit": unit})
        for unit, words in enumerate(units)
        for n, label in enumerate(words)
    ]
    with pytest.raises(
        DatasetError, match=r"a\.jsonl: class 'c' has its only records among near-duplicates .* or give validation_path"
    ):
        split_records(records, 0.3, 0, stratify=True, group="commit")


def test_test_gets_at_least_one_record() -> None:
    assert len(split_records(made("aab"), 0.01, 0, stratify=True)[1]) == 1


@pytest.mark.parametrize(
    ("records", "stratify", "message"),
    [
        (made("a"), False, r"^a\.jsonl: too few .* 0\.2 .* 1 \(1 distinct\); .* 2 distinct records are"),
        (made("a") * 5, False, r"^a\.jsonl: too few .* 0\.2 .* 5 \(1 distinct\); .* 2 distinct records are"),
        (
            made("abc"),
            True,
            r"^a\.jsonl: too few .* 3 \(3 distinct, in 3 classes\); .* 2 distinct records of one class",
        ),
        ([], False, r"^too few .* 0\.2 .* 0 \(0 distinct\); .* 2 distinct records are"),
    ],
)
def test_too_few_records(records: list[Record], stratify: bool, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        split_records(records, 0.2, 0, stratify=stratify)


@pytest.mark.parametrize("test_size", [0, 1, 1.5, -0.1, True, "0.2"])
def test_share_outside_of_what_is_accepted(test_size: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        split_records(made("aabb"), test_size, 0, stratify=True)  # type: ignore[arg-type]
    assert str(caught.value) == f"test_size must be a number > 0 and < 1, not {test_size!r}"
