"""The figures and the report behind them."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from mltrack.evaluation import classification_report, confusion_matrix_figure, learning_curves_figure
from mltrack.evaluation.figures import MAX_CLASSES, _thinned, token_lengths_figure

LEVELS = ["safe", "low", "medium", "high", "critical"]


def pixels(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_the_report_is_json_and_counts_right():
    labels, predictions = [0, 0, 1, 1, 3], [0, 1, 1, 1, 3]
    report = json.loads(json.dumps(classification_report(labels, predictions, LEVELS)))
    assert report["classes"]["low"] == {"precision": 2 / 3, "recall": 1.0, "f1": pytest.approx(0.8), "support": 2}
    assert report["classes"]["medium"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert report["confusion_matrix"]["labels"] == LEVELS
    assert report["confusion_matrix"]["matrix"][0] == [1, 1, 0, 0, 0]
    assert report["overall"]["accuracy"] == 0.8
    assert report["records"] == 5


def test_the_report_of_nothing_is_a_report():
    assert classification_report([], [], ["a", "b"])["confusion_matrix"]["matrix"] == [[0, 0], [0, 0]]


@pytest.mark.parametrize("labels", [["safe", "unsafe"], LEVELS, [f"a rather long class name {i}" for i in range(12)]])
def test_a_confusion_matrix_is_drawn(tmp_path: Path, labels: list[str]):
    matrix = [[(3 * row + column) % 7 * (row != 1) for column in range(len(labels))] for row in range(len(labels))]
    width, height = pixels(confusion_matrix_figure(matrix, labels, tmp_path / "deep" / "confusion.png"))
    assert width > 400
    assert height > 400
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["confusion.png"]


@pytest.mark.parametrize("count", [21, MAX_CLASSES, MAX_CLASSES + 1, 300, 100_000])
def test_a_confusion_matrix_of_many_classes_is_small_or_none(tmp_path: Path, count: int):
    matrix = [[1] * count for _ in range(count)] if count <= 300 else None
    drawn = confusion_matrix_figure(
        matrix, [f"a rather long class name {i}" for i in range(count)], tmp_path / "matrix.png"
    )
    assert (drawn is not None) == (count <= MAX_CLASSES)
    if drawn is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert max(pixels(drawn)) < 2500


def test_a_report_of_very_many_classes_names_the_most_frequent_pairs():
    count = 30_000
    labels = [i % count for i in range(4 * count)]
    report = classification_report(
        labels, [0 if i % count < 3 else i % count for i in range(4 * count)], [str(i) for i in range(count)]
    )
    confusions = report["confusion_matrix"]
    assert len(confusions["pairs"]) == 1000
    assert sum(pair["count"] for pair in confusions["pairs"]) == 4000
    assert len(report["classes"]) == len(confusions["labels"]) == count


def test_a_long_curve_is_drawn_of_evenly_spread_points_up_to_its_last():
    for count in (1, 2000, 2001, 1_000_003):
        thinned = _thinned([(step, 0.0) for step in range(1, count + 1)])
        assert len(thinned) <= 2000
        assert thinned[-1] == (count, 0.0)
        assert len({after[0] - before[0] for before, after in pairwise(thinned)}) <= 1


def test_learning_curves_are_drawn_without_global_state(tmp_path: Path):
    loaded = "matplotlib.pyplot" in sys.modules
    steps = range(1, 301)
    history = {
        "train_loss": [(step, 3 / math.sqrt(step) if step != 50 else math.nan) for step in steps],
        "eval_loss": [(100, 0.6), (200, 0.5), (300, 0.45)],
        "eval_macro_f1": [(100, 0.4), (200, 0.5), (300, 0.6)],
        "learning_rate": [(step, 1e-3 * step / 300) for step in steps],
        "eval_perplexity": [(300, math.inf)],
    }
    width, height = pixels(learning_curves_figure(history, tmp_path / "curves.png"))
    assert width > 800
    assert height > 400
    assert ("matplotlib.pyplot" in sys.modules) == loaded


@pytest.mark.parametrize("history", [{}, {"train_loss": []}, {"train_loss": [(1, 2.0)]}])
def test_short_histories_are_drawn_too(tmp_path: Path, history: dict):
    pixels(learning_curves_figure(history, tmp_path / "curves.png"))


@pytest.mark.parametrize(
    "lengths",
    [
        {"training": [1]},
        {"training": [5, 7, 7, 90_000], "evaluation": [3]},
        {"training": list(range(1, 3000)), "evaluation": [255, 256, 257]},
    ],
)
def test_the_lengths_of_records_are_drawn(tmp_path: Path, lengths: dict):
    width, height = pixels(token_lengths_figure(lengths, 256, tmp_path / "figures" / "lengths.png"))
    assert width > 600
    assert height > 250 * len(lengths)
