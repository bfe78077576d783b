"""Token ids from the cache are those that the tokenizer would make now: whoever builds at once, is killed, or damages a
file.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cached_tokens
import commands
import numpy as np
import pytest
from cached_tokens import encoder, records
from tracked_runs import kill, until
from transformers import PreTrainedTokenizer

from mltrack.data import token_cache
from mltrack.data.encoding import Encoder
from mltrack.data.token_cache import TokenRows, token_rows
from mltrack.records.record import Record
from mltrack.records.row_cache import num_bytes
from mltrack.tasks import TaskType


class Built:
    """A progress callback that tells whether anything was tokenized."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, done: int, total: int) -> None:
        self.calls += 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(found: TokenRows, expected: TokenRows) -> bool:
    return all(
        np.array_equal(getattr(found, name), getattr(expected, name))
        for name in ("ids", "starts", "lengths", "num_prompt", "full_lengths")
    )


def kept(cache: Path, pattern: str = "tokens-*") -> list[Path]:
    return sorted(path for path in cache.glob(pattern) if path.suffix != ".lock")


def built_by(make: Callable[[Built], TokenRows]) -> tuple[TokenRows, bool]:
    built = Built()
    return make(built), built.calls > 0


def start_builder(folder: Path, name: str) -> subprocess.Popen[str]:
    words = [sys.executable, cached_tokens.__file__, str(folder), name]
    return subprocess.Popen(
        words, env=commands.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def answer(builder: subprocess.Popen[str]) -> dict[str, object]:
    out, errors = builder.communicate(timeout=120)
    assert builder.returncode == 0, errors
    told: dict[str, object] = json.loads(out)
    return told


def test_two_builders_at_once_make_it_once(cache: Path, tmp_path: Path) -> None:
    first = start_builder(tmp_path, "first")
    until((tmp_path / "first-builds").exists, "the first builder")
    second = start_builder(tmp_path, "second")
    until((tmp_path / "second-begins").exists, "the second builder")
    (tmp_path / "go").touch()
    expected = token_rows(records(), encoder(), cache=False)
    assert [answer(first), answer(second)] == [
        {"built": built, "sum": int(expected.ids.sum()), "mapped": True, "readers": []} for built in (True, False)
    ]
    assert len(kept(cache)) == 1
    assert kept(cache, ".tokens-*") == []
    # "readers": a start, cached or not, imports neither datasets nor pyarrow nor pandas


def test_a_builder_that_is_killed_leaves_nothing_in_the_way(cache: Path, tmp_path: Path) -> None:
    builder = start_builder(tmp_path, "killed")
    until((tmp_path / "killed-builds").exists, "the builder")
    kill(builder.pid)
    builder.communicate()
    assert (kept(cache), len(kept(cache, ".tokens-*"))) == ([], 1), "half a file under another name"
    rows, built = built_by(lambda built: token_rows(records(), encoder(), progress=built))
    assert built
    assert same(rows, token_rows(records(), encoder(), cache=False))
    assert (len(kept(cache)), kept(cache, ".tokens-*")) == (1, [])


def test_what_another_builder_left_is_removed_but_not_while_it_builds(cache: Path, tmp_path: Path) -> None:
    builder = start_builder(tmp_path, "other")
    until((tmp_path / "other-builds").exists, "the builder")
    left = kept(cache, ".tokens-*")
    token_rows(records(), encoder(max_length=16))
    assert kept(cache, ".tokens-*") == left != [], "it is being written"
    kill(builder.pid)
    builder.communicate()
    token_rows(records(), encoder(max_length=24))
    assert kept(cache, ".tokens-*") == []


def test_any_damage_is_seen_and_the_file_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "FEWEST_RECORDS", 20)
    some, made_by = records(20), encoder()
    expected = token_rows(some, made_by, cache=False)
    token_rows(some, made_by)
    (folder,) = kept(cache)
    names = ["checksums.json", "full_lengths.npy", "ids.npy", "lengths.npy", "num_prompt.npy"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        damages = [
            whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
            for bit in (1, 128)
            for at in range(0, len(whole), max(1, len(whole) // 20))
        ]
        damages += [b"", whole[:1], whole[: len(whole) // 2], whole[:-1], b"\0" * len(whole)]
        for damaged in [*damages, None]:
            path.unlink() if damaged is None else path.write_bytes(damaged)
            rows, built = built_by(lambda built: token_rows(some, made_by, progress=built))
            assert built
            assert same(rows, expected)
            assert path.read_bytes() == whole
    assert not built_by(lambda built: token_rows(some, made_by, progress=built))[1]


def test_each_of_what_decides_the_ids_has_a_file_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "FEWEST_RECORDS", 20)
    some = records(40)
    ways = {
        "as it is": (some, encoder()),
        "another tokenizer": (some, encoder(vocab_size=290)),
        "another length": (some, encoder(max_length=16)),
        "another order": (some[::-1], encoder()),
        "another record": ([*some[:-1], Record("pass", None, "Do nothing", "a.jsonl", 40)], encoder()),
        "another description": ([*some[:-1], Record(some[-1].text, None, "Do nothing", "a.jsonl", 40)], encoder()),
    }
    for number, (name, (chosen, made_by)) in enumerate(ways.items(), start=1):
        rows, built = built_by(
            lambda built, chosen=chosen, made_by=made_by: token_rows(chosen, made_by, progress=built)
        )
        assert built, name
        assert same(rows, token_rows(chosen, made_by, cache=False)), name
        assert len(kept(cache)) == number, name
    classifies = [encoder(12, way, task=TaskType.TEXT_CLASSIFICATION) for way in ("head", "tail", "both")]
    for made_by in classifies:
        assert same(token_rows(some, made_by), token_rows(some, made_by, cache=False))
    assert len(kept(cache)) == len(ways) + 3
    for chosen, made_by in [*ways.values(), *((some, one) for one in classifies)]:
        rows, built = built_by(
            lambda built, chosen=chosen, made_by=made_by: token_rows(chosen, made_by, progress=built)
        )
        assert not built
        assert same(rows, token_rows(chosen, made_by, cache=False))
    moved = [Record(record.text, "a label", record.description, "elsewhere.csv", 99) for record in some]
    assert not built_by(lambda built: token_rows(moved, encoder(), progress=built))[1], (
        "where a record stands and its label decide no token"
    )


class InPython(PreTrainedTokenizer):
    """A tokenizer without a backend, one token a character, whose setting decides the ids."""

    vocab_files_names = {}  # noqa: RUF012

    def __init__(self, lower: bool = False, **options: Any):
        self.lower = lower
        self._ids = {chr(code): code - 32 for code in range(32, 127)} | {"<pad>": 95, "<unk>": 96}
        super().__init__(pad_token="<pad>", unk_token="<unk>", **options)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text.lower() if self.lower else text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 96)


def test_a_setting_of_a_tokenizer_that_is_written_in_python_has_a_file_of_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "FEWEST_RECORDS", 20)
    some = [Record(f"DEF F{n}", "a label", None, "a.jsonl", n) for n in range(1, 41)]
    for lower in (False, True):
        made_by = Encoder(InPython(lower), TaskType.TEXT_CLASSIFICATION, 32, "head")
        rows, built = built_by(lambda built, made_by=made_by: token_rows(some, made_by, progress=built))
        assert built
        assert same(rows, token_rows(some, made_by, cache=False))
    elsewhere = InPython(True, name_or_path="elsewhere", model_max_length=9)
    assert not built_by(
        lambda built: token_rows(some, Encoder(elsewhere, TaskType.TEXT_CLASSIFICATION, 32, "head"), progress=built)
    )[1]


def test_a_call_of_the_tokenizer_that_cuts_and_pads_changes_no_key(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "FEWEST_RECORDS", 20)
    made_by = encoder()
    token_rows(records(20), made_by)
    made_by._tokenizer(["x", "x y z"], truncation=True, max_length=4, padding=True)
    assert not built_by(lambda built: token_rows(records(20), made_by, progress=built))[1]


def test_the_folder_is_bounded_and_what_was_used_last_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "FEWEST_RECORDS", 20)
    some = records(40)
    held = [token_rows(some, encoder(max_length=length)) for length in (16, 20, 24)]
    for age, rows in enumerate(held):
        assert rows.path is not None
        os.utime(rows.path, ns=(10**18 - age, 10**18 - age))  # the last one is the oldest
    assert not built_by(lambda built: token_rows(some, encoder(max_length=24), progress=built))[
        1
    ]  # and now it was used
    monkeypatch.setattr(token_cache, "MOST_BYTES", sum(num_bytes(path) for path in kept(cache)))
    newest = token_rows(some, encoder(max_length=20, vocab_size=290))
    left = set(kept(cache))
    assert {newest.path, held[2].path} <= left
    assert held[1].path not in left, "the one that was used longest ago"
    assert same(held[1], token_rows(some, encoder(max_length=20), cache=False)), "who has it mapped still reads it"
    monkeypatch.setattr(token_cache, "MOST_BYTES", 0)
    alone = token_rows(some, encoder(max_length=28))
    assert kept(cache) == [alone.path]


def test_a_folder_that_cannot_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="token ids are not kept .* set MLTRACK_CACHE_DIR to a folder that can"):
        rows = token_rows(records(), encoder())
    assert same(rows, token_rows(records(), encoder(), cache=False))


