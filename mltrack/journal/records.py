"""The records of a journal, as plain dictionaries with a `type`.

Invariant: a timestamp is fixed when the record is made, so sending it twice stores it once.

| type | fields besides `type` and `time_ms` |
|---|---|
| journal | format_version, mltrack_version |
| metrics | step, epoch or null, values {name: number}, timing {name: number} |
| drift | step, values {name: [first value, later value]} |
| params | values {name: text} |
| tags | values {name: text} |
| inputs | datasets [{name, digest, source, context, profile}] |
| artifact | path (relative to the run directory), artifact_path (folder or empty) |
| checkpoints | kept [{step, epoch, metric_name, metric_value, metrics, path, reasons}], best_step |
| checkpoints_changed | kept [as in checkpoints: the new and changed ones], gone [step], best_step, whole_ms, number |
| model | step, path, registered_name, promote, metrics, tags, description |
| resumed | step, epoch |
| outcome | status, exit_code |
| end | status, exit_code |
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from mltrack.journal.shape import LARGEST, misfit, shown

FORMAT_VERSION = 2
"""2 has `checkpoints_changed`, which a reader must know: it names checkpoints that no other record names."""

EPOCH_PREFIX = "epoch/"
"""Prefix of metrics whose steps are finished epochs; all others count optimizer steps."""
LOSS_PREFIX = "Loss/"
"""Prefix of the two losses at each evaluation, side by side: the mean of the epoch so far, and the evaluation's.
MLflow's UI sorts sections by their prefix, capitals first: they are the first charts of a run.
"""
COSTS = frozenset(
    f"system/{name}"
    for name in ("data_wait_ms", "eval_seconds", "checkpoint_stall_ms", "checkpoint_write_ms", "checkpoint_bytes")
)
"""What the parts of a training cost. MLflow's UI shows `system/` on a tab of its own, so the loss comes first."""

Record = dict[str, Any]
_FLOAT = frozenset((float,))

_RETAINED = {
    "step": int,
    "epoch": int,
    "metric_name": str,
    "metric_value": float | None,
    "metrics": dict[str, float],
    "path": str,
    "reasons": list[str],
    "created_ms": int | None,
}
_ENDING = {"status": Literal["FINISHED", "FAILED", "KILLED"], "exit_code": int}
SHAPES: dict[str, dict[str, Any]] = {
    "journal": {"format_version": int},
    "metrics": {"step": int, "epoch": int | None, "values": dict[str, float], "timing": dict[str, float]},
    "drift": {"step": int, "values": dict[str, list[float]]},
    "params": {"values": dict[str, str]},
    "tags": {"values": dict[str, str]},
    "inputs": {"datasets": [{"name": str, "digest": str}]},
    "artifact": {"path": str, "artifact_path": str},
    "checkpoints": {"kept": [_RETAINED], "best_step": int | None},
    "checkpoints_changed": {
        "kept": [_RETAINED],
        "gone": list[int],
        "best_step": int | None,
        "whole_ms": int,
        "number": int,
    },
    "model": {"step": int, "registered_name": str, "promote": str, "tags": dict[str, Any], "description": str},
    "resumed": {"step": int, "epoch": int},
    "outcome": _ENDING,
    "end": _ENDING,
}
"""{type: {field: type hint}} of the fields that readers of a record rely on, besides `time_ms`."""


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def problem(record: Record) -> str | None:
    """Why a record cannot be used, in one line; None if it can."""
    if _is_plain(record):
        return None
    kind, time_ms = record.get("type"), record.get("time_ms")
    if not isinstance(kind, str) or kind not in SHAPES:
        return f"a record of unknown type {shown(kind)}"
    if kind == "metrics" and type(time_ms) is int:  # for a point, the server checks the time and names the point
        time_ms = 0
    return misfit({**record, "time_ms": time_ms}, {"time_ms": int, **SHAPES[kind]}, kind)


def _is_plain(record: Record) -> bool:
    """True for records of points as the tracker writes them: a fast check, since they are nearly all of a journal."""
    step, epoch, values, timing = record.get("step"), record.get("epoch"), record.get("values"), record.get("timing")
    return (
        record.get("type") == "metrics"
        and type(record.get("time_ms")) is type(step) is int
        and (epoch is None or type(epoch) is int)
        and type(values) is type(timing) is dict
        and _FLOAT.issuperset(map(type, values.values()))
        and _FLOAT.issuperset(map(type, timing.values()))
        and max(abs(step), abs(epoch or 0), abs(record["time_ms"])) <= LARGEST
    )


