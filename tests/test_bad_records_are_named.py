"""Each bad input has its line: what was seen, where, what would be accepted."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from mltrack.data.readers import read_records, sources
from mltrack.errors import ConfigurationError, DatasetError

FILES = sources.ACCEPTED
LEVELS = "accepted: safe, low, medium, high, critical"
GOOD = b'{"code": "a", "label": "safe"}\n'
TEXT, SECURITY, GENERATION = "text_classification", "security_classification", "code_generation"

# name, bytes, task, message behind the path
TABLE = [
    # the file
    ("a.txt", b"x", TEXT, f": seen the extension '.txt'; accepted: {FILES}"),
    ("a.txt.gz", b"x", TEXT, f": seen the extension '.txt.gz'; accepted: {FILES}"),
    ("a", b"x", TEXT, f": seen no extension; accepted: {FILES}"),
    ("a.json", b"", TEXT, ": holds no records; accepted: at least one"),
    ("a.json", b"[]", TEXT, ": holds no records; accepted: at least one"),
    ("a.jsonl", b"\n \n", TEXT, ": holds no records; accepted: at least one"),
    ("a.csv", b"", TEXT, ": holds no records; accepted: at least one"),
    ("a.csv", b"code,label\n", TEXT, ": holds no records; accepted: at least one"),
    ("a.jsonl.gz", b"plain", TEXT, ": not a whole gzip file (Not a gzipped file (b'pl')); accepted: the output of gzip"),
    (
        "a.jsonl.gz",
        gzip.compress(GOOD * 99)[:-9],
        TEXT,
        ": not a whole gzip file (Compressed file ended before the end-of-stream marker was reached); accepted: the output of gzip",
    ),
    ("a.parquet", b"PAR1", TEXT, None),  # pyarrow's own words
    ("a.jsonl", GOOD + b'{"code": "\xff"}', TEXT, ", record 2: not UTF-8 (byte 0xff at offset 10); accepted: UTF-8"),
    ("a.json", GOOD.decode().encode("utf-16"), TEXT, ": not UTF-8 (byte 0xff at offset 0); accepted: UTF-8"),
    ("a.csv", b"code,label\na,b\n\xe4,c\n", TEXT, ", record 2: not UTF-8 (byte 0xe4 at offset 0); accepted: UTF-8"),
    # the syntax
    (
        "a.jsonl",
        GOOD + b"{'code'}\n",
        TEXT,
        ", record 2: bad JSON at column 2 (Expecting property name enclosed in double quotes); accepted: one JSON object a line",
    ),
    ("a.jsonl", b"\0\0\0\n", TEXT, ", record 1: bad JSON at column 1 (Expecting value); accepted: one JSON object a line"),
    ("a.jsonl", b"[" * 200_000, TEXT, None),
    ("a.json", b"[" * 200_000, TEXT, None),
    ("a.jsonl", b'{"code": ' + b"9" * 5000 + b"}", TEXT, None),
    ("a.json", b'{"code":\n"a"}', TEXT, ": starts with an object; accepted: a JSON array of records (one record a line: name the file .jsonl)"),
    ("a.json", b'"x"', TEXT, ": starts with text; accepted: a JSON array of records (one record a line: name the file .jsonl)"),
    ("a.json", b"\x00\x01", TEXT, ": starts with '\\x00\\x01'; accepted: a JSON array of records (one record a line: name the file .jsonl)"),
    ("a.json", b"[" + GOOD + b",]", TEXT, ", record 2: bad JSON at line 2, column 2 (Expecting value); accepted: a JSON array of records"),
    ("a.json", b"[\n" + GOOD + GOOD + b"]", TEXT, ", record 1: bad JSON at line 3, column 1 (Expecting ',' or ']'); accepted: a JSON array of records"),
    ("a.json", b"[" + GOOD, TEXT, ", record 1: bad JSON at line 2, column 1 (Expecting ',' or ']'); accepted: a JSON array of records"),
    ("a.json", b"[" + GOOD + b"] []", TEXT, ": bad JSON at line 2, column 3 (Extra data after the array); accepted: a JSON array of records"),
    (
        "a.csv",
        b"code,label\na,b,c\n",
        TEXT,
        ", record 1: seen 3 cells, the header has 2; accepted: as many cells as the header (cells with commas or line ends quoted)",
    ),
    ("a.csv", b'code,label\n"a,b\n', TEXT, ', record 1: bad CSV (unexpected end of data); accepted: comma-separated cells, quoted with "'),
    ("a.csv", b"code,code\na,b\n", TEXT, ": the column 'code' stands twice in the header; accepted: each column once"),
    # the record
    ("a.jsonl", b"[1, 2]\n", TEXT, ", record 1: seen [1, 2] (a list); accepted: an object with the fields code and label"),
    ("a.jsonl", b"null\n", GENERATION, ", record 1: seen null; accepted: an object with the fields description and code"),
    ("a.json", b"[1]", TEXT, ", record 1: seen 1 (a number); accepted: an object with the fields code and label"),
    ("a.jsonl", b"{}\n", TEXT, ", record 1, field 'code': missing; seen the fields (none); accepted: text that is not blank"),
    (
        "a.jsonl",
        b'{"code": "a", "lable": 1}\n',
        TEXT,
        ", record 1, field 'label': missing; seen the fields code, lable; accepted: text, a whole number, true or false; another column is named by columns=label=COLUMN",
    ),
    ("a.csv", b"code;label\na;b\n", TEXT, ", record 1, field 'code': missing; seen the fields code;label; accepted: text that is not blank"),
    ("a.jsonl", b'{"code": null, "label": "a"}\n', TEXT, ", record 1, field 'code': seen null; accepted: text that is not blank"),
    ("a.jsonl", b'{"code": " \\n", "label": "a"}\n', TEXT, ", record 1, field 'code': seen ' \\n'; accepted: text that is not blank"),
    ("a.csv", b"code,label\na,\n", TEXT, ", record 1, field 'label': seen ''; accepted: text that is not blank"),
    ("a.jsonl", b'{"code": ["a"], "label": "a"}\n', TEXT, ", record 1, field 'code': seen ['a'] (a list); accepted: text"),
    ("a.jsonl", b'{"code": 7, "description": "a"}\n', GENERATION, ", record 1, field 'code': seen 7 (a number); accepted: text"),
    ("a.jsonl", b'{"code": "a\\u0000", "label": "a"}\n', TEXT, ", record 1, field 'code': seen a NUL character at offset 1; accepted: text without NUL"),
    (
        "a.jsonl",
        b'{"code": "ab\\ud83d", "label": "a"}\n',
        TEXT,
        ", record 1, field 'code': seen half a surrogate pair (\\ud83d) at offset 2; accepted: Unicode text",
    ),
    ("a.jsonl", b'{"code": "a", "label": 1.5}\n', TEXT, ", record 1, field 'label': seen 1.5 (a number); accepted: text, a whole number, true or false"),
    ("a.jsonl", b'{"code": "a", "label": ["x"]}\n', TEXT, ", record 1, field 'label': seen ['x'] (a list); accepted: text, a whole number, true or false"),
    ("a.jsonl", b'{"code": "a"}\n', GENERATION, ", record 1, field 'description': missing; seen the fields code; accepted: text that is not blank"),
    # the five levels
    ("a.jsonl", GOOD + b'{"code": "a", "label": "hihg"}\n', SECURITY, f", record 2, field 'label': seen 'hihg'; {LEVELS} (did you mean 'high'?)"),
    ("a.jsonl", b'{"code": "a", "label": "CRITICAL"}\n', SECURITY, f", record 1, field 'label': seen 'CRITICAL'; {LEVELS} (did you mean 'critical'?)"),
    ("a.jsonl", b'{"code": "a", "label": 3}\n', SECURITY, f", record 1, field 'label': seen '3'; {LEVELS}"),
    ("a.jsonl", b'{"code": "a", "label": "%s"}\n' % (b"x" * 99), SECURITY, f", record 1, field 'label': seen '{'x' * 36}...; {LEVELS}"),
]


@pytest.mark.parametrize(("name", "data", "task", "message"), TABLE, ids=[f"{row[0]}-{n}" for n, row in enumerate(TABLE)])
def test_a_bad_input_has_its_line(tmp_path: Path, name: str, data: bytes, task: str, message: str | None) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        read_records(path, task)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert len(said) < len(str(path)) + 300
    assert "accepted: " in said
    if message is not None:
        assert said == f"{path}{message}"


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    (tmp_path / "none").mkdir()
    for path, message in (
        (tmp_path / "trian.jsonl", f"no such file (did you mean 'train.jsonl'?); accepted: {FILES}, or stdlib"),
        (tmp_path / "nowhere" / "a.json", f"no such file; accepted: {FILES}, or stdlib"),
        (tmp_path / "none", f"holds no files; accepted: {FILES}"),
    ):
        with pytest.raises(DatasetError) as caught:
            read_records(path, TEXT)
        assert str(caught.value) == f"{path}: {message}"


def test_unknown_words_name_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(ConfigurationError) as caught:
        read_records(path, "text_clasification")
    assert str(caught.value) == (
        "task: seen 'text_clasification'; accepted: text_classification, code_generation, security_classification (did you mean 'text_classification'?)"
    )
    with pytest.raises(ConfigurationError) as caught:
        read_records(path, TEXT, on_bad_record="skp")
    assert str(caught.value) == "on_bad_record: seen 'skp'; accepted: stop, skip (did you mean 'skip'?)"
