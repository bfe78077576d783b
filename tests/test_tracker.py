"""The tracker: statistics, best values, exports, and which value stands when a step comes twice."""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from mltrack import MetricStatistics, TrainingMetricsTracker
from mltrack.errors import TrackingError
from mltrack.journal import DiskFullError, JournalReader, read_journal, records


def test_statistics_equal_the_textbook(tmp_path):
    values = [0.5, -3.25, 7.0, 7.0, 1e-3]
    with TrainingMetricsTracker(tmp_path) as tracker:
        for step, value in enumerate(values, start=1):
            tracker.log_metric("train_loss", value, step=step, epoch=0)
        found = tracker.get_statistics("train_loss")
    assert isinstance(found, MetricStatistics)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.std == pytest.approx(statistics.pstdev(values))
    assert (found.min, found.max, found.count, found.last) == (-3.25, 7.0, 5, 1e-3)


def test_a_nan_is_counted_never_averaged_never_best(tmp_path):
    with TrainingMetricsTracker(tmp_path) as tracker:
        for step, value in enumerate([2.0, math.nan, 1.0, -math.inf], start=1):
            tracker.log_metric("eval_loss", value, step=step)
        found, summary = tracker.get_statistics("eval_loss"), tracker.get_summary()
    assert (found.mean, found.count, found.non_finite) == (1.5, 4, 2)
    assert summary["best_metrics"]["eval_loss"] == {"value": 1.0, "step": 3, "epoch": None}


def test_the_better_direction_is_told_by_the_name_and_can_be_given(tmp_path):
    with TrainingMetricsTracker(tmp_path, directions={"bleu": "max"}) as tracker:
        for step, value in enumerate([0.2, 0.9, 0.4], start=1):
            tracker.log_metrics(
                {"eval_loss": value, "eval_accuracy": value, "eval_macro_f1": value, "bleu": value, "grad_norm": value},
                step=step,
            )
        best = tracker.get_summary()["best_metrics"]
    assert {name: held["step"] for name, held in best.items()} == {
        "eval_loss": 1,
        "eval_accuracy": 2,
        "eval_macro_f1": 2,
        "bleu": 2,
    }


def test_epoch_metrics_are_under_epoch_in_mlflow_and_plain_in_summaries(tmp_path):
    with TrainingMetricsTracker(tmp_path) as tracker:
        tracker.log_epoch_metric("eval_loss", 0.35, epoch=0)
        assert tracker.get_summary()["best_metrics"]["eval_loss"] == {"value": 0.35, "step": 1, "epoch": 0}
        assert tracker.get_statistics("eval_loss").last == 0.35
    points = [record for record in read_journal(tmp_path / "journal") if record["type"] == "metrics"]
    assert points[0]["values"] == {"epoch/eval_loss": 0.35}
    assert points[0]["step"] == 1


@pytest.mark.parametrize(
    "value", [3, 3.0, np.float32(3), np.int64(3), np.array([3.0]), torch.tensor(3.0), torch.tensor([[3]]), Decimal("3")]
)
def test_single_numbers_of_any_kind_are_taken(tmp_path, value):
    with TrainingMetricsTracker(tmp_path) as tracker:
        tracker.log_metric("x", value, step=1)
        assert tracker.get_statistics("x").last == 3.0


@pytest.mark.parametrize("value", ["3", None, True, [1.0], torch.tensor([1.0, 2.0]), np.array([]), {}, 10**400, 1j])
def test_anything_else_is_an_error_that_names_the_metric(tmp_path, value):
    with (
        TrainingMetricsTracker(tmp_path) as tracker,
        pytest.raises(TrackingError, match="metric 'x' must be one number, not "),
    ):
        tracker.log_metric("x", value, step=1)


