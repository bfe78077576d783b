"""Many records lie in a file: the same records and the same digest as in a list, at a memory that does not grow with
them.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mltrack import DatasetLoader
from mltrack.errors import DatasetError
from mltrack.records import record_cache
from mltrack.records.readers import paths as sources
from mltrack.records.record import Record, content_digest
from mltrack.records.table import RecordTable, digest_of, keys_of, labels_of, select, write_table


def written(path: Path, records: list[Record]) -> RecordTable:
    write_table(path, records)
    return RecordTable.open(path)


def some(count: int) -> list[Record]:
    """More than one batch of them, every ninth a copy."""
    made = [
        Record(
            f"def f{n - n % 9}():\n    return '\u00e4'",
            ("safe", "unsafe")[n % 2],
            None,
            f"{n % 3}.jsonl",
            n + 1,
            {"n": n} if n % 4 else {},
        )
        for n in range(count)
    ]
    return made


def test_a_table_is_its_records(tmp_path: Path) -> None:
    records = some(10_000)
    table = written(tmp_path / "a.arrow", records)
    assert list(table) == records
    assert (len(table), table[0], table[-1], table[9_999]) == (10_000, records[0], records[-1], records[-1])
    assert list(table[5000:100:-700]) == records[5000:100:-700]
    with pytest.raises(IndexError):
        table[10_000]


def test_a_selection_copies_nothing_and_is_a_table(tmp_path: Path) -> None:
    records = some(9_000)
    table = written(tmp_path / "a.arrow", records)
    chosen = np.random.default_rng(0).permutation(9_000)[:700]
    part = table.select(chosen)
    expected = [records[n] for n in chosen]
    assert list(part) == expected == select(records, chosen)
    assert list(part.select([3, 3, 1])) == [expected[3], expected[3], expected[1]]
    assert part.digest == content_digest(expected) == digest_of(expected)
    assert part.labels.tolist() == labels_of(expected).tolist() == [record.label for record in expected]
    assert (
        part.content_keys.tobytes()
        == keys_of(expected).tobytes()
        == b"".join(bytes.fromhex(record.content_key)[:16] for record in expected)
    )
    assert len(np.unique(table.content_keys)) == 1000
    assert len(table.select(np.zeros(0, np.int64))) == 0
    assert table.select([]).digest == content_digest([])


RECORDS = st.lists(
    st.builds(
        Record,
        text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30) | st.sampled_from(["a", "b"]),
        label=st.none() | st.sampled_from(["x", "y", "\u00e4", ""]),
        description=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        file=st.sampled_from(["a.jsonl", "\u00fc.csv"]),
        number=st.integers(1, 2**40),
        extra=st.dictionaries(
            st.text(max_size=3),
            st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
            max_size=2,
        ),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS)
def test_any_records_come_back(tmp_path: Path, records: list[Record]) -> None:
    table = written(tmp_path / "a.arrow", records)
    assert list(table) == records
    assert table.digest == content_digest(records) == digest_of(records) == digest_of(records[::-1])


def test_a_table_goes_to_another_process(tmp_path: Path) -> None:
    records = some(100)
    part = written(tmp_path / "a.arrow", records).select([5, 2])
    assert list(pickle.loads(pickle.dumps(part))) == [records[5], records[2]]
    part.path.unlink()
    assert list(pickle.loads(pickle.dumps(part))) == [records[5], records[2]]


def test_the_library_reads_the_file(tmp_path: Path) -> None:
    import datasets

    records = some(5_000)
    table = written(tmp_path / "a.arrow", records)
    rows = datasets.Dataset.from_file(str(table.path))
    assert rows["text"][:] == [record.text for record in records]
    assert rows["label"][:] == [record.label for record in records]


def test_a_damaged_file_is_not_read(tmp_path: Path) -> None:
    """One flipped bit in each part of the file, and a file that is cut."""
    records = some(400)
    path = written(tmp_path / "a.arrow", records).path
    whole, seal = path.read_bytes(), path.with_name("a.arrow.json").read_bytes()
    for place in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        path.with_name("a.arrow.json").write_bytes(seal)
        with pytest.raises(DatasetError, match=r"a\.arrow.*it is not as it was written"):
            RecordTable.open(path)
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DatasetError, match="not a whole table of records"):
            RecordTable.open(path)


def test_a_start_with_kept_records_imports_neither_datasets_nor_pandas(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"code": f"code {n}", "label": "xy"[n % 2]}) + "\n" for n in range(300)))
    program = (
        "import sys\nfrom mltrack.records import record_cache\nfrom mltrack.records.readers import paths as sources\nfrom mltrack.data.loader import DatasetLoader\nfrom"
        " mltrack.records.table import RecordTable\nrecord_cache.LIST_BYTES = 1000\nsources.SETTLED_S = 0.0\nloader = DatasetLoader(sys.argv[1])\n"
        "assert isinstance(loader.records, RecordTable)\nloader.get_info(), list(loader.records)\n"
        "print({'datasets', 'pandas'} & set(sys.modules))"
    )
    environment = commands.environment(MLTRACK_CACHE_DIR=str(tmp_path / "cache"))
    said = [
        subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, env=environment, check=True
        ).stdout
        for _ in range(2)
    ]
    assert said[1] == "set()\n"


@pytest.fixture
def spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, a file of 300 records that settles at once, and a bound that they pass."""
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(record_cache, "LIST_BYTES", 50_000)
    monkeypatch.setattr(sources, "SETTLED_S", 0.0)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"code": f"code {n}", "label": "xy"[n % 2]}) + "\n" for n in range(300)))
    return path


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/*"))


def test_many_records_are_kept_in_a_table(spills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = DatasetLoader(spills)
    assert isinstance(first.records, RecordTable)
    assert [file.suffix for file in kept(tmp_path)] == [".arrow", ".json"]
    monkeypatch.setattr("mltrack.data.loader.iterate_records", None)  # a second start does not read
    second = DatasetLoader(spills)
    assert list(second.records) == list(first.records)
    assert (second.num_read, second.num_skipped, second.label_mapping) == (300, 0, {"x": 0, "y": 1})
    assert second.get_info()["digest"] == first.get_info()["digest"] == content_digest(first.records)


def test_few_records_are_a_list(spills: Path, tmp_path: Path) -> None:
    spills.write_text("".join(spills.read_text().splitlines(keepends=True)[:20]))
    assert type(DatasetLoader(spills).records) is list
    assert kept(tmp_path) == []


@pytest.mark.parametrize("change", ["a byte", "the columns", "the task"])
def test_another_state_is_another_table(spills: Path, tmp_path: Path, change: str) -> None:
    before = list(DatasetLoader(spills).records)
    if change == "a byte":
        state = os.stat(spills)
        spills.write_text(spills.read_text().replace("code 7", "code \u00e4"))
        os.utime(spills, ns=(state.st_atime_ns, state.st_mtime_ns))
        after = DatasetLoader(spills).records
        assert list(after) != before
        assert len(kept(tmp_path)) == 2, "the older one is removed"
    elif change == "the columns":
        assert [record.label for record in DatasetLoader(spills, labels="x=good,y=bad").records] == [
            {"x": "good", "y": "bad"}[str(r.label)] for r in before
        ]
    else:
        with pytest.raises(DatasetError, match=r"field 'description': .*missing"):
            _ = DatasetLoader(spills, task="code_generation").records


def test_what_has_just_been_written_is_not_kept(spills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SETTLED_S", 3600.0)
    records = DatasetLoader(spills).records
    assert isinstance(records, RecordTable)
    assert kept(tmp_path) == []
    assert [record.text for record in records] == [f"code {n}" for n in range(300)]


def test_records_that_were_left_out_are_told_at_every_start(spills: Path, tmp_path: Path) -> None:
    with spills.open("a") as stream:
        stream.write("{}\n")
    for _ in range(2):
        loader = DatasetLoader(spills, on_bad_record="skip")
        assert (len(loader.records), loader.num_read, loader.num_skipped) == (300, 301, 1)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut", "no seal", "a flipped text"])
def test_a_damaged_table_is_made_anew(spills: Path, tmp_path: Path, damage: str) -> None:
    before = list(DatasetLoader(spills).records)
    table, seal = kept(tmp_path)
    if damage == "cut":
        table.write_bytes(table.read_bytes()[:-100])
    elif damage == "no seal":
        seal.unlink()
    else:
        table.write_bytes(table.read_bytes().replace(b"code 299", b"code 298"))
    assert list(DatasetLoader(spills).records) == before


def test_a_bad_record_far_behind_leaves_nothing(spills: Path, tmp_path: Path) -> None:
    with spills.open("a") as stream:
        stream.write("not json\n")
    with pytest.raises(DatasetError, match="record 301: bad JSON"):
        _ = DatasetLoader(spills).records
    assert kept(tmp_path) == []


def test_what_a_killed_reader_left_is_removed(spills: Path, tmp_path: Path) -> None:
    """A process is killed while it writes; a later one removes its file once it is old."""
    program = (
        "import sys\nfrom mltrack.records import record_cache\nfrom mltrack.records.record import"
        " Record\nrecord_cache.LIST_BYTES = 1000\ndef forever():\n    n = 0\n    while True:\n        n += 1\n       "
        " if n == 9000: print('writes', flush=True)\n        yield Record(f'code {n}', 'x', None, 'a',"
        " n)\nrecord_cache.gather(forever(), 'records-a-b-f1.arrow')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=commands.environment(MLTRACK_CACHE_DIR=str(tmp_path / "cache")),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writes\n"
    process.kill()
    process.wait()
    process.stdout.close()
    (left,) = (tmp_path / "cache").iterdir()
    assert left.stat().st_size > 0
    _ = DatasetLoader(spills).records
    assert left.exists(), "it could be another process's"
    os.utime(left, (0, 0))
    with spills.open("a") as stream:
        stream.write('{"code": "one more", "label": "x"}\n')
    assert len(DatasetLoader(spills).records) == 301
    assert not left.exists()


def test_a_cache_folder_that_cannot_be_written_costs_the_table_only(
    spills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert len(DatasetLoader(spills).records) == 300


FULL = """
import resource, signal, sys
from mltrack import DatasetLoader
from mltrack.records import record_cache
from mltrack.errors import DatasetError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
record_cache.LIST_BYTES = 50_000
import pyarrow
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, resource.RLIM_INFINITY))
try:
    DatasetLoader(sys.argv[1]).records
except DatasetError as error:
    print(error)
"""


def test_a_disk_without_room_is_a_line_with_the_remedy(spills: Path, tmp_path: Path) -> None:
    environment = commands.environment(MLTRACK_CACHE_DIR=str(tmp_path / "cache"))
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(spills)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    (said,) = ended.stdout.splitlines()
    assert said.startswith(f"{tmp_path / 'cache'}: ")
    assert "File too large" in said
    assert "MLTRACK_CACHE_DIR" in said
    assert kept(tmp_path) == []


MEASURED = """
import sys
import numpy as np, pyarrow.parquet
from mltrack import DatasetLoader
from mltrack.records.table import RecordTable
from watched_memory import watched

for path in sys.argv[1:]:
    with watched() as samples:
        records = DatasetLoader(path).records
        assert isinstance(records, RecordTable)
        part = records.select(np.flatnonzero(records.labels == "x"))
        size = sum(len(record.text) for record in part)
    print(len(part), size, max(samples))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told apart as Linux does")
@pytest.mark.parametrize(
    "suffix", [".jsonl", *(pytest.param(suffix, marks=pytest.mark.long) for suffix in (".json", ".csv", ".parquet"))]
)
def test_memory_does_not_grow_with_the_records(tmp_path: Path, suffix: str) -> None:
    """40 MB and 100 MB of records, read, split by label and gone through, in the same memory (what is mapped from files
    apart).
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    code = "x = [" + ", ".join(str(n) for n in range(520)) + "]\n"
    paths = []
    for count in (16_000, 40_000):
        path = tmp_path / f"{count}{suffix}"
        rows = [{"code": f"def f{n}():\n    {code}", "label": "xy"[n % 2]} for n in range(count)]
        if suffix in (".json", ".jsonl"):
            lines = (",\n" if suffix == ".json" else "\n").join(json.dumps(row) for row in rows)
            path.write_text(f"[{lines}]" if suffix == ".json" else lines)
        elif suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2000)
        else:
            pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path)
        paths.append(path)
    environment = commands.with_tests(MLTRACK_CACHE_DIR=str(tmp_path / "cache"))
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, paths)], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.returncode == 0, ended.stderr
    (few, small, before), (many, large, after) = (map(int, line.split()) for line in ended.stdout.splitlines())
    assert (few, many) == (8_000, 20_000)
    assert large > 2.4 * small > 40_000_000
    assert after < before + 12_000, f"{(after - before) / 1000:.0f} MB more"
