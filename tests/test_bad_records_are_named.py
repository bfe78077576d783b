"""Each bad input has its line: what is wrong, where, and what to do."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import commands
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mltrack import DatasetLoader
from mltrack.cli import run as run_command
from mltrack.errors import ConfigurationError, DatasetError
from mltrack.records.readers import paths as sources
from mltrack.records.readers import read_records

FILES = sources.ACCEPTED
LEVELS = "safe, low, medium, high, critical"
GOOD = b'{"code": "a", "label": "safe"}\n'
TEXT, SECURITY, GENERATION = "text_classification", "security_classification", "code_generation"
TOO_LARGE = ("10,000,000", "at most 8,388,608 bytes")
LARGE = json.dumps({"code": "x" * 10_000_000, "label": "a"}).encode()


def parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def table(**columns: pa.Array) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def two_of_a_name() -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["x"])], names=["code", "code", "label"]), sink
    )
    return sink.getvalue()


NOT_UTF8 = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"\xff\xfe"]).buffers())
LONG = "longer than 33,554,432 bytes"

# name, bytes, task, (place behind the path, what the line must say of it); None: only that there is a line
TABLE = [
    # the file
    ("a.txt", b"x", TEXT, (": ", "'.txt'", FILES)),
    ("a.txt.gz", b"x", TEXT, (": ", "'.txt.gz'", FILES)),
    ("a", b"x", TEXT, (": ", "no extension", FILES)),
    ("a.json", b"", TEXT, (": ", "no records")),
    ("a.json", b"[]", TEXT, (": ", "no records")),
    ("a.jsonl", b"\n \n", TEXT, (": ", "no records")),
    ("a.csv", b"", TEXT, (": ", "no records")),
    ("a.csv", b"code,label\n", TEXT, (": ", "no records")),
    (
        "a.jsonl.gz",
        b"plain",
        TEXT,
        (": ", "gzip", "Not a gzipped file (b'pl')"),
    ),
    (
        "a.jsonl.gz",
        gzip.compress(GOOD * 99)[:-9],
        TEXT,
        (": ", "gzip", "ended before the end-of-stream marker"),
    ),
    ("a.parquet", b"PAR1", TEXT, None),  # pyarrow's own words
    ("a.jsonl", GOOD + b'{"code": "\xff"}', TEXT, (", record 2: ", "UTF-8", "0xff at offset 10")),
    ("a.json", GOOD.decode().encode("utf-16"), TEXT, (": ", "UTF-8", "0xff at offset 0")),
    ("a.csv", b"code,label\na,b\n\xe4,c\n", TEXT, (", record 2: ", "UTF-8", "0xe4 at offset 0")),
    # the syntax
    (
        "a.jsonl",
        GOOD + b"{'code'}\n",
        TEXT,
        (", record 2: ", "column 2 (Expecting property name", "one JSON object"),
    ),
    (
        "a.jsonl",
        b"\0\0\0\n",
        TEXT,
        (", record 1: ", "column 1 (Expecting value)", "one JSON object"),
    ),
    ("a.jsonl", b"[" * 200_000, TEXT, None),
    ("a.json", b"[" * 200_000, TEXT, None),
    ("a.jsonl", b'{"code": ' + b"9" * 5000 + b"}", TEXT, None),
    (
        "a.json",
        b'{"code":\n"a"}',
        TEXT,
        (": ", "an object", "JSON array", ".jsonl"),
    ),
    (
        "a.json",
        b'"x"',
        TEXT,
        (": ", "starts with text", "JSON array", ".jsonl"),
    ),
    (
        "a.json",
        b"\x00\x01",
        TEXT,
        (": ", "'\\x00\\x01'", "JSON array", ".jsonl"),
    ),
    (
        "a.json",
        b"[" + GOOD + b",]",
        TEXT,
        (", record 2: ", "line 2, column 2 (Expecting value)", "JSON array"),
    ),
    (
        "a.json",
        b"[\n" + GOOD + GOOD + b"]",
        TEXT,
        (", record 1: ", "line 3, column 1 (Expecting ',' or ']')", "JSON array"),
    ),
    (
        "a.json",
        b"[" + GOOD,
        TEXT,
        (", record 1: ", "line 2, column 1 (Expecting ',' or ']')", "JSON array"),
    ),
    (
        "a.json",
        b"[" + GOOD + b"] []",
        TEXT,
        (": ", "line 2, column 3 (Extra data after the array)", "JSON array"),
    ),
    (
        "a.csv",
        b"code,label\na,b,c\n",
        TEXT,
        (", record 1: ", "3 cells", "header has 2"),
    ),
    (
        "a.csv",
        b'code,label\n"a,b\n',
        TEXT,
        (", record 1: ", "bad CSV (unexpected end of data)", "commas"),
    ),
    ("a.csv", b"code,code\na,b\n", TEXT, (": ", "'code'", "twice")),
    # the record
    (
        "a.jsonl",
        b"[1, 2]\n",
        TEXT,
        (", record 1: ", "[1, 2] (a list)", "code and label"),
    ),
    (
        "a.jsonl",
        b"null\n",
        GENERATION,
        (", record 1: ", "null", "description and code"),
    ),
    ("a.json", b"[1]", TEXT, (", record 1: ", "1 (a number)", "code and label")),
    (
        "a.jsonl",
        b"{}\n",
        TEXT,
        (", record 1, field 'code': ", "missing", "(none)"),
    ),
    (
        "a.jsonl",
        b'{"code": "a", "lable": 1}\n',
        TEXT,
        (", record 1, field 'label': ", "missing", "code, lable", "columns=label=COLUMN"),
    ),
    (
        "a.csv",
        b"code;label\na;b\n",
        TEXT,
        (", record 1, field 'code': ", "missing", "code;label"),
    ),
    (
        "a.jsonl",
        b'{"code": null, "label": "a"}\n',
        TEXT,
        (", record 1, field 'code': ", "null"),
    ),
    (
        "a.jsonl",
        b'{"code": " \\n", "label": "a"}\n',
        TEXT,
        (", record 1, field 'code': ", "' \\n'", "blank"),
    ),
    ("a.csv", b"code,label\na,\n", TEXT, (", record 1, field 'label': ", "''", "blank")),
    (
        "a.jsonl",
        b'{"code": ["a"], "label": "a"}\n',
        TEXT,
        (", record 1, field 'code': ", "['a'] (a list)", "text"),
    ),
    (
        "a.jsonl",
        b'{"code": 7, "description": "a"}\n',
        GENERATION,
        (", record 1, field 'code': ", "7 (a number)", "text"),
    ),
    (
        "a.jsonl",
        b'{"code": "a\\u0000", "label": "a"}\n',
        TEXT,
        (", record 1, field 'code': ", "NUL", "offset 1"),
    ),
    (
        "a.jsonl",
        b'{"code": "ab\\ud83d", "label": "a"}\n',
        TEXT,
        (", record 1, field 'code': ", "\\ud83d", "offset 2", "Unicode"),
    ),
    (
        "a.jsonl",
        b'{"code": "a", "label": 1.5}\n',
        TEXT,
        (", record 1, field 'label': ", "1.5 (a number)", "a whole number"),
    ),
    (
        "a.jsonl",
        b'{"code": "a", "label": ["x"]}\n',
        TEXT,
        (", record 1, field 'label': ", "['x'] (a list)", "a whole number"),
    ),
    (
        "a.jsonl",
        b'{"code": "a"}\n',
        GENERATION,
        (", record 1, field 'description': ", "missing", "code"),
    ),
    # size and depth
    (
        "a.jsonl",
        LARGE,
        TEXT,
        (", record 1, field 'code': ", *TOO_LARGE),
    ),
    (
        "a.json",
        b"[" + LARGE + b"]",
        TEXT,
        (", record 1, field 'code': ", *TOO_LARGE),
    ),
    (
        "a.csv",
        b"code,label\n" + b"x" * 10_000_000 + b",a\n",
        TEXT,
        (", record 1, field 'code': ", *TOO_LARGE),
    ),
    (
        "a.parquet",
        parquet([{"code": "x" * 10_000_000, "label": "a"}]),
        TEXT,
        (", record 1, field 'code': ", *TOO_LARGE),
    ),
    ("a.jsonl", GOOD + b'{"code": "' + b"x" * (40 << 20), TEXT, (", record 2: ", LONG)),
    ("a.json", b'[{"code": "' + b"x" * (40 << 20), TEXT, (", record 1: ", LONG)),
    ("a.csv", b"code,label\n" + b"x" * (40 << 20), TEXT, (", record 1: ", LONG)),
    ("a.csv", b'code,label\n"' + b"x,\n" * (20 << 20), TEXT, (", record 1: ", LONG)),
    ("a.jsonl", b'{"code": "a", "label": "b", "more": ' + b"[" * 5000 + b"]" * 5000 + b"}", TEXT, None),
    (
        "a.json",
        b'[{"code": "a", "label": "b"}, ' + b'{"a":' * 100_000,
        TEXT,
        (", record 2: ", "nested too deeply", "JSON array"),
    ),
    (
        "a.jsonl",
        b'{"code": "a", "label": "%s"}' % (b"y" * 201),
        TEXT,
        (", record 1, field 'label': ", "201", f"'{'y' * 36}...", "at most 200"),
    ),
    ("a.jsonl", b"".join(b'{"code": "a", "label": %d}\n' % n for n in range(100_000)), TEXT, None),  # see below
    # Parquet and compression
    ("a.parquet", parquet([{"code": "a", "label": "b"}])[:-20], TEXT, None),
    (
        "a.parquet",
        parquet([{"code": "a", "label": "b"}, {"code": None, "label": "b"}]),
        TEXT,
        (", record 2, field 'code': ", "null"),
    ),
    (
        "a.parquet",
        parquet([{"code": b"a", "label": "b"}]),
        TEXT,
        (", record 1, field 'code': ", "b'a' (bytes)", "text"),
    ),
    (
        "a.parquet",
        parquet([{"code": "a", "label": 1.5}]),
        TEXT,
        (", record 1, field 'label': ", "1.5 (a number)", "a whole number"),
    ),
    ("a.parquet", parquet([{"x": "a"}])[:0], TEXT, None),
    (
        "a.parquet.gz",
        gzip.compress(parquet([{"code": "a"}])),
        TEXT,
        (", record 1, field 'label': ", "missing", "fields code"),
    ),
    (
        "a.parquet.gz",
        parquet([{"code": "a"}]),
        TEXT,
        (": ", "gzip", "Not a gzipped file (b'PA')"),
    ),
    (
        "a.jsonl.zst",
        GOOD,
        TEXT,
        (": ", "zstd", "Unknown frame descriptor"),
    ),
    (
        "a.jsonl.zst",
        zstandard.compress(GOOD * 99)[:-3],
        TEXT,
        (": ", "zstd", "Truncated compressed stream"),
    ),
    (
        "a.jsonl.zst",
        zstandard.compress(GOOD + b"1\n"),
        TEXT,
        (", record 2: ", "1 (a number)", "code and label"),
    ),
    ("a.csv.zst", zstandard.compress(b"code,label\na\n"), TEXT, None),
    (
        "a.json.zst",
        zstandard.compress(b"[1,"),
        TEXT,
        (", record 1: ", "1 (a number)", "code and label"),
    ),
    # line ends, quotes, other encodings
    ("a.csv", b"code,label\ra,b\rc,d\r", TEXT, None),
    ("a.csv", "code,label\na,b\n".encode("utf-16"), TEXT, (": ", "UTF-8", "0xff at offset 0")),
    ("a.jsonl", '{"code": "a"}\n'.encode("utf-16-le"), TEXT, None),
    (
        "a.jsonl",
        '{"code": "\u00e4", "label": "b"}\n'.encode("latin-1"),
        TEXT,
        (", record 1: ", "UTF-8", "0xe4 at offset 10"),
    ),
    (
        "a.json",
        b'[{"code": "a", "label": "b"},\n{"code": "\xe4"}]',
        TEXT,
        (", record 2: ", "UTF-8", "0xe4 at offset 40"),
    ),
    (
        "a.csv",
        b'code,label\na,b\n"a"b,c\n',
        TEXT,
        (", record 2: ", "bad CSV (',' expected after '\"')", "commas"),
    ),
    ("a.csv", b"code\tlabel\na\tb\n", TEXT, None),
    (
        "a.csv",
        b"code,label\na\0,b\n",
        TEXT,
        (", record 1, field 'code': ", "NUL", "offset 1"),
    ),
    (
        "a.jsonl",
        b'{"code": "a", "label": "\\udc80"}\n',
        TEXT,
        (", record 1, field 'label': ", "\\udc80", "offset 0", "Unicode"),
    ),
    (
        "a.jsonl",
        b'{"code": "a", "label": NaN}\n',
        TEXT,
        (", record 1, field 'label': ", "nan (a number)", "a whole number"),
    ),
    (
        "a.jsonl",
        b'{"code": "a", "label": {"x": 1}}\n',
        TEXT,
        (", record 1, field 'label': ", "{'x': 1} (an object)", "a whole number"),
    ),
    (
        "a.jsonl",
        b"{" + b", ".join(b'"k%d": 1' % n for n in range(100_000)) + b"}\n",
        TEXT,
        (", record 1, field 'code': ", "missing", "k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, ...", "columns=code=COLUMN"),
    ),
    # what nobody says which is meant, or what cannot be said
    (
        "a.jsonl",
        GOOD + b'{"code": "a", "label": "x", "label": "y"}\n',
        TEXT,
        (", record 2, field 'label': ", "twice"),
    ),
    (
        "a.json",
        b"[" + GOOD + b', {"code": "a", "label": "x", "code": "b"}]',
        TEXT,
        (", record 2, field 'code': ", "twice"),
    ),
    ("a.parquet", two_of_a_name(), TEXT, (": ", "'code'", "twice")),
    (
        "a.parquet",
        table(code=NOT_UTF8, label=pa.array(["x", "y"])),
        TEXT,
        (", record 2, field 'code': ", "Python cannot hold", "byte 0xff in position 0"),
    ),
    (
        "a.parquet",
        table(code=pa.array(["a"]), label=pa.array(["x"]), when=pa.array([2**60], pa.timestamp("ms"))),
        TEXT,
        None,
    ),
    (
        "a.parquet",
        table(code=pa.array(["a"]), label=pa.array(["x"]), when=pa.array([1], pa.timestamp("ms", "No/Where"))),
        TEXT,
        None,
    ),
    (
        "a.parquet",
        parquet([{"code": "a", "label": "x", "more": "y" * (33 << 20)}]),
        TEXT,
        (", record 1, field 'more': ", "34,603,012", "34,603,022", "33,554,432"),
    ),
    (
        "a.jsonl",
        b'{"code": "a", "label": "x\\ny"}\n',
        TEXT,
        (", record 1, field 'label': ", "'x\\ny'", "one line"),
    ),
    (
        "a.jsonl",
        b'{"code": "a", "label": "\\u001b]0;title\\u0007"}\n',
        TEXT,
        (", record 1, field 'label': ", "'\\x1b]0;title\\x07'", "control characters"),
    ),
    (
        "a.jsonl",
        b'{"\\u001b[31m": 1, "\\ud800": 2}\n',
        TEXT,
        (", record 1, field 'code': ", "missing", "\\x1b[31m, \\ud800", "columns=code=COLUMN"),
    ),
    # the five levels
    (
        "a.jsonl",
        GOOD + b'{"code": "a", "label": "hihg"}\n',
        SECURITY,
        (", record 2, field 'label': ", "'hihg'", LEVELS, "did you mean 'high'?"),
    ),
    (
        "a.jsonl",
        b'{"code": "a", "label": "CRITICAL"}\n',
        SECURITY,
        (", record 1, field 'label': ", "'CRITICAL'", LEVELS, "did you mean 'critical'?"),
    ),
    ("a.jsonl", b'{"code": "a", "label": 3}\n', SECURITY, (", record 1, field 'label': ", "'3'", LEVELS)),
    (
        "a.jsonl",
        b'{"code": "a", "label": "%s"}\n' % (b"x" * 99),
        SECURITY,
        (", record 1, field 'label': ", f"'{'x' * 36}...", LEVELS),
    ),
]


ROWS = pytest.mark.parametrize(
    ("name", "data", "task", "facts"), TABLE, ids=[f"{row[0]}-{n}" for n, row in enumerate(TABLE)]
)


@ROWS
def test_a_bad_input_has_its_line(
    tmp_path: Path, name: str, data: bytes, task: str, facts: tuple[str, ...] | None
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        _ = DatasetLoader(path, task=task).records
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert len(said) < len(str(path)) + 500
    if facts is not None:
        place, *rest = facts
        assert said.startswith(f"{path}{place}")
        assert [fact for fact in rest if fact not in said.removeprefix(f"{path}{place}")] == [], said


@ROWS
def test_a_command_ends_in_that_line_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, task: str, facts: tuple[str, ...] | None
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert run_command(["data", "inspect", str(path), "--task", task]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"mltrack: {path}")


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 95


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    (tmp_path / "none").mkdir()
    for path, *facts in (
        (tmp_path / "trian.jsonl", "no such file", "did you mean 'train.jsonl'?", FILES, "stdlib"),
        (tmp_path / "nowhere" / "a.json", "no such file", FILES, "stdlib"),
        (tmp_path / "none", "no files", FILES),
    ):
        with pytest.raises(DatasetError) as caught:
            read_records(path, TEXT)
        assert str(caught.value).startswith(f"{path}: ")
        assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_unknown_words_name_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(ConfigurationError) as caught:
        read_records(path, "text_clasification")
    said = str(caught.value)
    assert "'text_clasification'" in said
    assert "text_classification, code_generation, security_classification" in said
    assert "did you mean 'text_classification'?" in said
    with pytest.raises(ConfigurationError) as caught:
        read_records(path, TEXT, on_bad_record="skp")
    said = str(caught.value)
    assert said.startswith("on_bad_record ")
    assert "'skp'" in said
    assert "stop, skip" in said
    assert "did you mean 'skip'?" in said


def test_many_labels_are_a_wrong_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"func": f"code {n}", "target": n}) + "\n" for n in range(2000)))
    loader = DatasetLoader(path, columns="code=func,label=target")
    with pytest.raises(DatasetError) as caught:
        _ = loader.records
    said = str(caught.value)
    assert said.startswith(f"{path}, field 'target': ")
    for fact in ("1,000 classes", "record 1,001", "'1000'", "columns=label=COLUMN", "num_labels"):
        assert fact in said
    assert len(DatasetLoader(path, columns="code=func,label=target", num_labels=2000).records) == 2000


def test_errors_say_the_users_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"func": "a", "target": 0}\n{"func": "b", "target": 7}\n{"code": "c", "target": 0}\n')
    told: list[str] = []
    read_records(
        path,
        TEXT,
        columns={"code": "func", "label": "target"},
        labels="0=safe,1=unsafe",
        on_bad_record="skip",
        on_skip=lambda e, raw: told.append(str(e)),
    )
    assert len(told) == 2
    assert told[0].startswith(f"{path}, record 2, field 'target': ")
    assert "'7'" in told[0]
    assert "0, 1, safe, unsafe" in told[0]
    assert told[1].startswith(f"{path}, record 3, field 'func': ")
    assert "missing" in told[1]
    assert "code, target" in told[1]


@pytest.mark.parametrize(
    ("option", "value", "facts"),
    [
        ("columns", "cod=func", ["'cod'", "code, label, description", "did you mean 'code'?"]),
        ("columns", "func", ["'func'", "no '='", "NAME=VALUE"]),
        ("labels", "0=a,0=b", ["'0=a,0=b'", "'0'", "twice", "NAME=VALUE"]),
        ("labels", '{"0": ', []),
        ("labels", '{"0": ' * 50_000, []),
        ("columns", "code=func,label=func", ["'func'", "code and label", "two columns"]),
        ("columns", "label=code", ["'code'", "code and label", "two columns"]),
        ("labels", 5, ["5", "a mapping"]),
    ],
)
def test_pairs_that_are_none(tmp_path: Path, option: str, value: object, facts: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=f"^{option}\\b") as caught:
        DatasetLoader(tmp_path / "a.jsonl", **{option: value})
    assert [fact for fact in facts if fact not in str(caught.value)] == []


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_is_not_the_folder_where_one_is(path: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read_records(path, TEXT)
    assert "path is empty" in str(caught.value)
    assert FILES in str(caught.value)


def test_one_bad_value_of_a_parquet_file_costs_its_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    when = pa.array([0, 2**60, 1, 2], pa.timestamp("ms"))
    codes = pa.Array.from_buffers(pa.string(), 4, pa.array([b"a", b"b", b"\xff", b"d"]).buffers())
    path.write_bytes(table(code=codes, label=pa.array(["x", "y", "x", "y"]), when=when))
    told: list[DatasetError] = []
    records = read_records(path, TEXT, on_bad_record="skip", on_skip=lambda error, raw: told.append(error))
    assert [(record.text, record.number) for record in records] == [("a", 1), ("d", 4)]
    assert [(error.record, error.field) for error in told] == [(2, "when"), (3, "code")]


@pytest.mark.parametrize(
    ("bad", "problem", "kept", "raw"),
    [
        (b"y=\xff2,b\n", "0xff at offset 2", [1, 3], "y=\\xff2,b\n"),
        (b'"y\n\xff\n\xfe",b\n', "0xff at offset 0", [1, 3], '"y\n\\xff\n\\xfe",b\n'),
        (
            b'"y=1"z,a\n',
            "bad CSV (',' expected after '\"')",
            [1, 3],
            '"y=1"z,a\n',
        ),
        (
            b'"y,b\n',
            "bad CSV (unexpected end of data)",
            [1, 3],
            '"y,b\n',
        ),
        (b"y" * (40 << 20) + b",b\n", LONG, [1, 3], "y" * 1000),
        (b'"y\n' + b"y" * (40 << 20) + b",b\n", LONG, [1, 3], '"y\n'),
    ],
    ids=[
        "a byte",
        "bytes in a cell of several lines",
        "a quote",
        "a quote without an end",
        "a long line",
        "a long line in a cell of several",
    ],
)
def test_one_wrong_row_of_a_csv_file_costs_its_record_alone(
    tmp_path: Path, bad: bytes, problem: str, kept: list[int], raw: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"code,label\nx=1,a\n" + bad + b"z=3,a\n")
    told: list[tuple[str, object]] = []
    before = csv.field_size_limit()
    records = read_records(path, TEXT, on_bad_record="skip", on_skip=lambda error, raw: told.append((str(error), raw)))
    assert [(record.text, record.number) for record in records] == [("x=1", kept[0]), ("z=3", kept[1])]
    ((said, raw_of_it),) = told
    assert said.startswith(f"{path}, record 2: ")
    assert problem in said
    assert raw_of_it == raw
    with pytest.raises(DatasetError) as caught:
        read_records(path, TEXT)
    assert str(caught.value) == said
    assert csv.field_size_limit() == before  # while the error, and with it the reader's frame, is still held


def test_behind_a_quote_that_is_never_closed_lines_are_read_twice_at_most(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"code,label\nx,a\n" + b'y","y\n' * 50_000
    )  # each of them opens a quote that the next one closes and opens again
    told: list[DatasetError] = []
    started = time.process_time()
    records = read_records(path, TEXT, on_bad_record="skip", on_skip=lambda error, raw: told.append(error))
    assert ([record.text for record in records], [error.record for error in told]) == (["x"], [2, 3])
    assert time.process_time() - started < 5


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of save_to_disk whose second and third record hold what Python cannot."""
    import datasets

    codes = pa.Array.from_buffers(pa.string(), 4, pa.array([b"a", b"b", b"\xff", b"d"]).buffers())
    rows = pa.table(
        {"code": codes, "label": ["x", "y", "x", "y"], "when": pa.array([0, 2**60, 1, 2], pa.timestamp("ms"))}
    )
    datasets.Dataset(rows).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_one_bad_value_of_a_saved_data_set_costs_its_record_alone(saved: Path) -> None:
    told: list[DatasetError] = []
    records = read_records(saved, TEXT, on_bad_record="skip", on_skip=lambda error, raw: told.append(error))
    assert [(record.text, record.number) for record in records] == [("a", 1), ("d", 4)]
    assert [(error.record, error.field) for error in told] == [(2, "when"), (3, "code")]


