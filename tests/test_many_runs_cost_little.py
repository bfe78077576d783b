"""A folder of many runs: a start and `mltrack runs` open the few directories that matter, whatever became of
the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mltrack.cli.runs_and_sync import list_runs
from mltrack.errors import ConfigurationError
from mltrack.journal import (
    JournalWriter,
    RunDirectory,
    RunInfo,
    find_run_directories,
    find_run_directory,
    known_runs,
    records,
    run_index,
)
from mltrack.runs.provenance import undelivered

NUM_RUNS = 300
LONG_AGO = time.time() - 3600
_opened: list[str] = []
_watched: list[str] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watched and str(arguments[0]).startswith(_watched[0]):
        _opened.append(str(arguments[0]))


sys.addaudithook(_note)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """The names of the files that were opened in the folder of the runs since the last call."""
    _watched.append(str(tmp_path))
    try:

        def since_last() -> list[str]:
            names = [Path(path).name for path in _opened if Path(path).name != tmp_path.name]
            _opened.clear()
            return names

        since_last()
        yield since_last
    finally:
        _watched.clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Delivered runs of an hour ago; every other directory is named by its local id."""
    journal = tmp_path / "journal"
    writer = JournalWriter(journal)
    for step in range(1, 4):
        writer.append(records.metrics(step, {"train_loss": 1 / step}, {}, epoch=0))
    writer.append(records.end("FINISHED", 0))
    writer.close()
    runs = tmp_path / "runs"
    for number in range(NUM_RUNS):
        make_run(runs, number, journal)
    return runs


def make_run(runs: Path, number: int, journal: Path, **changes: object) -> RunDirectory:
    run_id = f"{number:032x}"
    directory = RunDirectory(runs / (uuid.uuid4().hex if number % 2 else run_id))
    directory.path.mkdir(parents=True)
    os.link(journal, directory.journal)
    info = RunInfo(local_id=directory.path.name, run_id=run_id, created_ms=number, tracking_uri="http://127.0.0.1:9")
    directory.run_file.write_text(json.dumps(vars(info)))
    content = {"offset": journal.stat().st_size, "complete": True, "end": records.end("FINISHED", 0), **changes}
    directory.delivery_file.write_text(json.dumps(content))
    os.utime(directory.path, (LONG_AGO, LONG_AGO))
    return directory


def replace_delivery(directory: RunDirectory, **content: object) -> None:
    """As a relay does."""
    temporary = directory.path / "temporary"
    temporary.write_text(json.dumps(content))
    temporary.replace(directory.delivery_file)


def test_a_run_directory_is_opened_once_and_again_when_it_has_changed(root: Path, opened: Callable[[], list[str]]):
    first = known_runs(root)
    assert [run.created_ms for run in first] == list(range(NUM_RUNS))
    assert opened().count("run.json") == NUM_RUNS
    assert undelivered(root) == []
    assert find_run_directory(root, f"{7:032x}") == RunDirectory(root / first[7].name)
    assert find_run_directory(root, "no such run") is None
    assert set(opened()) == {".runs.json"}
    changed = RunDirectory(root / first[20].name)
    replace_delivery(changed, complete=False)
    opened()
    assert undelivered(root) == [changed]
    assert [name for name in opened() if not name.startswith(".runs.json")] == ["run.json", "delivery.json", "run.json"]


def test_a_run_is_found_by_its_directorys_name_without_opening_another(root: Path, opened: Callable[[], list[str]]):
    assert find_run_directory(root, f"{8:032x}") == RunDirectory(root / f"{8:032x}")
    assert opened() == []


