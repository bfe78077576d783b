"""What is wrong with one local file is refused alone; what may pass at the store is waited for, and said in one line; a
refused token waits for a new one.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from artifact_stores import artifact_store
from faulty_proxy import faulty_proxy
from ready_store import ready_store
from test_uploads_survive_outages import CHECKPOINT, assert_everything_is_there_once, ended_run, kept_checkpoint
from tracked_runs import assert_complete, client, complete, kill, relay_pid, start_script, until

from mltrack import relay
from mltrack.journal import RunDirectory, RunInfo, records
from mltrack.relay import projection
from mltrack.store import StoreDenied, StoreRejected, StoreUnavailable, artifacts, connect, models_of_run, translated
from mltrack.tracking import TrainingMetricsTracker


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


SPOILED: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: None,
    "broken link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "pipe": os.mkfifo,
    "socket": socket_at,
}
"""What a file may have become since it was logged."""


def spoil(path: Path, how: str) -> None:
    path.unlink()
    SPOILED[how](path)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return ready_store(tmp_path)


@pytest.fixture
def tracker(tmp_path: Path, uri: str) -> TrainingMetricsTracker:
    """Of a run of which nothing is delivered yet."""
    made = TrainingMetricsTracker(
        tmp_path / "run", run=RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms())
    )
    return made


def log_a_model(tracker: TrainingMetricsTracker, step: int) -> None:
    kept = kept_checkpoint(tracker.directory.path, step)
    tracker.log_checkpoints([kept], best_step=step)
    tracker.log_model(
        step=step, path=kept["path"], registered_name="kept", promote="never", metrics={}, tags={}, description=""
    )


def test_each_kind_of_spoiled_file_is_refused_alone_and_everything_behind_it_arrives(
    tracker: TrainingMetricsTracker, uri: str
) -> None:
    folder = tracker.directory.path
    for number, _ in enumerate(SPOILED):
        (folder / f"spoiled{number}.txt").write_text("as it was")
        tracker.log_artifact(folder / f"spoiled{number}.txt")
    (folder / "results" / "deep").mkdir(parents=True)
    (folder / "results" / "empty").mkdir()
    for name in ("a.txt", "b.txt", "deep/c.txt"):
        (folder / "results" / name).write_text(name)
    tracker.log_artifact(folder / "results", "of")
    log_a_model(tracker, 1)
    tracker.close()
    for number, how in enumerate(SPOILED):
        spoil(folder / f"spoiled{number}.txt", how)
    spoil(folder / "results" / "b.txt", "broken link")
    relay.sync(tracker.directory)
    progress = tracker.directory.read_delivery()
    assert progress["complete"]
    assert progress["waiting"] is None
    assert [re.search(r"(spoiled\d|\bb)\.txt", line)[0] for line in progress["failed"]] == [
        *(f"spoiled{number}.txt" for number, _ in enumerate(SPOILED)),
        "b.txt",
    ]
    assert all(line.startswith("artifact: ") and "\n" not in line for line in progress["failed"])
    stored = artifacts.list_files(connect(uri), progress["run_id"])
    assert {name for name in stored if not name.startswith("checkpoints/")} == {
        "of/results/a.txt",
        "of/results/deep/c.txt",
    }
    assert progress["registered"]["version"] == "1"


def test_a_checkpoint_that_cannot_be_read_costs_itself_alone(tracker: TrainingMetricsTracker, uri: str) -> None:
    folder = tracker.directory.path
    kept = [kept_checkpoint(folder, step) for step in (1, 2, 3, 4)]
    tracker.log_checkpoints(kept, best_step=4)
    log_a_model(tracker, 5)
    tracker.close()
    spoil(folder / "checkpoints" / "step-00000001" / "model.safetensors", "broken link")
    (folder / "checkpoints" / "step-00000002" / "config.json").write_text("[1")
    (folder / "checkpoints" / "step-00000003" / "config.json").write_text("[1]")
    relay.sync(tracker.directory)
    progress = tracker.directory.read_delivery()
    assert progress["complete"]
    assert [line.split(":")[0] for line in progress["failed"]] == [f"checkpoint of step {step}" for step in (1, 2, 3)]
    assert [(one["step"], one["status"]) for one in models_of_run(connect(uri), progress["run_id"])] == [(5, "READY")]
    assert progress["registered"]["version"] == "1"


def test_a_local_root_that_takes_nothing_is_the_stores_trouble(
    tracker: TrainingMetricsTracker, uri: str, tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    client(uri).create_experiment("kept", artifact_location=root.as_uri())
    info = tracker.directory.read_run()
    info.experiment_name = "kept"
    tracker.directory.write_run(info)
    (tracker.directory.path / "report.txt").write_text("as it was")
    tracker.log_artifact(tracker.directory.path / "report.txt")
    log_a_model(tracker, 1)
    tracker.close()
    root.write_text("in the way")
    with pytest.raises(StoreUnavailable, match=r"report.txt cannot be stored: "):
        relay.sync(tracker.directory)
    progress = tracker.directory.read_delivery()
    assert (progress["complete"], progress["failed"]) == (False, [])
    assert "report.txt cannot be stored: " in progress["waiting"]
    root.unlink()
    relay.sync(tracker.directory)
    progress = tracker.directory.read_delivery()
    assert (progress["complete"], progress["failed"], progress["waiting"]) == (True, [], None)
    assert progress["registered"]["version"] == "1"


def test_a_name_that_a_local_root_cannot_hold_costs_that_file_alone(tracker: TrainingMetricsTracker, uri: str) -> None:
    for name in ("report.txt", "taken"):
        (tracker.directory.path / name).write_text(name)
    tracker.log_artifact(tracker.directory.path / "report.txt", "n" * 300)
    tracker.log_artifact(tracker.directory.path / "taken")
    tracker.log_artifact(tracker.directory.path / "report.txt", "taken/below")
    tracker.log_artifact(tracker.directory.path / "report.txt")
    tracker.close()
    relay.sync(tracker.directory)
    progress = tracker.directory.read_delivery()
    assert len(progress["failed"]) == 2
    assert set(artifacts.list_files(connect(uri), progress["run_id"])) == {"report.txt", "taken"}


def test_a_file_that_the_disk_does_not_give_back_is_known_by_reading_it() -> None:
    memory = Path("/proc/self/mem")
    if not memory.exists():
        pytest.skip("no file here that can be opened and not be read")
    artifacts.check_readable(memory)
    with pytest.raises(artifacts.UnreadableFile, match="cannot be read"), artifacts.reading(memory):
        memory.read_bytes()


def assert_nothing_is_given_up(directory: RunDirectory, word: str) -> None:
    progress = directory.read_delivery()
    assert not progress["complete"]
    assert progress["failed"] == []
    assert word in (progress["waiting"] or word)


@pytest.mark.parametrize("fault", ["refused", "forbidden"])
@pytest.mark.parametrize("matching", ["mlflow-artifacts", ""])
def test_a_refused_token_waits_for_a_new_one(tmp_path: Path, server: str, fault: str, matching: str) -> None:
    with faulty_proxy(server, matching=matching) as proxy:
        directory = ended_run(tmp_path / "run", proxy.uri)
        proxy.fault = fault
        for _ in range(2):
            with pytest.raises(StoreDenied, match=r"401|Unauthorized|403|Forbidden|Permission denied") as caught:
                relay.sync(directory)
            assert "\n" not in str(caught.value)
            assert_nothing_is_given_up(directory, "")
        proxy.fault = "none"
        relay.sync(directory)
        assert_everything_is_there_once(directory, server, tmp_path / "back")


@pytest.mark.long
def test_a_token_that_expires_in_the_middle_keeps_the_relay_waiting_and_the_trainer_not(
    tmp_path: Path, server: str
) -> None:
    with faulty_proxy(server, matching="") as proxy:
        directory = RunDirectory(tmp_path / "run")
        kept = {**kept_checkpoint(directory.path, 1), "path": str(directory.path / "checkpoints" / "step-00000001")}
        process = start_script(CHECKPOINT, directory.path, proxy.uri, json.dumps(kept))
        until(lambda: directory.read_delivery().get("sent"), "the first point")
        proxy.fault = "refused"
        started = time.monotonic()
        (directory.path / "go").touch()
        out, errors = process.communicate(timeout=60)
        assert out == "pending\n", errors
        assert time.monotonic() - started < 30
        assert_nothing_is_given_up(directory, "401")
        delivering = relay_pid(directory)
        proxy.fault = "none"
        until(lambda: complete(directory), "the relay to go through with the new token")
        until(lambda: "complete:" in directory.relay_log.read_text(), "its word")
        kill(delivering)
        run_id = assert_complete(directory, server, status="FINISHED")
        assert [(one["step"], one["status"]) for one in models_of_run(connect(server), run_id)] == [(1, "READY")]


def test_an_expired_token_of_s3_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        artifact_store("s3", tmp_path) as there,
        faulty_proxy(os.environ["MLFLOW_S3_ENDPOINT_URL"], matching="") as proxy,
    ):
        directory = ended_run(tmp_path / "run", there.uri)
        info = directory.read_run()
        info.experiment_name = there.experiment
        directory.write_run(info)
        with monkeypatch.context() as through_proxy:
            through_proxy.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.uri)
            for fault in ("expired", "forbidden"):
                proxy.fault = fault
                with pytest.raises(StoreDenied, match=r"expired|forbidden|Forbidden|denied"):
                    relay.sync(directory)
                assert proxy.count(fault) > 0
                assert_nothing_is_given_up(directory, "")
            proxy.fault = "none"
            relay.sync(directory)
        assert_everything_is_there_once(directory, there.uri, tmp_path / "back")


def client_error(code: str, status: int) -> Exception:
    from botocore.exceptions import ClientError

    return ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )


def without_credentials() -> Exception:
    from botocore.exceptions import NoCredentialsError

    return NoCredentialsError()


def uploaded(error: Exception) -> Exception:
    """As boto3 shows an answer of S3 to an upload: its text alone, the answer behind it."""
    from boto3.exceptions import S3UploadFailedError

    try:
        try:
            raise error
        except Exception as inner:
            raise S3UploadFailedError(f"Failed to upload: {inner}")  # noqa: B904  boto3 does the same
    except S3UploadFailedError as outer:
        return outer


JUDGED: list[tuple[Callable[[], Exception], type[Exception]]] = [
    *[
        (lambda code=code: uploaded(client_error(code, 400)), StoreDenied)
        for code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
    ],
    *[
        (lambda code=code: client_error(code, 403), StoreDenied)
        for code in ("AccessDenied", "RequestTimeTooSkewed", "InvalidAccessKeyId")
    ],
    (without_credentials, StoreDenied),
    (lambda: uploaded(client_error("NoSuchBucket", 404)), StoreUnavailable),
    (lambda: uploaded(client_error("SlowDown", 503)), StoreUnavailable),
    (lambda: uploaded(client_error("EntityTooLarge", 400)), StoreRejected),
    (lambda: client_error("KeyTooLongError", 400), StoreRejected),
]


@pytest.mark.parametrize(("made", "kind"), JUDGED)
def test_what_s3_answers_is_the_files_fault_or_waits(made: Callable[[], Exception], kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, translated("sqlite:///x.db", "storing"):
        raise made()
    assert type(caught.value) is kind or kind is StoreUnavailable


def test_the_pause_between_attempts_grows(tracker: TrainingMetricsTracker, uri: str, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    client(uri).create_experiment("kept", artifact_location=root.as_uri())
    info = tracker.directory.read_run()
    info.experiment_name = "kept"
    tracker.directory.write_run(info)
    (tracker.directory.path / "report.txt").write_text("as it was")
    tracker.log_artifact(tracker.directory.path / "report.txt")
    root.write_text("in the way")
    delivery = projection.Projection(tracker.directory, connect(uri))
    pauses = []
    for _ in range(7):
        delivery._deferred_due = 0.0
        delivery.deliver()
        pauses.append(delivery._deferred_pause_s)
    assert pauses == [30, 60, 120, 240, 300, 300, 300]
    root.unlink()
    delivery._deferred_due = 0.0
    delivery.deliver()
    assert delivery._deferred_pause_s == projection.DEFERRED_PAUSE_S
    assert (delivery.progress.deferred, delivery.progress.waiting) == ([], None)
    tracker.close()