def test_a_bad_value_of_a_saved_data_set_has_its_line(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["data", "check", str(saved)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mltrack: {saved}, record 2, field 'when': ")
    assert "a value that Python cannot hold" in line


def test_the_task_cannot_be_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('not json\n{"func": "a", "target": 1}\n')
    for words in (["data", "inspect", str(path)], ["data", "check", str(path)]):
        assert run_command(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mltrack: {path}, record 2: ")
        for fact in ("func, target", "'label'", "'description'", "code and label", "--columns label=COLUMN"):
            assert fact in line


def test_a_folder_of_many_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(GOOD)
    for name in ("README.md", "notes.txt"):
        (folder / name).write_text("x")
    with pytest.raises(DatasetError) as caught:
        read_records(folder, TEXT)
    assert str(caught.value).startswith(f"{folder}: ")
    for fact in ("README.md, notes.txt", ".json, .jsonl, .csv or .parquet files", str(folder / "*.jsonl")):
        assert fact in str(caught.value)
    with pytest.raises(DatasetError, match=r"\*\.csv: no file matches.* \.json"):
        read_records(folder / "*.csv", TEXT)
    (folder / "c.jsonl").symlink_to("nowhere")
    with pytest.raises(DatasetError) as caught:
        read_records(folder / "*.jsonl", TEXT)
    assert str(caught.value).startswith(f"{folder / 'c.jsonl'}: ")
    assert "regular file" in str(caught.value)
    (folder / "c.jsonl").unlink()
    (folder / "b.jsonl").write_bytes(GOOD + b"{}\n")
    with pytest.raises(DatasetError) as caught:
        read_records(folder / "*.jsonl", TEXT)
    assert str(caught.value).startswith(f"{folder / 'b.jsonl'}, record 2, field 'code': is missing")


def test_what_is_no_file(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe.jsonl", tmp_path / "loop.jsonl"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path, problem in (
        (pipe, "regular file"),
        (loop, "loop.jsonl: (no such file|cannot be read)"),
        (tmp_path / ("x" * 300 + ".jsonl"), "cannot be read: File name too long"),
        (tmp_path / "a\0.jsonl", r"a\\x00\.jsonl: (no such file|cannot be read)"),
    ):
        with pytest.raises(DatasetError, match=problem):
            read_records(path, TEXT)


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a:b:c:d", "hf::train"])
def test_a_hub_name_that_is_none(name: str) -> None:
    with pytest.raises(DatasetError, match=f"^{name}: .*hf:name:split or hf:name:configuration:split"):
        read_records(name, TEXT)


def test_a_hub_name_without_the_network_is_one_line(tmp_path: Path) -> None:
    ended = commands.mltrack(
        "data", "inspect", "hf:someone/some-code:train", cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf")
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("mltrack: hf:someone/some-code:train: ")
    assert "cache" in line
    assert "HF_HUB_OFFLINE" in line


def test_the_bad_ones_are_written_with_reasons(tmp_path: Path) -> None:
    path, kept, later = tmp_path / "a.jsonl", tmp_path / "out" / "bad.jsonl", tmp_path / "later.jsonl"
    good = [b'{"code": "a", "label": "x"}', b'{"code": "b", "label": "y"}']
    bad = [b"not json \xff", b'{"code": " ", "label": "x", "origin": 1}', b"[1]", b'{"code": "\\ud800", "label": "x"}']
    path.write_bytes(b"\n".join([good[0], *bad, good[1], *[b"{}"] * 50]))
    loader = DatasetLoader(path, on_bad_record="skip", bad_records_path=kept)
    assert ([record.text for record in loader.records], loader.num_read, loader.num_skipped, len(loader.skipped)) == (
        ["a", "b"],
        56,
        54,
        20,
    )
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["record"] for line in lines] == [2, 3, 4, 5, *range(7, 57)]
    assert [line["raw"] for line in lines[:4]] == [
        "not json \\xff\n",
        {"code": " ", "label": "x", "origin": 1},
        [1],
        {"code": "\ud800", "label": "x"},
    ]
    assert "blank" in lines[1].pop("problem")
    assert lines[1] | {"raw": None} == {"file": str(path), "record": 3, "field": "code", "raw": None}
    without_path = DatasetLoader(path, on_bad_record="skip")
    _ = without_path.records
    assert without_path.bad_records.keep(later) == later
    assert later.read_bytes() == kept.read_bytes()


def test_no_bad_record_no_file(tmp_path: Path) -> None:
    path, kept = tmp_path / "a.jsonl", tmp_path / "bad.jsonl"
    path.write_text('{"code": "a", "label": "x"}\n{"code": "b", "label": "y"}\n')
    loader = DatasetLoader(path, on_bad_record="skip", bad_records_path=kept)
    assert (len(loader.records), loader.num_read, loader.num_skipped) == (2, 2, 0)
    assert not kept.exists()
    assert loader.bad_records.keep(tmp_path / "later.jsonl") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.sampled_from(["code", "label", "description", "x", ""]), children, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(JSON, max_size=4),
    task=st.sampled_from([TEXT, SECURITY, GENERATION]),
    suffix=st.sampled_from([".json", ".jsonl"]),
)
def test_any_json_is_records_or_a_line(tmp_path: Path, values: list[object], task: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(json.dumps(values) if suffix == ".json" else "".join(json.dumps(value) + "\n" for value in values))
    told: list[DatasetError] = []
    try:
        records = read_records(path, task, on_bad_record="skip", on_skip=lambda error, raw: told.append(error))
    except DatasetError as error:
        records = []
        told = told or [error]
    assert len(records) + len(told) == max(len(values), 1)
    for error in told:
        assert len(str(error).splitlines()) == 1
        assert error.problem
    for record in records:
        json.dumps(record.extra)
        (record.text + (record.label or "") + (record.description or "")).encode()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200),
    name=st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.json.zst", "a.parquet.zst"]),
)
def test_any_bytes_are_records_or_a_line(tmp_path: Path, data: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        read_records(path, TEXT)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "kind", ["one line without an end", "a string without an end", "a quote without an end", "a bomb"]
)
def test_memory_is_bounded_whatever_comes(tmp_path: Path, kind: str) -> None:
    """Each of these is 500 MB unpacked; the reader holds a few records' worth and says its line."""
    beginning, name = {
        "one line without an end": (b'{"code": "', "a.jsonl.gz"),
        "a string without an end": (b'[{"code": "', "a.json.gz"),
        "a quote without an end": (b'code,label\n"', "a.csv.gz"),
        "a bomb": (b'{"code": "', "a.jsonl.zst"),
    }[kind]
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=1) if name.endswith(".gz") else zstandard.open(path, "wb") as stream:
        stream.write(beginning)
        for _ in range(500):
            stream.write(b"x" * (1 << 20) + (b"\n" if kind == "a quote without an end" else b""))
    program = (
        "import sys, resource; from mltrack.records.readers import read_records; from mltrack.errors import DatasetError;"
        " import pyarrow\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\ntry: read_records(sys.argv[1],"
        " 'text_classification')\nexcept DatasetError as error:"
        " print(error)\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        env=commands.environment(),
        check=True,
    )
    line, grown = ended.stdout.splitlines()
    assert line.startswith(str(path))
    assert int(grown) * (1 if sys.platform == "linux" else 1 / 1024) < 300_000  # kB


