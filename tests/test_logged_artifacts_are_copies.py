"""What MLflow holds does not change when the user's file does: a logged file is rewritten in place, as log files and
pictures are.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from hf_folders import write_model_folder
from ready_store import ready_store

from mltrack.errors import TrackingError
from mltrack.journal import RunInfo, read_journal, records
from mltrack.relay import sync
from mltrack.store import Store, artifacts, connect, create_run, placement, publish
from mltrack.tracking import TrainingMetricsTracker

SIZE = 2 * placement.LINK_FROM_BYTES
BEFORE, AFTER = b"1" * SIZE, b"2" * SIZE


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return connect(ready_store(tmp_path))


@pytest.fixture
def run_id(store: Store) -> str:
    return create_run(
        store, experiment_name=None, run_name="r", tags={}, idempotency_key=uuid.uuid4().hex, start_time_ms=1
    ).run_id


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(AFTER)


def test_a_file_that_a_tracker_logged_and_its_owner_rewrote(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "big.log"
    log.write_bytes(BEFORE)
    tracker = TrainingMetricsTracker(
        tmp_path / "run",
        run=RunInfo(local_id=uuid.uuid4().hex, tracking_uri=store.tracking_uri, created_ms=records.now_ms()),
    )
    tracker.log_artifact(log)
    tracker.close()
    progress = sync(tracker.directory)
    rewrite(log)
    assert progress.run_id is not None
    assert artifacts.download(store, progress.run_id, "big.log", tmp_path / "back").read_bytes() == BEFORE


def test_a_file_put_by_hand(store: Store, run_id: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "plot.bin"
    file.write_bytes(BEFORE)
    artifacts.put_file(store, run_id, file)
    artifacts.put_file(store, run_id, file, "whole")
    rewrite(file)
    assert artifacts.download(store, run_id, "plot.bin", tmp_path / "back").read_bytes() == BEFORE
    assert (artifacts.download(store, run_id, "whole", tmp_path / "back") / "plot.bin").read_bytes() == BEFORE


def test_a_model_of_files_that_are_not_said_to_be_immutable(store: Store, run_id: str, tmp_path: Path) -> None:
    from hf_folders import decoder_folder

    source = decoder_folder(tmp_path / "decoder", hidden_size=256)
    weights = source / "model.safetensors"
    before = weights.read_bytes()
    assert len(before) >= placement.LINK_FROM_BYTES
    written = write_model_folder(source, tmp_path / "model", task="code_generation", hf_config={}, requirements=[])
    model_id = publish(store, run_id, written, name="m", step=1, tags={}, metrics={}, timestamp_ms=1)
    rewrite(weights)
    placed = Path(store.client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
    assert (placed / "model.safetensors").read_bytes() == before


def of_no_server(folder: Path) -> TrainingMetricsTracker:
    return TrainingMetricsTracker(
        folder, run=RunInfo(local_id=uuid.uuid4().hex, tracking_uri="http://127.0.0.1:9", created_ms=1, offline=True)
    )


def named_of(folder: Path) -> list[tuple[str, set[str]]]:
    """(artifact_path, the files that would arrive) of each artifact that the journal in this folder names."""
    return [
        (one["artifact_path"], {path.name for path in (folder / one["path"]).rglob("*") if path.is_file()})
        for one in read_journal(folder / "journal")
        if one["type"] == "artifact"
    ]


def test_the_next_run_in_the_folder_has_none_of_the_files_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / "out" / name).write_text(name)
        with of_no_server(tmp_path / "run") as tracker:
            tracker.log_artifact(tmp_path / "out")
        (tmp_path / "out" / name).unlink()
    assert named_of(tmp_path / "run") == [("", {"c.txt"})]
    assert named_of(tmp_path / "run" / "earlier-run-1") == [("", {"a.txt"})]
    assert named_of(tmp_path / "run" / "earlier-run-2") == [("", {"b.txt"})]
    assert len(list((tmp_path / "run" / "artifacts").iterdir())) == 1


def test_a_folder_that_holds_the_run_directory_is_taken_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("mine")
    Path("again").symlink_to(".")
    with of_no_server(Path("run")) as tracker:
        tracker.log_artifact(".")
        with pytest.raises(TrackingError, match="is the run directory itself"):
            tracker.log_artifact("run")
    assert named_of(tmp_path / "run") == [("", {"mine.txt"})]
    assert [line.split(tmp_path.name)[1] for line in caplog.messages] == [
        "/again: is a link to a folder that it lies in",
        "/run: is in the directory of this run",
    ]


def test_what_cannot_be_copied_of_a_folder_is_named_and_costs_itself_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt", "z.txt"):
        (out / name).write_text(name)
    (out / "dangling").symlink_to("nowhere")
    os.mkfifo(out / "deep" / "pipe")
    with of_no_server(tmp_path / "run") as tracker:
        tracker.log_artifact(out, "of")
        with pytest.raises(TrackingError, match=r"null: is no regular file|a file or folder that exists"):
            tracker.log_artifact("/dev/null")
    assert named_of(tmp_path / "run") == [("of", {"a.txt", "b.txt", "z.txt"})]
    assert caplog.messages == [
        f"log_artifact left out {out}/dangling: cannot be read: No such file or directory",
        f"log_artifact left out {out}/deep/pipe: is no regular file",
    ]


def test_a_folder_of_artifacts_is_named_as_the_stores_take_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with of_no_server(tmp_path / "run") as tracker:
        for given in ("", ".", "a//b", "./c", "plots/"):
            tracker.log_artifact(tmp_path / "a.txt", given)
        with pytest.raises(TrackingError, match="artifact_path must be a relative path"):
            tracker.log_artifact(tmp_path / "a.txt", "a\0b")
    assert [folder for folder, _ in named_of(tmp_path / "run")] == ["", "", "a/b", "c", "plots"]