def journal_header(mltrack_version: str) -> Record:
    """The first record of a file."""
    return {
        "type": "journal",
        "time_ms": now_ms(),
        "format_version": FORMAT_VERSION,
        "mltrack_version": mltrack_version,
    }


def metrics(step: int, values: Mapping[str, float], timing: Mapping[str, float], *, epoch: int | None = None) -> Record:
    """Points of one step: `values` are deterministic, `timing` are not."""
    return {
        "type": "metrics",
        "time_ms": now_ms(),
        "step": step,
        "epoch": epoch,
        "values": dict(values),
        "timing": dict(timing),
    }


def metrics_json(step: int, epoch: int | None, time_ms: int, values: str, timing: str) -> str:
    """The JSON of such a record, with its points as JSON members: three times as fast, for the training loop."""
    shown = "null" if epoch is None else epoch
    head = f'"type":"metrics","time_ms":{time_ms},"step":{step},"epoch":{shown}'
    return f'{{{head},"values":{{{values}}},"timing":{{{timing}}}}}'


def json_number(value: float) -> str:
    """As Python's json writes it."""
    return float.__repr__(value) if math.isfinite(value) else json.dumps(value)


def drift(step: int, values: Mapping[str, tuple[float, float]]) -> Record:
    """Deterministic metrics that differed when a step was computed again."""
    return {
        "type": "drift",
        "time_ms": now_ms(),
        "step": step,
        "values": {name: list(pair) for name, pair in values.items()},
    }


def params(values: Mapping[str, str]) -> Record:
    """Parameters as the user typed them."""
    return {"type": "params", "time_ms": now_ms(), "values": dict(values)}


def tags(values: Mapping[str, str]) -> Record:
    """Tags of the run."""
    return {"type": "tags", "time_ms": now_ms(), "values": dict(values)}


def inputs(datasets: Iterable[Mapping[str, Any]]) -> Record:
    """The data sets that the run reads."""
    return {"type": "inputs", "time_ms": now_ms(), "datasets": [dict(dataset) for dataset in datasets]}


def artifact(path: str, artifact_path: str = "") -> Record:
    """A file of the run directory that goes to the artifact store."""
    return {"type": "artifact", "time_ms": now_ms(), "path": path, "artifact_path": artifact_path}


def checkpoints(kept: Sequence[Mapping[str, Any]], best_step: int | None) -> Record:
    """The whole set of kept checkpoints; any other is gone."""
    return {"type": "checkpoints", "time_ms": now_ms(), "kept": [dict(one) for one in kept], "best_step": best_step}


def checkpoints_changed(
    kept: Sequence[Mapping[str, Any]], gone: Sequence[int], best_step: int | None, *, whole_ms: int, number: int
) -> Record:
    """A change of that set: checkpoints that are new or have changed, and steps that are gone.

    Args:
        whole_ms: `time_ms` of the whole set that this changes.
        number: of this change since then, the first is 1; a gap tells a reader that a record was lost.
    """
    described = [dict(one) for one in kept]
    return {
        "type": "checkpoints_changed",
        "time_ms": now_ms(),
        "kept": described,
        "gone": list(gone),
        "best_step": best_step,
        "whole_ms": whole_ms,
        "number": number,
    }


def model(**fields: Any) -> Record:
    """The final model of the run, to be registered."""
    return {"type": "model", "time_ms": now_ms(), **fields}


def resumed(step: int, epoch: int) -> Record:
    """The checkpoint from which the run continues."""
    return {"type": "resumed", "time_ms": now_ms(), "step": step, "epoch": epoch}


def outcome(status: str, exit_code: int) -> Record:
    """The result of the run before its last parts (reports, exports); it counts if no end is recorded."""
    return {"type": "outcome", "time_ms": now_ms(), "status": status, "exit_code": exit_code}


def end(status: str, exit_code: int) -> Record:
    """The run is over: FINISHED, FAILED or KILLED."""
    return {"type": "end", "time_ms": now_ms(), "status": status, "exit_code": exit_code}