WIDE = """
import sys
import pyarrow, pyarrow.parquet, datasets
from mltrack.records.readers import iterate_records
from watched_memory import watched

with watched() as samples:
    count = sum(1 for _ in iterate_records(sys.argv[1], "text_classification"))
print(count, max(samples) - samples[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told apart as Linux does")
@pytest.mark.parametrize("kind", ["Parquet", "Parquet, one value in all rows", "save_to_disk"])
def test_memory_follows_the_record_however_wide_it_is(tmp_path: Path, kind: str) -> None:
    """100 records of 4 MB; what is mapped from files apart."""
    wide = "x = 1\n" * 700_000
    rows = pa.table(
        {"code": [wide if "one value" in kind else f"{wide}{n}" for n in range(100)], "label": ["a", "b"] * 50}
    )
    path = tmp_path / ("saved" if kind == "save_to_disk" else "a.parquet")
    if kind == "save_to_disk":
        import datasets

        datasets.Dataset(rows).save_to_disk(str(path))
    else:  # a page a row, as other writers do; pyarrow's own pages are of a thousand rows, whatever they hold
        pq.write_table(
            rows,
            path,
            compression="zstd",
            use_dictionary="one value" in kind,
            data_page_size=1 << 20,
            write_batch_size=1,
        )
    ended = subprocess.run(
        [sys.executable, "-c", WIDE, str(path)], capture_output=True, text=True, env=commands.with_tests(), check=True
    )
    count, grown = map(int, ended.stdout.split())
    assert count == 100
    assert grown < 150_000  # kB
