"""`mltrack data inspect` says what is in a data set before anything is trained on it; a run keeps the same lengths as a
figure.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mltrack import DatasetLoader, TrainModelRequest, TrainModelUseCase
from mltrack.cli import run
from mltrack.data import overview as inspection
from mltrack.data.overview import histogram, inspect_records
from mltrack.data.token_cache import FEWEST_RECORDS
from mltrack.journal import read_journal
from mltrack.models import resolve_model

FUNCTIONS = [
    {"code": f"def f{n}(x):\n    return {' + '.join('x' for _ in range(n % 60 + 1))}\n", "label": "abc"[n % 3]}
    for n in range(180)
]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_person_sees_counts_lengths_and_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [*FUNCTIONS, FUNCTIONS[0]])
    assert run(["data", "inspect", str(path), "--max-length", "32"]) == 0
    shown = capsys.readouterr().out
    assert f"source      {path}\n" in shown
    assert "task        text_classification (another one: --task)\n" in shown
    assert "records     181, 1 of them copies of another\n" in shown
    assert "are longer than max_length=32\n" in shown
    lines = shown.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith(("a ", "b ", "c "))] == [
        ["a", "61", "33.7%"],
        ["b", "60", "33.1%"],
        ["c", "60", "33.1%"],
    ]
    assert [line for line in lines if line.startswith(f"{path}: record ")] == [
        f"{path}: record {n}, label '{label}'" for n, label in ((1, "a"), (2, "b"), (3, "c"))
    ]
    assert "    def f0(x):" in lines
    assert any(line.rstrip().endswith("####") for line in lines)
    assert "\x1b" not in shown


def test_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [*FUNCTIONS, {"code": " ", "label": "a"}])
    assert (
        run(
            [
                "data",
                "inspect",
                str(path),
                "--output",
                "json",
                "--on-bad-record",
                "skip",
                "--model-name",
                "scratch:tiny",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["distinct"], found["read"], found["skipped"], found["classes"]) == (
        180,
        180,
        181,
        1,
        {"a": 60, "b": 60, "c": 60},
    )
    assert found["digest"] == DatasetLoader(path, on_bad_record="skip").get_info()["digest"]
    assert sum(count for _, _, count in found["token_histogram"]) == 180
    (bad,) = found["bad_records"]
    assert bad.startswith(f"{path}, record 181, field 'code': ")
    assert "blank" in bad


def test_other_names_and_a_pair_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = write(tmp_path / "named.jsonl", [{"func": row["code"], "target": n % 2} for n, row in enumerate(FUNCTIONS)])
    words = [
        "data",
        "inspect",
        str(named),
        "--columns",
        "code=func,label=target",
        "--labels",
        "0=safe,1=unsafe",
        "--output",
        "json",
    ]
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == {"safe": 90, "unsafe": 90}
    pairs = write(
        tmp_path / "pairs.jsonl",
        [{"description": f"Return x, {n}", "code": row["code"]} for n, row in enumerate(FUNCTIONS)],
    )
    assert run(["data", "inspect", str(pairs), "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "code_generation"


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--task", "nothing"], ["task", "'nothing'", "code_generation"]),
        (["--columns", "x=y"], ["columns", "'x'", "label"]),
        (["--max-length", "3"], ["max_length", ">= 8", "3"]),
        (["--output", "xml"], ["output", "'xml'", "json"]),
        (["--model-name", "scratch:huge"], ["model_name", "'scratch:huge'", "scratch:tiny"]),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], facts: list[str]
) -> None:
    assert run(["data", "inspect", str(write(tmp_path / "a.jsonl", FUNCTIONS)), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [fact for fact in facts if fact not in line] == [], line


def test_the_lengths_are_those_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", FUNCTIONS)
    source = resolve_model("scratch:tiny", "text_classification")
    source.train_tokenizer([row["code"] for row in FUNCTIONS])
    loader = DatasetLoader(path, source.tokenizer, max_length=32)
    found = inspect_records(loader, source.tokenizer)
    dataset = loader.load()
    assert found.statistics["tokens"] == loader.get_statistics()["tokens"]
    assert found.statistics["truncated"] == dataset.truncated / len(dataset)
    assert found.histogram == histogram(dataset.full_lengths)
    monkeypatch.setattr(inspection, "MOST_TOKENIZED", 50)
    assert inspect_records(loader, source.tokenizer).statistics["tokenized"] == 50


@pytest.mark.parametrize("lengths", [[1], [7] * 5, [0, 1, 2, 3], list(range(1000)), [5] * 990 + [100_000] * 10])
def test_a_histogram_counts_each_record_once(lengths: list[int]) -> None:
    bars = histogram(np.array(lengths))
    assert sum(bar.count for bar in bars) == len(lengths)
    assert len(bars) <= 17
    assert all(after.first == before.last + 1 for before, after in pairwise(bars))
    for bar in bars:
        assert bar.count == sum(bar.first <= length <= bar.last for length in lengths)


def test_a_run_shows_how_far_it_is_and_keeps_the_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizing many records has its progress; what is too long is a metric, above 20 % a warning, and the histogram
    is a figure of the run.
    """
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path / "cache"))
    count = FEWEST_RECORDS + 500
    rows = [
        {"code": f"x{n} = {n}" if n % 3 else f"y = 'a long text of number {n}'", "label": "ab"[n % 2]}
        for n in range(count)
    ]
    said: list[str] = []
    told: list[tuple[str, int, int]] = []
    request = TrainModelRequest(
        dataset_path=str(write(tmp_path / "a.jsonl", rows)),
        task="text_classification",
        model_name="scratch:tiny",
        max_length=8,
        max_steps=1,
        batch_size=4,
        validation_split=0.01,
        device="cpu",
        offline=True,
        output_dir=str(tmp_path / "runs"),
    )
    response = TrainModelUseCase(notice=said.append, progress=lambda *done: told.append(done)).execute(request)
    assert response.success, response.errors
    tokenized = [(done, total) for what, done, total in told if what == "tokenizing"]
    assert tokenized == [(1000, count - 25), (2000, count - 25), (count - 25, count - 25)]
    assert [line for line in said if "records are longer than max_length=8 tokens and were cut" in line]
    assert response.metrics_file is not None
    folder = Path(response.metrics_file).parent
    journal = list(read_journal(folder / "journal"))
    summary = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    assert 0.2 < summary["training"]["truncated_share"] <= 0.5
    assert "token_lengths.png" in json.dumps([record for record in journal if record["type"] == "artifact"])
    assert next(folder.rglob("token_lengths.png")).read_bytes().startswith(b"\x89PNG")
    told.clear()
    assert TrainModelUseCase(progress=lambda *done: told.append(done)).execute(request).success
    assert "tokenizing" not in {what for what, _, _ in told}, "the second start takes them from the cache"
