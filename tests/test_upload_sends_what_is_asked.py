"""What of a checkpoint goes to MLflow is the user's choice, and of it nothing is sent twice, however often an upload is
cut off.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import commands
import pytest
import tiny
from artifact_stores import ArtifactStore, artifact_store
from conftest import write_records
from faulty_proxy import FaultyProxy, faulty_proxy
from hf_folders import encoder_folder
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from ready_store import ready_store
from retained_checkpoints import RetainedRun

from mltrack.journal import read_journal, records
from mltrack.relay import sync
from mltrack.store import StoreUnavailable, artifacts, connect, create_run, models_of_run
from mltrack.store.connection import artifact_timeout

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LARGE = 2 << 20


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "step-1")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactStore]:
    with artifact_store("local", tmp_path_factory.mktemp("local")) as store:
        yield store


def names(there: ArtifactStore, run: RetainedRun) -> set[str]:
    """What the run's own artifacts are, below its root."""
    return {name.split(f"{run.run_id}/artifacts/")[1] for name in there.files() if f"{run.run_id}/artifacts/" in name}


def test_a_model_alone_leaves_the_training_state_here(local: ArtifactStore, encoder: Path, tmp_path: Path) -> None:
    run = RetainedRun(tmp_path / "run", local, encoder, upload="model")
    for kept in ((1,), (1, 2), (2, 3)):
        run.keep(*kept)
        assert sync(run.directory).failed == []
    run.end()
    progress = sync(run.directory)
    assert names(local, run) == {"checkpoints/index.json"}
    rows = models_of_run(connect(local.uri), run.run_id)
    assert [(row["step"], row["status"]) for row in rows] == [(2, "READY"), (3, "READY")]
    assert progress.best_model_id == rows[0]["model_id"]


def test_none_sends_no_byte_of_a_checkpoint_and_takes_away_what_an_earlier_attempt_sent(
    local: ArtifactStore, encoder: Path, tmp_path: Path
) -> None:
    run = RetainedRun(tmp_path / "run", local, encoder)
    run.keep(1)
    sync(run.directory)
    run.directory.write_run(replace(run.directory.read_run(), upload="none"))
    for kept in ((1, 2), (2, 3)):
        run.keep(*kept)
        assert sync(run.directory).failed == []
    run.end()
    progress = sync(run.directory)
    assert (progress.complete, progress.best_model_id, models_of_run(connect(local.uri), run.run_id)) == (
        True,
        None,
        [],
    )
    assert names(local, run) == {"checkpoints/index.json"}


def test_the_time_out_of_a_file_grows_with_its_size(local: ArtifactStore) -> None:
    store = connect(local.uri)
    for num_bytes, seconds in ((0, 120), (5_000_000, 125), (14_000_000_000, 14120)):
        with artifact_timeout(store, num_bytes):
            assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == seconds


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ArtifactStore, FaultyProxy]]:
    """The server's proxy, reached through another one that fails when told to."""
    with (
        artifact_store("proxied", tmp_path_factory.mktemp("proxied")) as store,
        faulty_proxy(store.uri, matching="mlflow-artifacts/artifacts/") as proxy,
    ):
        yield replace(store, uri=proxy.uri), proxy


@pytest.fixture
def large(encoder: Path, tmp_path: Path) -> Path:
    """A checkpoint of three large files."""
    folder = shutil.copytree(encoder, tmp_path / "large")
    (folder / "model.safetensors").unlink()
    for name in (*SHARDS, "optimizer.safetensors"):
        (folder / name).write_bytes(os.urandom(LARGE))
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder


def interrupt(run: RetainedRun, proxy: FaultyProxy, fault: str, at: str) -> None:
    """A delivery that ends at the first file of this name."""
    proxy.seen.clear()
    proxy.matching, proxy.fault = at, fault
    with suppress(StoreUnavailable):
        sync(run.directory)
    assert proxy.count(fault)
    proxy.matching, proxy.fault = "mlflow-artifacts/artifacts/", "none"
    proxy.seen.clear()


def sent(proxy: FaultyProxy) -> list[str]:
    """The names of the large files that were sent since the interruption."""
    return [path.rsplit("/", 1)[-1] for _, path in proxy.seen if path.endswith("safetensors")]