FULL = """
import json, resource, signal, sys, warnings
sys.path.insert(0, sys.argv[1])
import cached_tokens
from mltrack.data.token_cache import token_rows

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    rows = token_rows(cached_tokens.records(), cached_tokens.encoder())
print(json.dumps({"sum": int(rows.ids.sum()), "path": rows.path, "told": [str(one.message) for one in told if "token ids" in str(one.message)]}))
"""


def test_a_disk_without_room_costs_time_alone(cache: Path) -> None:
    """The file may not grow beyond 20 kB: it is given up in the middle, nothing of it is left, and the ids are the
    same.
    """
    words = [sys.executable, "-c", FULL, str(Path(cached_tokens.__file__).parent)]
    ended = subprocess.run(
        words,
        env=commands.environment(MLTRACK_CACHE_DIR=str(cache)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["sum"] == int(token_rows(records(), encoder(), cache=False).ids.sum())
    (line,) = found["told"]
    assert "token ids are not kept (File too large) but held in memory" in line
    assert (found["path"], kept(cache), kept(cache, ".tokens-*")) == (None, [], [])


def test_few_records_need_no_file(cache: Path) -> None:
    assert token_rows(records(100), encoder()).path is None
    assert kept(cache) == []


def test_a_worker_process_maps_the_file_again(cache: Path) -> None:
    rows = token_rows(records(), encoder())
    packed = pickle.dumps(rows)
    assert len(packed) < rows.lengths.nbytes * 6 + 2000, "no ids in it"
    assert same(pickle.loads(packed), rows)
    assert rows.path is not None
    shutil.rmtree(rows.path)
    assert same(pickle.loads(pickle.dumps(rows)), rows), "of a file that is gone, a copy"