def test_runs_lists_the_newest_and_opens_no_other_journal(
    root: Path, opened: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
):
    list_runs(str(root), "json", "false", None)
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert len(rows) == 50
    assert opened().count("journal") == 50
    assert {(row["state"], row["steps"], row["delivery"]) for row in rows} == {("FINISHED", 3, "complete")}
    assert [row["run"] for row in rows] == [
        info.run_id or info.local_id
        for info in (directory.read_run() for directory in find_run_directories(root)[-50:])
    ]
    assert printed.err == f"the newest 50 of {NUM_RUNS} runs; --limit 0 lists all\n"
    list_runs(str(root), "json", "false", None, "0")
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == NUM_RUNS
    assert printed.err == ""
    with pytest.raises(ConfigurationError, match=r"limit must be .*'many'"):
        list_runs(str(root), "json", "false", None, "many")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b'{"format_version": 3, "runs": []}',
        b'{"format_version": 1, "runs": [["../../elsewhere", 0, 0, "", null, "", true]]}',
        b'{"format_version": 2, "runs": [["../../elsewhere", 0, 0, "", null, "", true]]}',
        b'{"format_version": 2, "runs": [[1, "x"], null]}',
        None,
    ],
)
def test_the_cache_may_be_damaged_or_gone(root: Path, damage: bytes | None):
    before = known_runs(root)
    cache = root / run_index.NAME
    assert cache.stat().st_mode & 0o077 == 0
    cache.unlink() if damage is None else cache.write_bytes(damage)
    assert known_runs(root) == before
    cache.unlink()
    assert known_runs(root) == before


def test_a_directory_that_goes_or_comes_is_seen(root: Path, tmp_path: Path):
    before = known_runs(root)
    (root / before[0].name).rename(tmp_path / "moved")
    new = make_run(root, NUM_RUNS, tmp_path / "journal")
    assert [run.name for run in known_runs(root)] == [run.name for run in before[1:]] + [new.path.name]


def test_a_folder_that_cannot_be_written_is_read(root: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError

    monkeypatch.setattr(run_index.os, "open", refuse)
    assert len(known_runs(root)) == NUM_RUNS
    assert not (root / run_index.NAME).exists()


def test_two_processes_at_once_leave_a_whole_cache(root: Path):
    script = (
        "import sys; from mltrack.journal import known_runs; print(len({run.name for run in known_runs(sys.argv[1])}))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == [f"{NUM_RUNS}\n"] * 2
    assert len(json.loads((root / run_index.NAME).read_text())["runs"]) == NUM_RUNS
    assert [path.name for path in root.glob(".*")] == [run_index.NAME]


def test_few_runs_need_no_cache(tmp_path: Path):
    JournalWriter(tmp_path / "journal").close()
    make_run(tmp_path / "runs", 0, tmp_path / "journal")
    assert len(known_runs(tmp_path / "runs")) == 1
    assert not (tmp_path / "runs" / run_index.NAME).exists()


def test_what_a_trainer_recorded_after_a_complete_delivery_is_undelivered_and_a_torn_tail_is_not(tmp_path: Path):
    """Everything was killed before the relay of the resumed run had written its first word."""
    found = []
    for number, tail in enumerate((b"", b'a548b97d 3f {"type":"resu', None)):
        journal = tmp_path / f"journal{number}"
        JournalWriter(journal).close()
        directory = make_run(tmp_path / "runs", number, journal)
        if tail is None:
            writer = JournalWriter(directory.journal)
            writer.append(records.resumed(1, 0))
            writer.close()
        else:
            with directory.journal.open("ab") as file:
                file.write(tail)
        found.append(directory)
    assert undelivered(tmp_path / "runs") == [found[2]]


@pytest.mark.parametrize("size", [0, 100_000])
def test_the_end_of_a_journal_tells_state_and_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int):
    """However much was written after the last step: reports, a set of two thousand checkpoints."""
    directory = RunDirectory(tmp_path / "runs" / "one")
    directory.path.mkdir(parents=True)
    directory.write_run(RunInfo(local_id="one"))
    tail = [records.tags({"note": "x" * size}), records.metrics(3, {"epoch/train_loss": 1.0}, {"epoch/seconds": 1.0})]
    endings = ([], [records.end("KILLED", 130)], [records.resumed(5, 0)], [records.end("FINISHED", 0)])
    writer = JournalWriter(directory.journal)
    for step in range(1, 8):
        writer.append(records.metrics(step, {"train_loss": 1.0}, {}))
    for ending, state in zip(endings, ("FAILED", "KILLED", "FAILED", "FINISHED"), strict=True):
        for record in ending + tail:
            writer.append(record)
        list_runs(str(tmp_path / "runs"), "json", "false", None)
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["state"], row["steps"]) == (state, 7)
    writer.close()
