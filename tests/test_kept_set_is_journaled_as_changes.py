"""What a save adds to the journal does not grow with the checkpoints that are kept, and the relay ends with the right
set whatever was damaged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from artifact_stores import ArtifactStore, artifact_store
from hf_folders import encoder_folder
from retained_checkpoints import RetainedRun

from mltrack import CheckpointManager
from mltrack.errors import TrackingError
from mltrack.journal import (
    DiskFullError,
    JournalReader,
    JournalWriter,
    RetainedCheckpoints,
    RunDirectory,
    read_journal,
    records,
    retained_checkpoints,
)
from mltrack.journal.frame import encode
from mltrack.relay import Progress, retained_models, sync
from mltrack.relay.projection import Projection
from mltrack.store import artifacts, connect, models_of_run
from mltrack.tracking import TrainingMetricsTracker

FORMAT_1 = Path(__file__).with_name("journals") / "format-1"


def checkpoint(step: int, *reasons: str, created_ms: int = 1000) -> dict[str, Any]:
    metrics = {"eval_loss": 1 / step, "eval_perplexity": float("nan")}
    described = {
        "step": step,
        "epoch": 0,
        "metric_name": "eval_loss",
        "metric_value": 1 / step,
        "metrics": metrics,
        "path": f"checkpoints/step-{step:08d}",
    }
    return {**described, "created_ms": created_ms + step, "reasons": list(reasons)}


def milestones(last: int) -> list[dict[str, Any]]:
    """What `keep_every=1` keeps after so many steps, each evaluation better than the one before."""
    return [
        checkpoint(step, *["best"] * (step > last - 3), *["latest"] * (step == last), "milestone")
        for step in range(1, last + 1)
    ]


def folded(journal: Sequence[records.Record]) -> RetainedCheckpoints:
    kept = RetainedCheckpoints()
    for record in journal:
        kept = kept.after(record)
    return kept


def said(kept: RetainedCheckpoints) -> str:
    return json.dumps([list(kept.kept.values()), kept.best_step])


def test_a_save_costs_the_same_with_twenty_and_with_many_kept(tmp_path: Path):
    tracker = TrainingMetricsTracker(tmp_path)
    for last in range(1, 151):
        tracker.log_checkpoints([{**one, "path": tmp_path / one["path"]} for one in milestones(last)], best_step=last)
    sets = [record for record in read_journal(tmp_path / "journal") if record["type"].startswith("checkpoints")]
    changes = [record for record in sets if record["type"] == "checkpoints_changed"]
    assert {len(record["kept"]) for record in changes} == {3}, (
        "the new one, the one before it, and the one that is no longer among the best"
    )
    assert max(len(encode(record)) for record in changes) < 2000
    assert len(changes) > 120
    whole = sum(
        len(record["kept"])
        for record in sets
        if record["type"] == "checkpoints" and len(record["kept"]) > retained_checkpoints.SMALL
    )
    assert whole < 2 * 150, "the whole sets together are no more than the checkpoints, twice"
    assert said(folded(sets)) == json.dumps([milestones(150), 150])
    tracker.repeat_checkpoints()
    tracker.repeat_checkpoints()
    *_, before, last = read_journal(tmp_path / "journal")
    assert (before["type"], last["type"]) == ("checkpoints_changed", "checkpoints")
    assert said(folded([last])) == said(folded(sets))
    tracker.close()


def test_a_manager_that_keeps_many_journals_the_new_one(tmp_path: Path):
    from torch import nn

    tracker = TrainingMetricsTracker(tmp_path)
    manager = CheckpointManager(
        tmp_path / "checkpoints", max_checkpoints=1, keep_every=1, on_change=tracker.log_checkpoints
    )
    for step in range(1, retained_checkpoints.SMALL + 4):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=0, step=step, metric_value=1 / step)
    *_, last = read_journal(tmp_path / "journal")
    assert (last["type"], [one["step"] for one in last["kept"]], last["gone"], last["best_step"]) == (
        "checkpoints_changed",
        [step - 1, step],
        [],
        step,
    )
    assert last["kept"][-1]["path"] == f"checkpoints/step-{step:08d}"
    again = TrainingMetricsTracker(tmp_path / "again")
    CheckpointManager(tmp_path / "checkpoints", max_checkpoints=2, on_change=again.log_checkpoints).settle()
    *_, first = read_journal(tmp_path / "again" / "journal")
    assert (first["type"], [one["step"] for one in first["kept"]]) == ("checkpoints", [step - 1, step])
    tracker.close()
    again.close()


def test_whichever_record_is_lost_the_next_whole_set_is_right_and_until_then_the_gap_is_known(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(retained_checkpoints, "SMALL", 2)
    journal: list[records.Record] = []
    kept = RetainedCheckpoints()
    for number, last in enumerate(
        (1, 2, 3, 4, 5, 6, 7, 8, 6, 9, 9), start=1
    ):  # a step less: something was set aside; at the end the same once more
        record = kept.record_of(milestones(last), last) | {"time_ms": number}
        journal.append(record)
        kept = kept.after(record)
        assert said(kept) == json.dumps([milestones(last), last])
    types = [record["type"] for record in journal]
    assert types.count("checkpoints_changed") >= 4
    assert types[-1] == "checkpoints", "said again is said whole"
    for lost in range(len(journal) - 1):
        rest = journal[:lost] + journal[lost + 1 :]
        for end in range(1, len(rest) + 1):
            seen = folded(rest[:end])
            whole = max((at for at in range(end) if rest[at]["type"] == "checkpoints"), default=-1)
            assert seen.has_gap == (
                whole < lost < end and "checkpoints_changed" in {record["type"] for record in rest[lost:end]}
            )
            assert seen.has_gap or end <= lost or end == lost or said(seen) == said(folded(journal[: end + 1])), (
                lost,
                end,
            )
        assert said(folded(rest)) == said(kept)


def test_a_record_that_the_full_disk_did_not_take_is_made_up_for_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retained_checkpoints, "SMALL", 0)
    tracker = TrainingMetricsTracker(tmp_path, on_disk_full="continue")
    tracker.log_checkpoints(milestones(5), best_step=5)

    def full(*_: object) -> None:
        raise DiskFullError("full")

    with monkeypatch.context() as patched:
        patched.setattr(tracker._journal, "append", full)
        with pytest.warns(UserWarning, match="full"):
            tracker.log_checkpoints(milestones(6), best_step=6)
    tracker.log_checkpoints(milestones(7), best_step=7)
    tracker.close()
    kept = folded(read_journal(tmp_path / "journal"))
    assert [one["reasons"] for one in kept.kept.values()] == [one["reasons"] for one in milestones(7)]
    assert not kept.has_gap


def test_a_journal_of_format_1_is_read_and_gets_a_header_before_it_goes_on(tmp_path: Path):
    journal = Path(shutil.copy(FORMAT_1, tmp_path / "journal"))
    held = read_journal(journal)
    assert [record["type"] for record in held].count("checkpoints") == 3
    assert {step: one["reasons"] for step, one in folded(held).kept.items()} == {2: ["best", "latest"]}
    for _ in range(2):
        JournalWriter(journal, mltrack_version="0.2.0").close()
    added = read_journal(journal)[len(held) :]
    assert {(record["type"], record["format_version"]) for record in added} == {("journal", records.FORMAT_VERSION)}


def test_a_newer_journal_is_refused_from_any_offset(tmp_path: Path):
    header = encode({"type": "journal", "format_version": records.FORMAT_VERSION + 1, "mltrack_version": "9.0"})
    (tmp_path / "journal").write_bytes(header + encode(records.end("FINISHED", 0)))
    with pytest.raises(TrackingError, match=r"install mltrack 9\.0 or later"):
        list(JournalReader(tmp_path / "journal", len(header)).read_new())


# -- the relay


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "step-1")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactStore]:
    with artifact_store("local", tmp_path_factory.mktemp("local")) as store:
        yield store


class ChangingRun(RetainedRun):
    """Says what changed, as soon as that can be said."""

    said = RetainedCheckpoints()

    def record(self, *given: records.Record) -> None:
        for one in given:
            if one["type"] == "checkpoints":
                one = self.said.record_of(one["kept"], one["best_step"])
                self.said = self.said.after(one)
            super().record(one)

    def damage_last_record(self) -> None:
        data = bytearray(self.directory.journal.read_bytes())
        data[-10] ^= 1
        self.directory.journal.write_bytes(bytes(data))

    def types(self) -> list[str]:
        return [
            record["type"]
            for record in read_journal(self.directory.journal)
            if record["type"].startswith("checkpoints")
        ]


@pytest.fixture
def run(there: ArtifactStore, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChangingRun:
    monkeypatch.setattr(retained_checkpoints, "SMALL", 0)
    return ChangingRun(tmp_path / "run", there, encoder)


def test_each_relay_that_begins_in_the_middle_holds_the_whole_set(run: ChangingRun):
    for kept in ((1, 2, 3), (1, 2, 3, 4), (1, 4, 5), (1, 5, 6)):
        run.keep(*kept)
        sync(run.directory)
        run.assert_store_holds(*kept)
    assert run.types() == ["checkpoints"] + ["checkpoints_changed"] * 3
    run.keep(5, 6, 7)  # what was never seen by a relay goes as well
    run.keep(6, 7, 8)
    run.end()
    assert sync(run.directory).failed == []
    run.assert_store_holds(6, 7, 8)
    run.directory.delivery_file.unlink()  # from the first byte
    assert sync(run.directory).failed == []
    run.assert_store_holds(6, 7, 8)


def test_while_a_change_is_missing_nothing_is_deleted_and_the_next_whole_set_heals_it(run: ChangingRun):
    run.keep(1, 2, 3, 4)
    sync(run.directory)
    run.keep(2, 3, 4, 5)
    run.damage_last_record()  # nobody reads of step 5, nor that step 1 is gone
    run.keep(3, 4, 5, 6)  # here steps 2 and 6 are named
    sync(run.directory)
    store = connect(run.there.uri)
    assert [row["step"] for row in models_of_run(store, run.run_id)] == [1, 2, 3, 4, 6]
    run.keep(3, 4, 5, 6)  # said again: whole
    run.end()
    assert sync(run.directory).failed == []
    run.assert_store_holds(3, 4, 5, 6)


def test_the_list_of_all_checkpoints_is_stored_once_in_a_while_and_at_the_end(
    run: ChangingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stored = []
    put = artifacts.put_text
    monkeypatch.setattr(
        retained_models.artifacts, "put_text", lambda *given: (stored.append(json.loads(given[2])), put(*given))
    )
    run.keep(1)
    projection = Projection(run.directory, connect(run.there.uri))
    projection.deliver()
    for last in range(2, 7):
        run.keep(1, last)
        projection.deliver()
    assert [[one["step"] for one in index] for index in stored] == [[1]]
    assert not Progress.read(run.directory, run.there.uri).index_is_stored
    run.end()
    sync(run.directory)  # another process: the relay was killed
    assert [[one["step"] for one in index] for index in stored] == [[1], [1, 6]]
    assert all(one["model_id"] for one in stored[-1])
    sync(run.directory)
    assert len(stored) == 2


def test_what_is_written_down_at_each_request_does_not_grow_with_the_kept_checkpoints(tmp_path: Path):
    directory = RunDirectory(tmp_path)
    progress = Progress(tracking_uri="http://there", run_id="r", models={}, saved_ms={})
    progress.write(directory)
    small = directory.delivery_file.stat().st_size
    progress.models |= {str(step): f"m-{step:032x}" for step in range(2000)}
    progress.write(directory)
    written = directory.models_file.stat().st_mtime_ns, directory.models_file.stat().st_ino
    for progress.offset in (2, 1, 0):
        progress.write(directory)
    assert (directory.models_file.stat().st_mtime_ns, directory.models_file.stat().st_ino) == written
    assert directory.delivery_file.stat().st_size == small
    assert Progress.read(directory, "http://there").models == progress.models
    assert Progress.read(directory, "http://elsewhere").models == {}
    directory.delivery_file.unlink()
    assert Progress.read(directory, "http://there").models == {}, "it counts together with delivery.json alone"


def test_an_earlier_mltracks_delivery_file_holds_the_models_itself(tmp_path: Path):
    directory = RunDirectory(tmp_path)
    directory.delivery_file.write_text(
        json.dumps({"tracking_uri": "http://there", "run_id": "r", "models": {"1": "m-1"}, "saved_ms": {"1": 2}})
    )
    assert Progress.read(directory, "http://there").models == {"1": "m-1"}
