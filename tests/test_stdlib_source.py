"""The built-in source: the same records each time, made once, whoever asks at the same time."""

from __future__ import annotations

import ast
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from mltrack.data import SECURITY_LEVELS, Record
from mltrack.errors import DatasetError
from mltrack.records.builtin import bandit_labels
from mltrack.records.builtin.bandit_labels import Finding, scan
from mltrack.records.builtin.stdlib_functions import functions_of, library_files, library_folder
from mltrack.records.builtin.stdlib_source import MIN_DESCRIPTION_WORDS, SAFE_PER_FINDING
from mltrack.records.row_cache import cached_rows
from mltrack.tasks import task_named

ASK = """
import json, sys
from mltrack.records.record import content_digest
from mltrack.tasks import task_named
calls = []
records = task_named(sys.argv[1]).builtin_records(lambda *call: calls.append(call))
loaded = [name for name in ("torch", "transformers", "mlflow", "bandit") if name in sys.modules]
print(json.dumps([content_digest(records), calls, [record.number for record in records] == list(range(1, len(records) + 1)), loaded]))
"""


def ask(task: str, cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "MLTRACK_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", ASK, task], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that two processes fill at the same time, the one for the pairs and the one for the levels."""
    folder = tmp_path_factory.mktemp("cache")
    for task in ("code_generation", "security_classification"):
        workers = [ask(task, folder) for _ in range(2)]
        said = [json.loads(worker.communicate(timeout=240)[0]) for worker in workers]
        assert said[0][0] == said[1][0], "two processes at once saw different records"
        assert sorted(bool(calls) for _, calls, _, _ in said) == [
            False,
            True,
        ], "one makes the records, the other waits for them"
        calls = max((calls for _, calls, _, _ in said), key=len)
        total = calls[0][1]
        assert calls == sorted(calls)
        assert calls[-1] == [total, total]
        assert all(numbered for _, _, numbered, _ in said)
        assert all(not loaded for *_, loaded in said)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")], "a temporary file is left"
    return folder


@pytest.fixture
def kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(cache))
    return cache


def untouched(done: int, total: int) -> None:
    raise AssertionError("the cache was not used")


def test_pairs(kept: Path) -> None:
    records = task_named("code_generation").builtin_records(untouched)
    assert 4000 < len(records) < 8000
    assert len({r.text for r in records}) == len(records)
    for record in records:
        (node,) = ast.parse(record.text).body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(node) is None
        assert record.description is not None
        assert len(record.description.split()) >= MIN_DESCRIPTION_WORDS
        assert "\n" not in record.description
    modules = {r.extra["module"] for r in records}
    assert not [m for m in modules if {"test", "tests", "site-packages"} & set(m.split("/"))]
    by_name = {(r.extra["module"], r.extra["function"]): r for r in records}
    dedent = by_name["textwrap.py", "dedent"]
    assert dedent.description == "Remove any common leading whitespace from every line in `text`."
    assert dedent.text.startswith("def dedent(text):\n    # Look for the longest")


def test_levels(kept: Path) -> None:
    records = task_named("security_classification").builtin_records(untouched)
    counts = Counter(r.label for r in records)
    assert set(counts) == set(SECURITY_LEVELS)
    assert counts["safe"] == SAFE_PER_FINDING * (len(records) - counts["safe"])
    assert len({r.text for r in records}) == len(records)
    assert all(bool(r.extra["bandit"]) == (r.label != "safe") for r in records)
    assert "B101" not in {test for r in records for test in r.extra["bandit"]}
    shell = next(r for r in records if (r.extra["module"], r.extra["function"]) == ("imaplib.py", "IMAP4_stream.open"))
    assert (shell.label, shell.extra["bandit"]) == ("critical", ["B602"])


def test_safe_and_unsafe_are_the_same_records(kept: Path) -> None:
    levels, binary = (
        task_named(task).builtin_records(untouched) for task in ("security_classification", "text_classification")
    )

    def rest(records: list[Record]) -> list[tuple[str, str, int]]:
        return [(r.text, r.location, r.number) for r in records]

    assert rest(levels) == rest(binary)
    assert [r.label for r in binary] == ["safe" if r.label == "safe" else "unsafe" for r in levels]


@pytest.mark.parametrize(
    ("severity", "confidence", "level"),
    [
        ("LOW", "LOW", "low"),
        ("LOW", "MEDIUM", "low"),
        ("LOW", "HIGH", "medium"),
        ("MEDIUM", "LOW", "low"),
        ("MEDIUM", "MEDIUM", "medium"),
        ("MEDIUM", "HIGH", "high"),
        ("HIGH", "LOW", "medium"),
        ("HIGH", "MEDIUM", "high"),
        ("HIGH", "HIGH", "critical"),
        ("UNDEFINED", "HIGH", "medium"),
    ],
)
def test_risk_matrix(severity: str, confidence: str, level: str) -> None:
    assert Finding(1, severity, confidence, "B000").level == level


def test_scan_finds_what_bandit_finds(tmp_path: Path) -> None:
    sources = {
        "a.py": "import subprocess\nsubprocess.run(cmd, shell=True)  # nosec\nassert cmd\n",
        "b.py": "x = 1\n",
        "c.py": "def broken(:\n",
        "d.py": "def f(x):\n    return eval(x)\n",
    }
    for name, text in sources.items():
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in sources]
    seen: list[int] = []
    found = scan(files, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 4
    assert list(found) == files
    assert [[(f.line, f.test_id) for f in findings] for findings in found.values()] == [
        [(1, "B404"), (2, "B602")],
        [],
        [],
        [(2, "B307")],
    ]


def test_scan_runs_a_process_for_each_core_of_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []
    most = []

    def scanned(files, processes):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()
        return {file: [] for file in files}

    monkeypatch.setattr(bandit_labels, "_scanned", scanned)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("mltrack.hardware.cpu.cpu_quota", lambda: 1.5)
    files = [tmp_path / f"{number}.py" for number in range(40)]
    for file in files:
        file.write_text("x = 1\n")
    assert list(scan(files, lambda done: None)) == files
    assert max(most) == 2


def test_a_signal_ends_the_scan_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bandit.py").write_text("import time\ntime.sleep(600)\n")
    files = [tmp_path / f"{number}.py" for number in range(40)]
    for file in files:
        file.write_text("x = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    timer = threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        scan(files, lambda done: None)
    assert time.monotonic() - began < 30


def test_a_failing_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bandit.py").write_text("raise ImportError('no bandit here')\n")
    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        DatasetError,
        match="the scan by Bandit ended with exit code 1 \\(ImportError: no bandit here\\); is bandit installed in",
    ):
        scan([tmp_path / "a.py"], lambda done: None)


def test_functions_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import os\n\n@os.cache\ndef first(a):\n    '''One\n    line.\n\n    More.\n    '''\n\n    def inner():\n      "
        "  'Inner.'\n        return a\n    return inner\n\nclass C:\n    async def m(self):\n        'Method.'\n       "
        " return '''\nat column 0'''\n\n    def empty(self):\n        'Nothing.'\n\n    def later(self):\n        raise"
        " NotImplementedError\n\n    def plain(self):\n        return 1\n\nif os:\n    def nested(): 'On one line.';"
        " return 2\n"
    )
    found = {f.name: f for f in functions_of(tmp_path / "a.py", tmp_path)}
    assert list(found) == ["first", "C.plain"]
    assert (
        found["first"].code
        == "@os.cache\ndef first(a):\n    def inner():\n        'Inner.'\n        return a\n    return inner"
    )
    assert (found["first"].summary, found["first"].first_line, found["first"].last_line) == ("One line.", 3, 14)
    assert (found["C.plain"].code, found["C.plain"].summary) == ("def plain(self):\n    return 1", "")


def test_no_tests_and_no_packages_among_the_files() -> None:
    names = [path.relative_to(library_folder()).parts for path in library_files()]
    assert ("json", "decoder.py") in names
    assert not [parts for parts in names if {"test", "tests", "site-packages", "idle_test"} & set(parts)]
    assert names == sorted(names)


def rows(count: int) -> list[list[str]]:
    return [[f"row {n}", "\u00e4"] for n in range(count)]


@pytest.mark.parametrize("damage", ["cut", "empty", "other count", "no gzip", "not json"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path))
    assert cached_rows("x", lambda: rows(50)) == rows(50)
    (path,) = tmp_path.glob("*.gz")
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-20],
            "empty": b"",
            "other count": gzip.compress(b'{"rows": 2}\n["a"]\n'),
            "no gzip": b"x" * 100,
            "not json": gzip.compress(b"hello\n"),
        }[damage]
    )
    assert cached_rows("x", lambda: rows(50)) == rows(50)
    assert path.read_bytes() == whole
    assert cached_rows("x", lambda: rows(1)) == rows(50)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="not kept .* set MLTRACK_CACHE_DIR to a folder that can"):
        assert cached_rows("x", lambda: rows(3)) == rows(3)


def test_a_killed_builder_leaves_no_lock_and_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, time\nfrom mltrack.records.row_cache import cached_rows\ncached_rows('x', lambda: (print('building',"
        " flush=True), time.sleep(600)))"
    )
    environment = {**os.environ, "MLTRACK_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    builder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert builder.stdout is not None
    with builder.stdout as stdout:
        assert stdout.readline() == "building\n"
        builder.kill()
        builder.wait()
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path))
    started = time.monotonic()
    assert cached_rows("x", lambda: rows(3)) == rows(3)
    assert time.monotonic() - started < 30