def test_exports_hold_every_point(tmp_path):
    with TrainingMetricsTracker(tmp_path, experiment_name="codebert") as tracker:
        for step in range(1, 51):
            tracker.log_metrics({"train_loss": 1 / step, "learning_rate": 1e-5}, step=step, epoch=step // 25)
        as_json, as_csv = tracker.export_to_json("metrics.json"), tracker.export_to_csv("sub/metrics.csv")
    content = json.loads(as_json.read_text())
    assert content["summary"]["experiment_name"] == "codebert"
    assert len(content["entries"]) == 100
    rows = list(csv.DictReader(as_csv.open()))
    assert len(rows) == 100
    assert float(rows[-2]["value"]) == 1 / 50


def test_a_dead_run_is_analysed_from_its_journal(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path)
    tracker.log_metrics({"eval_loss": 0.7}, step=10)
    tracker.close()
    again = TrainingMetricsTracker(tmp_path, resume=True)
    again.log_metrics({"eval_loss": 0.6}, step=20)
    assert again.get_statistics("eval_loss").count == 2
    again.close()


def test_an_earlier_journal_is_set_aside_not_lost(tmp_path):
    for value in (1.0, 2.0, 3.0):
        with TrainingMetricsTracker(tmp_path) as tracker:
            tracker.log_metric("x", value, step=1)
    found = [
        next(record for record in read_journal(tmp_path / name / "journal") if record["type"] == "metrics")["values"][
            "x"
        ]
        for name in ("earlier-run-1", "earlier-run-2", "")
    ]
    assert found == [1.0, 2.0, 3.0]


def test_of_a_step_that_comes_again_the_first_value_stands_and_drift_is_named(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path)
    for step in range(1, 6):
        tracker.log_metrics({"train_loss": float(step), "tokens_per_second": 100.0}, step=step)
    tracker.close()
    resumed = TrainingMetricsTracker(tmp_path, resume=True)
    resumed.resume_from(step=3, epoch=0)
    resumed.log_metrics({"train_loss": 4.0, "tokens_per_second": 90.0}, step=4)
    resumed.log_metrics({"train_loss": 5.5, "tokens_per_second": 90.0}, step=5)
    resumed.log_metrics({"train_loss": 6.0, "tokens_per_second": 90.0}, step=6)
    resumed.close()
    recorded = read_journal(tmp_path / "journal")
    losses = [(record["step"], record["values"]["train_loss"]) for record in recorded if record["type"] == "metrics"]
    assert losses == [(step, float(step)) for step in range(1, 7)]
    drifts = [record for record in recorded if record["type"] == "drift"]
    assert [(drift["step"], drift["values"]) for drift in drifts] == [(5, {"train_loss": [5.0, 5.5]})]
    assert [record["values"] for record in recorded if record["type"] == "tags"] == [
        {"mltrack.resume_drift": "train_loss"}
    ]


def test_statistics_of_an_unknown_metric_name_those_that_there_are(tmp_path):
    with TrainingMetricsTracker(tmp_path) as tracker:
        tracker.log_metric("train_loss", 1.0, step=1)
        with pytest.raises(TrackingError, match="'trian_loss'; use train_loss"):
            tracker.get_statistics("trian_loss")


def test_an_exception_in_the_with_block_ends_the_run_as_failed(tmp_path):
    def loop():
        with TrainingMetricsTracker(tmp_path) as tracker:
            tracker.log_metric("x", 1.0, step=1)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        loop()
    assert read_journal(tmp_path / "journal")[-1]["status"] == "FAILED"


def test_the_fast_way_writes_what_json_would(tmp_path):
    names = ('quoted " name', "newline\nname", "acc\u00e9", "train_loss", "tokens_per_second")
    for step, value in enumerate((math.nan, math.inf, -math.inf, 1e-320, 0.1, -0.0, 12345678901234567890.0), start=1):
        with TrainingMetricsTracker(tmp_path / str(step)) as tracker:
            tracker.log_metrics(dict.fromkeys(names, value), step=step, epoch=None if step % 2 else step)
        _, written, *_ = JournalReader(tracker.directory.journal).read_new()
        points = dict.fromkeys(names[:4], value)
        expected = records.metrics(step, points, {names[4]: value}, epoch=None if step % 2 else step)
        assert json.dumps(written) == json.dumps({**expected, "time_ms": written["time_ms"]})


def test_a_refused_value_leaves_no_trace_of_its_call(tmp_path):
    with TrainingMetricsTracker(tmp_path) as tracker:
        with pytest.raises(TrackingError):
            tracker.log_metrics({"first": 1.0, "second": "text"}, step=1)
        assert tracker.get_summary()["totals"] == {"metrics": 0, "points": 0}
    assert [record["type"] for record in JournalReader(tracker.directory.journal).read_new()] == ["journal", "end"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("option", ["stop", "continue"])
def test_a_full_disk_stops_the_loop_or_is_told_once_as_the_option_says(tmp_path, option):
    tracker = TrainingMetricsTracker(tmp_path, on_disk_full=option)
    tracker.log_metric("x", 1.0, step=1)
    tracker._journal.sync()
    descriptor = tracker._journal._fd
    good, full = os.dup(descriptor), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    if option == "stop":
        with pytest.raises(DiskFullError, match="No space left on device; what was written before is intact"):
            tracker.log_metric("x", 2.0, step=2)
    else:
        with pytest.warns(UserWarning, match=r"No space left on device.*on_disk_full=continue"):
            tracker.log_metric("x", 2.0, step=2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tracker.log_metric("x", 2.0, step=3)
        assert tracker.lost_records == 2
    os.dup2(good, descriptor)
    tracker.log_metric("x", 3.0, step=12)
    tracker.close()
    os.close(good)
    os.close(full)
    found = [record["step"] for record in read_journal(tmp_path / "journal") if record["type"] == "metrics"]
    assert found == [1, 12]