def held(there: ArtifactStore, run: RetainedRun) -> dict[str, bytes]:
    """The large files of this run's only checkpoint, by name."""
    (row,) = models_of_run(connect(there.uri), run.run_id)
    return {
        name.rsplit("/", 1)[-1]: there.read(name)
        for name in there.files()
        if name.endswith("safetensors") and (run.run_id in name or row["model_id"] in name)
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "at", "missing"),
    [
        ("cut", SHARDS[1], [SHARDS[1], "optimizer.safetensors"]),
        ("lose_reply", "optimizer.safetensors", []),
        ("cut", "metadata.json", []),
    ],
)
def test_an_upload_that_was_cut_off_goes_on_with_what_is_missing(
    proxied: tuple[ArtifactStore, FaultyProxy], large: Path, tmp_path: Path, fault: str, at: str, missing: list[str]
) -> None:
    there, proxy = proxied
    run = RetainedRun(tmp_path / "run", there, large)
    run.keep(1)
    interrupt(run, proxy, fault, at)
    assert sync(run.directory).failed == []
    assert sent(proxy) == missing
    run.end()
    assert sync(run.directory).complete
    assert held(there, run) == {path.name: path.read_bytes() for path in large.glob("*.safetensors")}


@pytest.mark.long
def test_what_an_earlier_save_of_the_step_left_there_is_not_taken_for_this_one(
    proxied: tuple[ArtifactStore, FaultyProxy], large: Path, tmp_path: Path
) -> None:
    there, proxy = proxied
    run = RetainedRun(tmp_path / "run", there, large)
    run.keep(1)
    interrupt(run, proxy, "lose_reply", "optimizer.safetensors")  # it is there, and its relay does not know
    for name in (*SHARDS, "optimizer.safetensors"):
        (run.folder(1) / name).write_bytes(os.urandom(LARGE))
    (kept,) = read_journal(run.directory.journal)[-1]["kept"]
    run.record(records.checkpoints([{**kept, "created_ms": kept["created_ms"] + 1}], 1))
    run.end()
    assert sync(run.directory).complete
    assert held(there, run) == {path.name: path.read_bytes() for path in run.folder(1).glob("*.safetensors")}


@pytest.mark.long
def test_a_large_file_goes_in_parts_right_to_the_storage_and_where_that_is_out_of_reach_through_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(6 << 20))
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(5 << 20))
    file = tmp_path / "large.bin"
    with (
        artifact_store("proxied_s3", tmp_path / "store") as there,
        faulty_proxy(there.uri, matching="mlflow-artifacts") as proxy,
    ):
        store = connect(proxy.uri.replace("127.0.0.1", "localhost"))
        run = create_run(
            store, experiment_name=there.experiment, run_name="r", tags={}, idempotency_key="k", start_time_ms=1
        )

        def put() -> list[str]:
            file.write_bytes(os.urandom(12 << 20))
            proxy.seen.clear()
            artifacts.put_file(store, run.run_id, file)
            (name,) = there.files()
            assert there.read(name) == file.read_bytes()
            return [re.sub(r".*/mlflow-artifacts/(mpu/\w+|artifacts)/.*", r"\1", path) for _, path in proxy.seen]

        assert put() == ["mpu/create", "mpu/complete"]
        monkeypatch.setenv(
            "HTTP_PROXY", "http://127.0.0.1:1"
        )  # nobody listens there: the storage cannot be reached from here
        monkeypatch.setenv("NO_PROXY", "localhost")
        assert put() == ["mpu/create", "mpu/abort", "artifacts"]
        monkeypatch.delenv("HTTP_PROXY")


@pytest.mark.long
def test_without_its_state_a_run_goes_on_here_alone_and_without_a_version_none_is_made(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    data, uri = write_records(tmp_path / "records.jsonl", count=32), ready_store(here)
    words = commands.training(data, "--max-steps", "3", "--output", "json")
    first = commands.mltrack(*words, "--upload", "model", "--register", "never", cwd=here)
    assert first.returncode == 0, first.stderr
    response = tiny.last_json_line(first.stdout)
    assert (response["registered_model"], response["delivery"]) == (None, "complete")
    assert response["model_uri"].startswith("models:/m-")
    client = MlflowClient(uri)
    assert client.search_registered_models() == []
    assert {"register": "never"}.items() <= client.get_run(response["run_id"]).data.params.items()
    elsewhere = commands.mltrack("train", "--resume", response["run_id"], "--tracking-uri", uri, cwd=there)
    assert elsewhere.returncode == 2
    (line,) = elsewhere.stderr.strip().splitlines()[-1:]
    assert re.fullmatch(
        r"mltrack: cannot resume: the training state of run \w+ is not in sqlite:.* because of --upload model; resume"
        r" it in its run .*",
        line,
    )
    assert not list((there / "mltrack-runs").glob("*"))
    on = commands.mltrack("train", "--resume", response["run_id"], "--max-steps", "5", "--output", "json", cwd=here)
    assert on.returncode == 0, on.stderr
    resumed = tiny.last_json_line(on.stdout)
    assert (resumed["run_id"], resumed["steps_run"], resumed["registered_model"]) == (response["run_id"], 5, None)
    assert not [one for one in client.list_artifacts(response["run_id"], "checkpoints") if one.is_dir], (
        "its choice was inherited"
    )
