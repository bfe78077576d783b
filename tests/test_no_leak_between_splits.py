"""What is nearly the same, and what belongs together, is never on both sides of a split."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_copies import COPIES, function, java_method, renamed
from sklearn.model_selection import train_test_split

from mltrack import DatasetLoader
from mltrack.errors import DatasetError
from mltrack.records.record import Record
from mltrack.records.similar import near_duplicates
from mltrack.records.similar.near_duplicates import duplicate_groups
from mltrack.records.splits import group_numbers, split_indices, split_records
from mltrack.records.table import RecordTable, write_table

ORIGINALS = 60


def made(copy: Callable[[str], str], original: Callable[[int], str] = function) -> list[Record]:
    """Sixty functions, and a copy of each, in a random order; `origin` says whose copy it is."""
    texts = [(kind(original(number)), number) for number in range(ORIGINALS) for kind in (str, copy)]
    random.Random(5).shuffle(texts)
    return [
        Record(text, "ab"[origin % 2], None, "a.jsonl", number, {"origin": origin})
        for number, (text, origin) in enumerate(texts, start=1)
    ]


def parted(train: Sequence[Record], test: Sequence[Record]) -> int:
    """Functions that are on both sides."""
    return len({record.extra["origin"] for record in train} & {record.extra["origin"] for record in test})


@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.__name__)
def test_a_copy_is_on_the_side_of_its_original(copy: Callable[[str], str]) -> None:
    records = made(copy)
    for seed in range(5):
        train, test = split_records(records, 0.2, seed, stratify=True)
        assert (len(train), len(test)) == (96, 24)
        assert parted(train, test) == 0
        at_random = train_test_split(records, test_size=0.2, random_state=seed)
        assert parted(*at_random) > 10  # what the same records do without it
    assert parted(*split_records(records, 0.2, 0, stratify=True, near=False)) > 10


def test_a_renamed_method_in_java_is_on_the_side_of_its_original() -> None:
    def copy(code: str) -> str:
        return re.sub(r"\b(work|value|item)(\d+)\b", r"other\1\2", renamed(code))

    records = made(copy, java_method)
    for seed in range(5):
        train, test = split_records(records, 0.2, seed, stratify=True)
        assert parted(train, test) == 0
    assert parted(*split_records(records, 0.2, 0, stratify=True, near=False)) > 10


@pytest.mark.parametrize("original", [function, java_method])
def test_other_functions_are_not_taken_for_copies(original: Callable[[int], str]) -> None:
    records = [Record(original(number), "a", None, "a.jsonl", number + 1) for number in range(200)]
    assert len(set(duplicate_groups(records).near.tolist())) == 200


def test_copies_of_copies_stand_together() -> None:
    chain = [function(1)]
    for number in range(12):  # each has one line more than the one before
        chain.append(chain[-1].replace("    return result", f"    result.step{number}(first)\n    return result"))
    groups = duplicate_groups([Record(text, None, None, "a", n) for n, text in enumerate(chain)])
    assert len(set(groups.near.tolist())) == 1
    assert (
        len(
            set(
                duplicate_groups(
                    [Record(text, None, None, "a", n) for n, text in enumerate((chain[0], chain[-1]))]
                ).near.tolist()
            )
        )
        == 2
    )


def test_short_code_is_compared_with_its_literals() -> None:
    texts = [
        "def f(a):\n    return a + 1",
        "def f(b):  # adds\n  return b + 1",
        "def f(a):\n    return a + 2",
        "def g(a):\n    return a + 1",
        "x = 1",
    ]
    near = duplicate_groups([Record(text, None, None, "a", n) for n, text in enumerate(texts)]).near
    assert near[0] == near[1]
    assert len({near[0], near[2], near[4]}) == 3


def test_the_same_completion_of_two_descriptions_is_a_leak() -> None:
    records = [Record(function(number // 2), None, f"description {number}", "a", number) for number in range(40)]
    for seed in range(5):
        train, test = split_records(records, 0.25, seed, stratify=False)
        assert not {r.text for r in train} & {r.text for r in test}


def test_a_group_is_on_one_side(tmp_path: Path) -> None:
    """A function before and after its fix: too different for near-duplicates, and of two labels."""
    pairs = [
        Record(
            function(2 * pair + which),
            ("vulnerable", "fixed")[which],
            None,
            "a.jsonl",
            2 * pair + which + 1,
            {"commit": f"c{pair}"},
        )
        for pair in range(50)
        for which in range(2)
    ]
    for seed in range(5):
        train, test = split_records(pairs, 0.2, seed, stratify=True, group="commit")
        assert (len(train), len(test)) == (80, 20)
        assert not {r.extra["commit"] for r in train} & {r.extra["commit"] for r in test}
    train, test = split_records(pairs, 0.2, 0, stratify=True)
    assert {r.extra["commit"] for r in train} & {r.extra["commit"] for r in test}


def test_the_loader_takes_the_group(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("code,label,pair\n" + "".join(f"step_{n}_{'x' * n},{'ab'[n % 2]},{n // 4}\n" for n in range(40)))
    train, test = DatasetLoader(path, group="pair").split_records(0.2)
    assert len(test) == 8
    assert not {r.extra["pair"] for r in train} & {r.extra["pair"] for r in test}


def test_a_record_without_a_group_stands_alone() -> None:
    records = [
        Record(f"code {n}", "a", None, "a", n, extra)
        for n, extra in enumerate(({"g": 1}, {"g": "1"}, {"g": None}, {"g": " "}, {}, {"g": 2}))
    ]
    assert group_numbers(records, "g").tolist() == [0, 0, -1, -1, -1, 1]


def test_a_column_of_whole_numbers_is_the_same_when_some_are_missing() -> None:
    """A table writes 7.0 and not-a-number then; another file of the same records says 7."""
    records = [
        Record(f"code {n}", "a", None, "a", n, {"g": value})
        for n, value in enumerate((7, 7.0, "7", float("nan"), float("nan"), 7.5, 8.0))
    ]
    assert group_numbers(records, "g").tolist() == [0, 0, 0, -1, -1, 1, 2]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"commit": 1, "file": 2}, r"^a\.jsonl: group: .*'comit'.*commit, file .did you mean 'commit'"),
        ({}, r"^a\.jsonl: group: .*'comit'.* no columns"),
        ({"comit": [1]}, r"^a\.jsonl, record 7, field 'comit': .*a number.*\[1\]"),
    ],
)
def test_a_group_that_is_none(extra: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        split_indices([Record("code", "a", None, "a.jsonl", 7, extra)], 0.5, 0, stratify=True, group="comit")


def test_one_group_alone_cannot_be_split() -> None:
    records = [Record(f"code {n}", "ab"[n % 2], None, "a.jsonl", n, {"g": 1}) for n in range(10)]
    counts = r"^a\.jsonl: too few .* 0\.2 .* 10 \(10 distinct, 1 .*, in 1 class\); .* 2 distinct records of one class"
    with pytest.raises(DatasetError, match=counts):
        split_indices(records, 0.2, 0, stratify=True, group="g")


def test_a_unit_larger_than_its_share_does_not_make_an_empty_side() -> None:
    records = [Record(f"code {n}", "a", None, "a", n, {"g": n // 10}) for n in range(30)]
    train, test = split_records(records, 0.1, 0, stratify=True, group="g")
    assert (len(train), len(test)) == (20, 10)


def test_a_level_unit_counts_for_the_rarer_label() -> None:
    """Each rare record has a common one as its partner; the rare class still gets its share."""
    records = [
        Record(f"code {n}", ("rare" if n % 10 == 0 else "common"), None, "a", n, {"g": n // 2}) for n in range(200)
    ]
    for seed in range(5):
        test = split_records(records, 0.2, seed, stratify=True, group="g")[1]
        assert sum(record.label == "rare" for record in test) == 4


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_order_of_the_file_changes_nothing(data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, 8), min_size=6, max_size=24))
    kinds = [data.draw(st.sampled_from([str, *COPIES])) for _ in numbers]
    records = [
        Record(
            kind(function(number)),
            data.draw(st.sampled_from("abc")),
            None,
            "a",
            n,
            {"g": data.draw(st.sampled_from([None, 1, 2, 3]))},
        )
        for n, (kind, number) in enumerate(zip(kinds, numbers, strict=True))
    ]
    shuffled = data.draw(st.permutations(records))
    seed = data.draw(st.integers(0, 3))
    try:
        first = split_records(records, 0.3, seed, stratify=True, group="g")
    except DatasetError:
        with pytest.raises(DatasetError):
            split_records(shuffled, 0.3, seed, stratify=True, group="g")
        return
    second = split_records(shuffled, 0.3, seed, stratify=True, group="g")
    assert [[(r.text, r.label) for r in side] for side in first] == [
        [(r.text, r.label) for r in side] for side in second
    ]
    groups = duplicate_groups(records).near
    sides = [{int(groups[r.number]) for r in side} for side in first]
    assert not sides[0] & sides[1]


def test_a_table_is_split_as_a_list_is(tmp_path: Path) -> None:
    records = made(COPIES[0])
    table = write_table(tmp_path / "t.arrow", records)
    listed, mapped = (split_indices(one, 0.2, 3, stratify=True, group="origin") for one in (records, table))
    assert all(np.array_equal(a, b) for a, b in zip(listed, mapped, strict=True))
    assert isinstance(split_records(table, 0.2, 3, stratify=True)[0], RecordTable)


def test_what_was_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path))
    records = [Record(f"code {n // 2} #{n}", "a", None, "a", n) for n in range(1200)]
    found = duplicate_groups(records)
    assert len(list(tmp_path.glob("near-duplicates-*.gz"))) == 1
    monkeypatch.setattr(near_duplicates, "normalize", None)  # a second look would fail
    again = duplicate_groups(records[::-1])
    assert np.array_equal(found.near, again.near[::-1])
    assert len(set(found.near.tolist())) == 600


def test_too_many_for_similarity_are_compared_by_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MOST_COMPARED", 3)
    texts = [function(1), COPIES[0](function(1)), COPIES[3](function(1)), COPIES[4](function(1))]
    with pytest.warns(UserWarning, match="4 distinct records are more than 3"):
        near = duplicate_groups([Record(text, None, None, "a", n) for n, text in enumerate(texts)]).near
    assert near[0] == near[1] == near[2] != near[3]
