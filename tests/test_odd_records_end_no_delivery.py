"""A journal, a run.json or a delivery.json with anything in it ends no delivery: an odd record is refused and named, an
odd progress is none.
"""

from __future__ import annotations

import json
import math
import uuid
from pathlib import Path
from typing import Any

import pytest
from ready_store import ready_store
from tracked_runs import assert_complete, client, held_points

from mltrack import relay
from mltrack.errors import TrackingError
from mltrack.journal import JournalReader, JournalWriter, RunDirectory, RunInfo, find_run_directories, records
from mltrack.relay import Progress
from mltrack.tracking import TrainingMetricsTracker

GOOD: dict[str, dict[str, Any]] = {
    "metrics": {"step": 1, "epoch": 0, "values": {"x": 1.0}, "timing": {}},
    "drift": {"step": 1, "values": {"x": [1.0, 2.0]}},
    "params": {"values": {"p": "1"}},
    "tags": {"values": {"t": "1"}},
    "inputs": {"datasets": [{"name": "d", "digest": "0"}]},
    "artifact": {"path": "a.txt", "artifact_path": ""},
    "checkpoints": {"kept": [], "best_step": None},
    "model": {"step": 1, "registered_name": "n", "promote": "never", "tags": {}, "description": ""},
    "resumed": {"step": 1, "epoch": 0},
    "end": {"status": "FINISHED", "exit_code": 0},
}
ODD_VALUES: list[Any] = [None, 5, 2.5, True, "text", [], [5], {}, {"x": None}, {"x": "1"}, 2**70, math.nan]
KEPT = {"step": 1, "epoch": 0, "metric_name": "x", "metric_value": 1.0, "metrics": {}, "path": "a", "reasons": []}


def odd_records() -> list[dict[str, Any]]:
    """Each type with each field missing or odd, as far as its readers count on that field."""
    made: list[dict[str, Any]] = [{}, {"type": None}, {"type": 5}, {"type": ["metrics"]}, {"type": "journal"}]
    for kind, fields in GOOD.items():
        for name in fields:
            made.append({"type": kind, **{other: value for other, value in fields.items() if other != name}})
            made.extend({"type": kind, **fields, name: value} for value in ODD_VALUES)
        made.append({"type": kind, **fields, "time_ms": "now"})
    made.extend(
        {"type": "checkpoints", "kept": [{**KEPT, name: value}], "best_step": 1}
        for name in KEPT
        for value in ODD_VALUES
    )
    made.extend(
        {"type": "inputs", "datasets": [{"name": "d", "digest": value}]} for value in ODD_VALUES if value != "text"
    )
    whole = [{"time_ms": 1, **one} for one in made]
    return [one for one in whole if records.problem(one) is not None]


def ended_run(folder: Path, uri: str, between: list[dict[str, Any]]) -> RunDirectory:
    tracker = TrainingMetricsTracker(
        folder, run=RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms())
    )
    tracker.log_metric("train_loss", 1.0, step=1)
    for one in between:
        tracker._journal.append(one)
    tracker.log_metric("train_loss", 0.5, step=2)
    tracker.close()
    writer = JournalWriter(folder / "journal")
    writer.append({"type": "end", "time_ms": 1})  # behind the end, too
    writer.append({"type": "unheard_of", "time_ms": 1})
    writer.append({"type": "__init__", "time_ms": 1})
    writer.close()
    return tracker.directory


def test_every_odd_record_is_named_and_costs_itself_alone(tmp_path: Path) -> None:
    odd, uri = odd_records(), ready_store(tmp_path)
    assert len(odd) > 200
    directory = ended_run(tmp_path / "run", uri, odd)
    progress = relay.sync(directory)
    assert progress.complete
    assert progress.offset == directory.journal.stat().st_size
    assert len(progress.failed) == 100
    assert all(line.startswith("record at byte ") and "\n" not in line and len(line) < 300 for line in progress.failed)
    assert [value for value, _, _ in held_points(uri, progress.run_id or "")["train_loss"]] == [1.0, 0.5]
    run = client(uri).get_run(progress.run_id)
    assert run.info.status == "FINISHED"
    assert "mltrack.refused" in run.data.tags
    assert relay.sync(directory).failed == progress.failed, "named once"
    reader = JournalReader(directory.journal)
    assert [record["type"] for record in reader.read_new()] == ["journal", "metrics", "metrics", "end"]
    assert len(reader.odd) == 100
    assert reader.unknown == {"unheard_of", "__init__"}


DAMAGED: list[Any] = [
    [],
    5,
    {"offset": "1"},
    {"offset": -1},
    {"offset": 2**40},
    {"offset": 3},
    {"offset": 1.5},
    {"models": [5]},
    {"failed": "text"},
]
DAMAGED += [
    {"deferred": "12"},
    {"acknowledged_ms": None},
    {"connected_ms": []},
    {"end": "FINISHED"},
    {"saved_ms": {"1": "2"}},
    {"uploading": 5},
    {"complete": "yes"},
]


@pytest.mark.parametrize("content", DAMAGED, ids=str)
def test_a_damaged_progress_is_none(tmp_path: Path, content: Any) -> None:
    directory = RunDirectory(tmp_path)
    JournalWriter(directory.journal).close()
    fine = {"tracking_uri": "here", "offset": directory.journal.stat().st_size, "sent": 7}
    directory.delivery_file.write_text(json.dumps(fine))
    assert Progress.read(directory, "here").sent == 7
    directory.delivery_file.write_text(json.dumps({**fine, **content} if isinstance(content, dict) else content))
    assert Progress.read(directory, "here") == Progress(tracking_uri="here")
    held = directory.read_delivery()
    assert all(type(held.get(name, 0)) is int for name in ("offset", "sent", "acknowledged_ms", "connected_ms")), (
        "the trainer counts with them"
    )


def test_a_delivery_goes_on_from_a_damaged_progress_and_stores_nothing_twice(tmp_path: Path) -> None:
    uri = ready_store(tmp_path)
    directory = ended_run(tmp_path / "run", uri, [])
    relay.sync(directory)
    content = json.loads(directory.delivery_file.read_text())
    for damage in ({"offset": "all of it"}, {"models": 5}, {"offset": content["offset"] - 7}):
        directory.delivery_file.write_text(json.dumps({**content, **damage}))
        relay.sync(directory)
    directory.delivery_file.write_bytes(b"\xff\x00{")
    relay.sync(directory)
    content = json.loads(directory.delivery_file.read_text())
    directory.delivery_file.write_text(json.dumps({**content, "failed": []}))  # the odd record at the end
    assert_complete(directory, uri, status="FINISHED")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"local_id": 5}',
        '{"local_id": "a", "tracking_uri": 5}',
        '{"local_id": "a", "trainer_pid": "x"}',
        "[" * 99999,
    ],
)
def test_an_odd_run_json_is_one_line_and_hides_no_other_run(tmp_path: Path, content: str) -> None:
    good, odd = RunDirectory(tmp_path / "good"), RunDirectory(tmp_path / "odd")
    good.path.mkdir()
    odd.path.mkdir()
    good.write_run(RunInfo(local_id="good"))
    odd.run_file.write_text(content)
    with pytest.raises(TrackingError, match=r"odd.*a run directory that mltrack wrote"):
        odd.read_run()
    assert find_run_directories(tmp_path) == [good]
