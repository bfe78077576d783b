"""Every file format gives the same records, whatever its bytes look like."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mltrack import DatasetLoader
from mltrack.errors import DatasetError
from mltrack.records.readers import find_sources, json_files, read_records

ROWS = [
    {"code": "def f():\n    return 'a, \"b\"'\n", "label": "safe", "origin": "x"},
    {"code": "eval(x)  # \u00e4\u6f22\U0001f40d", "label": "unsafe", "origin": "y"},
    {"code": "z" * 200_000, "label": "safe", "origin": "beyond the csv module's own limit"},
]


def write(path: Path, rows: list[dict]) -> Path:
    name = path.name.removesuffix(".gz").removesuffix(".zst")
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
        data = path.read_bytes()
    path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(data))
    return path


KINDS = [
    f"a{suffix}{compression}"
    for suffix in (".json", ".jsonl", ".csv", ".parquet")
    for compression in ("", ".gz", ".zst")
]


@pytest.mark.parametrize("name", [*KINDS, "A.JSONL", "A.CSV.GZ"])
def test_formats_give_the_same_records(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(tmp_path / name.lower(), ROWS).rename(path)
    records = read_records(path, "text_classification")
    assert [(r.text, r.label, r.extra) for r in records] == [
        (row["code"], row["label"], {"origin": row["origin"]}) for row in ROWS
    ]
    assert [r.location for r in records] == [f"{path}: record {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_accepted(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [r.text for r in read_records(path, "text_classification")] == [row["code"] for row in ROWS]


def test_files_that_were_put_together_keep_their_marks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    one = write(tmp_path / "one.jsonl", ROWS).read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + one + b"\n\xef\xbb\xbf" + one)
    assert [r.text for r in read_records(path, "text_classification")] == 2 * [row["code"] for row in ROWS]


def test_blanks_around_the_names_of_a_header_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("code, label ,more\na, x ,1\n")
    (record,) = read_records(path, "text_classification")
    assert (record.text, record.label, record.extra) == ("a", "x", {"more": "1"})


def test_what_stands_twice_deeper_in_a_record_is_a_further_columns_own_affair(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"code": "a", "label": "x", "more": {"b": 1, "b": 2}}\n')
    assert read_records(path, "text_classification")[0].extra == {"more": {"b": 2}}


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
    assert (
        read_records(write(tmp_path / "a.jsonl", [{"code": "a", "label": given}]), "text_classification")[0].label
        == label
    )


def test_generation_reads_description_and_keeps_the_rest(tmp_path: Path) -> None:
    row = {
        "description": "Reverse a string",
        "code": "def r(s):\n    return s[::-1]",
        "tests": ["assert r('ab') == 'ba'"],
    }
    (record,) = read_records(write(tmp_path / "a.json", [row]), "code_generation")
    assert (record.text, record.description, record.label, record.extra) == (
        row["code"],
        row["description"],
        None,
        {"tests": row["tests"]},
    )


def test_skip_leaves_bad_records_out_and_tells_each(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"code": "a", "label": "x"}\nnot json\n{"code": "", "label": "x"}\n[1]\n{"code": "b", "label": "y"}\n'
    )
    told: list[DatasetError] = []
    records = read_records(
        path, "text_classification", on_bad_record="skip", on_skip=lambda error, raw: told.append(error)
    )
    assert [r.text for r in records] == ["a", "b"]
    assert [(e.record, e.field) for e in told] == [(2, None), (3, "code"), (4, None)]


def test_skip_never_gives_an_empty_list(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1\n2\n")
    with pytest.raises(DatasetError, match=r"none of the 2 records is good; the first: .*record 1: .* 1 "):
        read_records(path, "text_classification", on_bad_record="skip")


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for n, name in enumerate(
        ["b.jsonl", "sub/c.csv.gz", "a.parquet", "a.jsonl.zst", "sub/.hidden", "_SUCCESS", ".git/x"]
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(("hidden", "SUCCESS", "x")):
            (folder / name).write_text("not data")
        else:
            write(folder / name, [{"code": f"code {n}", "label": "x"}])
    expected = [("a.jsonl.zst", "code 3"), ("a.parquet", "code 2"), ("b.jsonl", "code 0"), ("sub/c.csv.gz", "code 1")]
    assert [(record.file, record.text) for record in read_records(folder, "text_classification")] == [
        (str(folder / name), text) for name, text in expected
    ]
    chosen = read_records(folder / "*.*", "text_classification")
    assert [record.file for record in chosen] == [
        str(folder / "a.jsonl.zst"),
        str(folder / "a.parquet"),
        str(folder / "b.jsonl"),
    ]
    assert [source.name for source in find_sources(folder / "**" / "*.csv.gz")] == [str(folder / "sub/c.csv.gz")]
    loader = DatasetLoader(folder)
    with pytest.raises(DatasetError, match=r"one class only.* 'x' in all 4 records"):
        _ = loader.records


def test_a_glob_reads_folders_as_they_would_be_read_alone(tmp_path: Path) -> None:
    names = ["a.jsonl", "sub/b.jsonl", "sub/_c.jsonl", "_hidden.jsonl", "_old/d.jsonl", ".git/e.jsonl"]
    for name in names:
        (tmp_path / "g" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "g" / name, ROWS)
    for pattern, expected in {
        "*": ["a.jsonl", "sub/b.jsonl"],
        "**": ["a.jsonl", "sub/b.jsonl"],
        "s*": ["sub/b.jsonl"],
        "**/*.jsonl": ["a.jsonl", "sub/b.jsonl"],
        "_*": ["_hidden.jsonl", "_old/d.jsonl"],
        "_old/*": ["_old/d.jsonl"],
        "*/_*.jsonl": ["sub/_c.jsonl"],
    }.items():
        assert [source.name for source in find_sources(tmp_path / "g" / pattern)] == [
            str(tmp_path / "g" / name) for name in expected
        ]


def test_a_name_with_the_signs_of_a_glob_is_the_file(tmp_path: Path) -> None:
    assert len(read_records(write(tmp_path / "a[1]*.jsonl", ROWS), "text_classification")) == 3


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    """Many tools call them .json."""
    path = tmp_path / "a.json"
    path.write_text("\ufeff\n" + "\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    assert [record.text for record in read_records(path, "text_classification")] == [row["code"] for row in ROWS]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(
            st.sampled_from("abc"), st.text() | st.integers() | st.floats(allow_nan=False) | st.none(), max_size=3
        ),
        max_size=6,
    ),
    indent=st.sampled_from([None, 0, 3]),
    width=st.integers(1, 9),
)
def test_an_array_is_the_same_through_any_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict], indent: int | None, width: int
) -> None:
    """However the file is cut into chunks: inside of a number, a character, an escape."""
    monkeypatch.setattr(json_files, "_CHUNK_BYTES", width)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    (source,) = find_sources(path)
    with path.open("rb") as stream:
        assert [raw.value for raw in json_files.json_array(str(path), stream)] == rows
    assert [raw.value for raw in source.raw_records()] == rows


def test_lines_end_as_they_end(tmp_path: Path) -> None:
    for name, data in (
        ("a.jsonl", b'{"code": "a\\r\\n", "label": "x"}\r\n\r\n{"code": "b", "label": "y"}\r\n'),
        ("a.json", b'[\r\n{"code": "a\\r\\n", "label": "x"},\r\n{"code": "b", "label": "y"}\r\n]\r\n'),
        ("a.csv", b'code,label\r\n"a\r\n",x\r\nb,y\r\n'),
    ):
        (tmp_path / name).write_bytes(data)
        assert [record.text for record in read_records(tmp_path / name, "text_classification")] == ["a\r\n", "b"]


def test_columns_and_labels_of_the_users_own(tmp_path: Path) -> None:
    rows = [
        {"func": "f()", "target": 0, "code": 17},
        {"func": "g()", "target": 1.0, "code": 18},
        {"func": "h()", "target": "unsafe", "code": 19},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for columns, labels in (
        ({"code": "func", "label": "target"}, {"0": "safe", "1": "unsafe"}),
        ("code=func, label=target", "0=safe,1=unsafe"),
    ):
        records = read_records(path, "text_classification", columns=columns, labels=labels)
        assert [(record.text, record.label, record.extra) for record in records] == [
            ("f()", "safe", {"code": 17}),
            ("g()", "unsafe", {"code": 18}),
            ("h()", "unsafe", {"code": 19}),
        ]
    levels = read_records(
        path, "security_classification", columns="code=func,label=target", labels="0=safe,1=high,unsafe=low"
    )
    assert [record.label for record in levels] == ["safe", "high", "low"]
    pairs = read_records(path, "code_generation", columns="code=func,description=func")
    assert [(record.description, record.text) for record in pairs] == [(row["func"], row["func"]) for row in rows]


@pytest.mark.parametrize(("value", "label"), [(True, "unsafe"), (False, "safe")])
def test_true_and_false_are_labels_that_can_be_meant(tmp_path: Path, value: bool, label: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"code": "a", "label": value}])
    assert read_records(path, "text_classification", labels="true=unsafe,false=safe")[0].label == label
    assert read_records(path, "text_classification", labels="True=unsafe,False=safe")[0].label == label


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of save_to_disk: `one`, a data set in two shards with a class column, and `both`, with the splits train
    and test.
    """
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    features = datasets.Features(
        {"func": datasets.Value("string"), "label": datasets.ClassLabel(names=["safe", "unsafe"])}
    )
    made = {
        name: datasets.Dataset.from_dict(
            {"func": [f"{name} {n}" for n in range(600)], "label": [n % 2 for n in range(600)]}, features=features
        )
        for name in ("train", "test")
    }
    made["train"].save_to_disk(str(folder / "one"), num_shards=2)
    datasets.DatasetDict(made).save_to_disk(str(folder / "both"))
    made["test"].to_parquet(str(folder / "hub" / "test.parquet"))
    return folder


