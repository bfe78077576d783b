"""Every file format gives the same records, whatever its bytes look like."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from mltrack.data.readers import read_records
from mltrack.errors import DatasetError

ROWS = [
    {"code": "def f():\n    return 'a, \"b\"'\n", "label": "safe", "origin": "x"},
    {"code": "eval(x)  # \u00e4\u6f22\U0001f40d", "label": "unsafe", "origin": "y"},
    {"code": "z" * 200_000, "label": "safe", "origin": "beyond the csv module's own limit"},
]


def write(path: Path, rows: list[dict]) -> Path:
    name = path.name.removesuffix(".gz")
    if name.endswith(".json"):
        data = json.dumps(rows, indent=1).encode()
    elif name.endswith(".jsonl"):
        data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    elif name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        data = path.read_bytes()
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet", "A.JSONL"])
def test_formats_give_the_same_records(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(tmp_path / name.lower(), ROWS).rename(path)
    records = read_records(path, "text_classification")
    assert [(r.text, r.label, r.extra) for r in records] == [(row["code"], row["label"], {"origin": row["origin"]}) for row in ROWS]
    assert [r.place for r in records] == [f"{path}: record {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_accepted(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [r.text for r in read_records(path, "text_classification")] == [row["code"] for row in ROWS]


def test_csv_limit_is_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    read_records(write(tmp_path / "a.csv", ROWS), "text_classification")
    assert csv.field_size_limit() == before


def test_blank_lines_hold_no_record_but_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"code": "a", "label": "x"}\r\n   \n{"code": "b", "label": "y"}\n\n')
    assert [r.number for r in read_records(path, "text_classification")] == [2, 4]


@pytest.mark.parametrize(("given", "label"), [(1, "1"), (True, "True"), (" safe ", "safe"), ("0", "0")])
def test_labels_may_be_text_numbers_or_booleans(tmp_path: Path, given: object, label: str) -> None:
    assert read_records(write(tmp_path / "a.jsonl", [{"code": "a", "label": given}]), "text_classification")[0].label == label


def test_generation_reads_description_and_keeps_the_rest(tmp_path: Path) -> None:
    row = {"description": "Reverse a string", "code": "def r(s):\n    return s[::-1]", "tests": ["assert r('ab') == 'ba'"]}
    (record,) = read_records(write(tmp_path / "a.json", [row]), "code_generation")
    assert (record.text, record.description, record.label, record.extra) == (row["code"], row["description"], None, {"tests": row["tests"]})


def test_skip_leaves_bad_records_out_and_tells_each(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"code": "a", "label": "x"}\nnot json\n{"code": "", "label": "x"}\n[1]\n{"code": "b", "label": "y"}\n')
    told: list[DatasetError] = []
    records = read_records(path, "text_classification", on_bad_record="skip", on_skip=lambda error, raw: told.append(error))
    assert [r.text for r in records] == ["a", "b"]
    assert [(e.record, e.field) for e in told] == [(2, None), (3, "code"), (4, None)]


def test_skip_never_gives_an_empty_list(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1\n2\n")
    with pytest.raises(DatasetError, match=r"none of the 2 records is good; the first: .*record 1: seen 1"):
        read_records(path, "text_classification", on_bad_record="skip")
