"""A run that is fetched from MLflow over a bad line: what has arrived is not sent again, what is damaged is, and what
is there in the end is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_stores import artifact_store
from faulty_proxy import FaultyProxy, faulty_proxy
from hf_folders import encoder_folder
from tracked_runs import until

from mltrack.checkpoints import CheckpointMetadata, directory
from mltrack.errors import ConfigurationError
from mltrack.journal import RunDirectory, RunInfo, records
from mltrack.relay import sync
from mltrack.relay.trainers import VERSION_TAG
from mltrack.runs import remote_run
from mltrack.store import StoreUnavailable, artifacts, connect, fetching
from mltrack.tracking import TrainingMetricsTracker

STEPS = (1, 2)
STATE = (directory.OPTIMIZER, directory.OPTIMIZER_JSON, directory.STATE, directory.STATE_TENSORS, directory.METADATA)
BIG = 4 << 20
LOST_PER_CUT = 1 << 17
"""What a cut connection may lose of what had arrived."""


def recorded_run(folder: Path, uri: str, experiment: str | None = None) -> RunDirectory:
    """A run with two checkpoints, delivered."""
    run = RunDirectory(folder)
    info = RunInfo(
        local_id=uuid.uuid4().hex,
        experiment_name=experiment,
        tracking_uri=uri,
        created_ms=records.now_ms(),
        tags={VERSION_TAG: "1"},
    )
    tracker = TrainingMetricsTracker(folder, run=info)
    (folder / "config.json").write_text(json.dumps({"metric_name": "eval_loss", "metric_mode": "min"}))
    tracker.log_artifact(folder / "config.json")
    model = encoder_folder(folder / "encoder")
    kept = []
    for step in STEPS:
        content = {path.name: path.read_bytes() for path in model.iterdir() if path.name not in STATE}
        content |= {"optimizer.safetensors": os.urandom(BIG + step), "state.json": json.dumps({"step": step}).encode()}
        target = run.checkpoints / f"step-{step:08d}"
        target.parent.mkdir(exist_ok=True)
        about = {
            "epoch": 0,
            "step": step,
            "metric_name": "eval_loss",
            "metric_value": 1 / step,
            "metrics": {"eval_loss": 1 / step},
            "created_ms": step,
        }
        directory.write_directory(target, content, CheckpointMetadata(path=target, run_id=info.local_id, **about))
        tracker.log_metrics({"eval_loss": 1 / step}, step, epoch=0)
        named = {
            name: about[name] for name in ("step", "epoch", "metric_name", "metric_value", "metrics", "created_ms")
        }
        kept.append({**named, "path": target, "reasons": ["best"]})
    tracker.log_checkpoints(kept, best_step=2)
    tracker.close()
    assert sync(run).complete
    return run


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_fetched(fetched: RunDirectory, run: RunDirectory) -> None:
    assert hashes(fetched.checkpoints) == hashes(run.checkpoints)
    assert not list(fetched.path.parent.glob(".fetching*"))
    assert not (fetched.path / ".lock").exists()


@pytest.fixture(scope="module")
def run(server: str, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return recorded_run(tmp_path_factory.mktemp("recorded") / "run", server)


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Faults meet the optimizer's file alone; pauses are short."""
    monkeypatch.setattr(fetching, "PAUSES_S", (0.05, 0.05, 0.05))
    with faulty_proxy(server, matching="optimizer.safetensors") as proxy:
        yield proxy


def run_id(run: RunDirectory) -> str:
    return str(run.read_delivery()["run_id"])


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_from_each_kind_of_store(kind: str, tmp_path: Path) -> None:
    with artifact_store(kind, tmp_path / "store") as there:
        run = recorded_run(tmp_path / "run", there.uri, there.experiment)
        assert_fetched(remote_run.fetch_run(run_id(run), there.uri, tmp_path / "here"), run)


@pytest.mark.long
def test_connections_cut_in_the_middle_cost_no_byte_twice(
    proxy: FaultyProxy, run: RunDirectory, tmp_path: Path
) -> None:
    proxy.next_faults.extend(["half_reply"] * 5)
    said: list[str] = []
    fetched = remote_run.fetch_run(run_id(run), proxy.uri, tmp_path / "here", notice=said.append)
    assert_fetched(fetched, run)
    sizes = sum(path.stat().st_size for path in run.checkpoints.rglob("optimizer.safetensors"))
    assert sizes <= proxy.replied_bytes["optimizer.safetensors"] <= sizes + 5 * LOST_PER_CUT
    assert proxy.replied_bytes["model.safetensors"] == sum(
        path.stat().st_size for path in run.checkpoints.rglob("model.safetensors")
    )
    assert sum("trying again" in line for line in said) == 5


@pytest.mark.long
def test_given_up_and_called_again(proxy: FaultyProxy, run: RunDirectory, tmp_path: Path) -> None:
    """In between one of the files that had arrived is damaged: it alone is sent again."""
    proxy.next_faults.append("half_reply")
    proxy.fault = "unavailable"
    with pytest.raises(
        StoreUnavailable,
        match=r"[\d.]+ MB have arrived and stay in .*fetching.*; the same command continues from there",
    ):
        remote_run.fetch_run(run_id(run), proxy.uri, tmp_path / "here")
    (making,) = (tmp_path / "here").glob(".fetching-*")
    arrived = next(making.glob("checkpoints/*/config.json"))
    arrived.write_bytes(arrived.read_bytes()[:-1] + b" ")
    first = proxy.replied_bytes.copy()
    proxy.fault = "none"
    assert_fetched(remote_run.fetch_run(run_id(run), proxy.uri, tmp_path / "here"), run)
    again = proxy.replied_bytes - first
    assert again["optimizer.safetensors"] <= first["optimizer.safetensors"] + BIG + 2 + LOST_PER_CUT
    assert again["config.json"] > 0


@pytest.mark.long
def test_two_at_once_do_not_collide(proxy: FaultyProxy, run: RunDirectory, tmp_path: Path) -> None:
    proxy.fault = "hang"
    ended: list[object] = []

    def fetch() -> None:
        try:
            ended.append(remote_run.fetch_run(run_id(run), proxy.uri, tmp_path / "here"))
        except Exception as error:
            ended.append(error)

    first = threading.Thread(target=fetch)
    first.start()
    until(lambda: proxy.count("hang"), "the first fetch to hang")
    with pytest.raises(ConfigurationError, match=r"is being fetched into .* by another process"):
        remote_run.fetch_run(run_id(run), proxy.uri, tmp_path / "here")
    proxy.fault = "none"
    proxy.stopped.set()
    first.join()
    assert_fetched(ended[0], run)


@pytest.mark.long
def test_a_single_download_is_asked_for_once(proxy: FaultyProxy, run: RunDirectory, tmp_path: Path) -> None:
    """MLflow's own way downloads in threads that would retry for minutes."""
    proxy.next_faults.append("none")  # the listing
    proxy.fault = "unavailable"
    with pytest.raises(StoreUnavailable):
        artifacts.download(connect(proxy.uri), run_id(run), "checkpoints/1/state/optimizer.safetensors", tmp_path)
    assert proxy.count("unavailable") == 1