def test_a_hugging_face_folder(saved: Path) -> None:
    records = read_records(saved / "one", "text_classification", columns={"code": "func"})
    assert [(record.text, record.label, record.number) for record in records[:2]] == [
        ("train 0", "safe", 1),
        ("train 1", "unsafe", 2),
    ]
    assert (len(records), records[-1].location) == (600, f"{saved / 'one'}: record 600")


def test_saved_data_sets_of_a_glob_and_of_a_folder(saved: Path) -> None:
    splits = [str(saved / "both" / "test"), str(saved / "both" / "train")]
    assert [source.name for source in find_sources(saved / "both" / "t*")] == splits
    assert [source.name for source in find_sources(saved / "[bo]*")] == [str(saved / "both"), str(saved / "one")]
    assert [source.name for source in find_sources(saved / "**")] == [
        str(saved / "both"),
        str(saved / "hub/test.parquet"),
        str(saved / "one"),
    ]
    assert find_sources(saved) == find_sources(saved / "*")
    records = read_records(saved / "both" / "t*", "text_classification", columns={"code": "func"})
    assert [record.location for record in (records[0], records[600])] == [f"{name}: record 1" for name in splits]


def test_a_split_is_named(saved: Path) -> None:
    for path in (f"{saved / 'both'}:test", saved / "both" / "test"):
        records = read_records(path, "text_classification", columns={"code": "func"})
        assert [record.text for record in records] == [f"test {n}" for n in range(600)]
    both, one = saved / "both", saved / "one"
    for path, *facts in (
        (both, "split", f"{both}:train, {both}:test"),
        (f"{both}:tset", "'tset'", f"{both}:train, {both}:test", f"did you mean '{both}:test'?"),
        (f"{one}:train", "'train'", f"use {one}"),
    ):
        with pytest.raises(DatasetError) as caught:
            read_records(path, "text_classification")
        assert str(caught.value).startswith(f"{path}: ")
        assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_a_hub_name_is_loaded_by_the_library(saved: Path, tmp_path: Path) -> None:
    """The library takes a folder of Parquet files for a name too, so its whole way runs without the network."""
    import commands

    program = (
        "import sys; from mltrack.records.readers import read_records; print(len(read_records(sys.argv[1],"
        " 'text_classification', columns='code=func')))"
    )
    for name, expected in ((f"hf:{saved / 'hub'}:test", "600"), (f"hf:{saved / 'hub'}:trian", None)):
        ended = commands.run(commands.sys.executable, "-c", program, name, cwd=tmp_path, HF_HOME=str(tmp_path / "hf"))
        if expected is not None:
            assert ended.stdout.strip() == expected, ended.stderr
        else:
            assert 'Unknown split "trian"' in ended.stderr.splitlines()[-1]


def test_a_broken_hugging_face_folder_has_its_line(saved: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(saved / "one", tmp_path / "broken")
    for shard in (tmp_path / "broken").glob("*.arrow"):
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"(save_to_disk|is not a readable data set)") as caught:
        read_records(tmp_path / "broken", "text_classification", columns={"code": "func"})
    assert len(str(caught.value).splitlines()) == 1
