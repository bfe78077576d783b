"""Whatever a loop hands to the tracker is recorded so that it can be read back, or refused in one line that names
argument and value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from mltrack import CheckpointManager, TrainingMetricsTracker
from mltrack.errors import CheckpointError, TrackingError
from mltrack.journal import JournalReader

HALF = "\udc80"
"""Half a character, as in a file name that cannot be decoded."""


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


NESTED: list[Any] = []
NESTED.append(NESTED)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]

NO_WHOLE_NUMBERS = [
    2.5,
    math.nan,
    math.inf,
    True,
    None,
    "2",
    b"2",
    [1],
    {},
    1j,
    2**63,
    -(2**64),
    10**5000,
    np.float32(0.5),
    np.nan,
    np.bool_(True),
]
NO_WHOLE_NUMBERS += [
    np.array([1, 2]),
    np.array("3"),
    np.datetime64("2026-01-01"),
    torch.tensor(1.5),
    torch.tensor([1, 2]),
    torch.tensor(True),
    torch.tensor(math.nan),
]
NO_WHOLE_NUMBERS += [
    Decimal("2.5"),
    Decimal("NaN"),
    Decimal("sNaN"),
    Unprintable(),
    object,
    torch.empty(1, device="meta"),
]
WHOLE_NUMBERS = [
    2,
    2.0,
    np.int8(2),
    np.uint64(2),
    np.float32(2),
    np.array(2),
    np.array([[2]]),
    torch.tensor(2),
    torch.tensor([2.0]),
    Decimal(2),
]
DATASET = {"name": "d", "digest": "0"}
KEPT = {"step": 1, "epoch": 0, "metric_name": "x", "metric_value": 1.0, "metrics": {}, "path": "a", "reasons": []}
MODEL = {"step": 1, "path": "a", "registered_name": "n", "promote": "never", "tags": {}, "description": ""}
NO_JSON = [
    {1},
    object(),
    NESTED,
    DEEP,
    10**5000,
    {"a": {1: 2}},
    {(1, 2): 3},
    b"bytes",
    1j,
    Unprintable(),
    [torch.tensor([1.0, 2.0])],
]

Call = Callable[[TrainingMetricsTracker], object]
REFUSED: list[Call] = [
    *[lambda to, value=value: to.log_metric("loss", 1.0, step=value) for value in NO_WHOLE_NUMBERS],
    *[
        lambda to, value=value: to.log_metric("x", 1.0, 1, epoch=value)
        for value in NO_WHOLE_NUMBERS
        if value is not None
    ],
    *[lambda to, value=value: to.log_epoch_metric("x", 1.0, epoch=value) for value in NO_WHOLE_NUMBERS],
    *[lambda to, value=value: to.resume_from(value, 0) for value in NO_WHOLE_NUMBERS],
    *[lambda to, name=name: to.log_metric(name, 1.0, step=1) for name in (5, None, True, b"x", (1,), math.nan)],
    *[lambda to, name=name: to.log_epoch_metric(name, 1.0, epoch=1) for name in (5, None)],
    *[
        lambda to, one=one: to.log_metric("x", one, 1)
        for one in [10**5000, Unprintable(), np.array("3"), np.bool_(True)]
    ],
    *[lambda to, values=values: to.log_metrics(values, 1) for values in (5, None, [("x", 1.0)], "x")],
    lambda to: to.log_epoch_metric("x", 1.0, epoch=2**63 - 1),
    *[
        lambda to, values=values: to.log_params(values)
        for values in (5, None, [("a", 1)], {5: 1}, {None: 1}, {"a": 10**5000})
    ],
    *[lambda to, values=values: to.set_tags(values) for values in (5, None, [("a", 1)], {5: 1}, {(1,): 1})],
    lambda to: to.log_params({"a": Unprintable()}),
    lambda to: to.set_tags({"a": Unprintable()}),
    *[lambda to, value=value: to.log_inputs([{**DATASET, "profile": value}]) for value in NO_JSON],
    *[
        lambda to, one=one: to.log_inputs(one)
        for one in [5, None, "x", DATASET, [5], [{}], [{"name": "d"}], [{**DATASET, "name": 5}]]
    ],
    *[lambda to, path=path: to.log_artifact(path) for path in (5, None, b"x", "nowhere", "a\0b", HALF)],
    *[lambda to, path=path: to.log_artifact(__file__, path) for path in (5, None, "/x", "../x", "a/../../x")],
    *[
        lambda to, one=one: to.log_checkpoints(one, 1)
        for one in [5, None, [5], [{}], [{**KEPT, "step": "1"}], [{**KEPT, "metrics": {"x": "1"}}]]
    ],
    *[lambda to, value=value: to.log_checkpoints([{**KEPT, "metrics": {"x": value}}], 1) for value in NO_JSON],
    lambda to: to.log_checkpoints([KEPT], best_step=1.5),
    *[lambda to, value=value: to.log_model(**{**MODEL, "metrics": value}) for value in NO_JSON],
    lambda to: to.log_model(step=1),
    lambda to: to.log_model(**MODEL, type="metrics"),
    lambda to: to.log_model(**MODEL, time_ms=1),
    lambda to: to.end("DONE"),
    lambda to: to.end("FAILED", exit_code="1"),
]


@pytest.mark.parametrize("call", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_read_back_is_refused_in_one_line_and_leaves_no_record(tmp_path: Path, call: Call) -> None:
    tracker = TrainingMetricsTracker(tmp_path)
    with pytest.raises(TrackingError) as caught:
        call(tracker)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    tracker.log_metric("x", 1.0, step=1)
    tracker._ended = False
    tracker.close()
    reader = JournalReader(tracker.directory.journal)
    assert [record["type"] for record in reader.read_new()] == ["journal", "metrics", "end"]
    assert (reader.damaged, reader.odd) == ([], [])


@pytest.mark.parametrize("value", WHOLE_NUMBERS)
def test_whole_numbers_of_any_kind_are_steps_and_epochs(tmp_path: Path, value: Any) -> None:
    with TrainingMetricsTracker(tmp_path) as tracker:
        tracker.log_metric("x", 1.0, step=value, epoch=value)
        tracker.log_epoch_metric("y", 1.0, epoch=value)
    found = [
        (record["step"], record["epoch"])
        for record in JournalReader(tracker.directory.journal).read_new()
        if record["type"] == "metrics"
    ]
    assert found == [(2, 2), (3, 2)]


def test_the_line_names_argument_and_value(tmp_path: Path) -> None:
    lines = {
        r"^step must be a whole number, not 2.5 \(float\)$": lambda: tracker.log_metric("loss", 1.0, step=2.5),
        r"^epoch must be a whole number, not nan \(float\)$": lambda: tracker.log_metric(
            "loss", 1.0, step=1, epoch=math.nan
        ),
        r"^metric name must be text, not 5 \(int\)$": lambda: tracker.log_metric(5, 1.0, step=1),  # type: ignore[arg-type]
        r"inputs.datasets\[0\].source.parts must be what JSON can hold, not \{1\} \(set\)": lambda: tracker.log_inputs(
            [{**DATASET, "source": {"parts": {1}}}]
        ),
        r"inputs.datasets\[0\] has no digest": lambda: tracker.log_inputs([{"name": "d"}]),
        r"end.status is 'DONE' \(str\), not FINISHED or FAILED or KILLED": lambda: tracker.end("DONE"),
    }
    tracker = TrainingMetricsTracker(tmp_path)
    for line, call in lines.items():
        with pytest.raises(TrackingError, match=line):
            call()
    tracker._ended = False
    tracker.close()


def test_what_json_can_hold_comes_back_as_it_was(tmp_path: Path) -> None:
    given = {
        "name": f"data {HALF}",
        "digest": "0",
        "source": tmp_path / HALF,
        "profile": {"rows": np.int64(3), "mean": torch.tensor(0.5), "of": (1, 2)},
    }
    with TrainingMetricsTracker(tmp_path) as tracker:
        tracker.log_metrics(MappingProxyType({f"loss {HALF}": 1.0}), step=1)
        tracker.log_params({f"p {HALF}": HALF, "path": tmp_path, "none": None})
        tracker.log_inputs(iter([MappingProxyType(given)]))  # type: ignore[arg-type]
        tracker.log_checkpoints([{**KEPT, "metrics": {"eval_loss": np.float32(0.5)}}], best_step=1)
        csv = tracker.export_to_csv()
    found = {record["type"]: record for record in JournalReader(tracker.directory.journal).read_new()}
    assert found["metrics"]["values"] == {f"loss {HALF}": 1.0}
    assert found["params"]["values"] == {f"p {HALF}": HALF, "path": str(tmp_path), "none": "None"}
    assert found["inputs"]["datasets"] == [
        {**given, "source": str(tmp_path / HALF), "profile": {"rows": 3, "mean": 0.5, "of": [1, 2]}}
    ]
    assert found["checkpoints"]["kept"][0]["metrics"] == {"eval_loss": 0.5}
    assert "loss \\udc80" in csv.read_text()


@pytest.mark.parametrize(
    "odd", [{"step": 2.5}, {"epoch": math.nan}, {"step": True}, {"metrics": {"x": "high"}}, {"metric_value": "low"}]
)
def test_a_checkpoint_of_half_a_step_is_refused_too(tmp_path: Path, odd: dict[str, Any]) -> None:
    manager = CheckpointManager(tmp_path)
    with pytest.raises(CheckpointError, match="must be "):
        manager.save_checkpoint(**{"model": torch.nn.Linear(1, 1), "epoch": 0, "step": 1, **odd})
    assert manager.list_checkpoints() == []
