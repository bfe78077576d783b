"""Runs, params, points, inputs and files on a real database: each verb twice leaves what once leaves."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest
from ready_store import ready_store

from mltrack.store import (
    RunInfo,
    Store,
    StoreRejected,
    artifacts,
    connect,
    create_run,
    delivered_pairs,
    finish_run,
    get_run,
    list_runs,
    log_inputs,
    log_params,
    log_points,
    placement,
    reopen_run,
    same_meaning,
    search_running_runs,
    set_tags,
)
from mltrack.store.runs import legal_name


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    before = os.getcwd()
    os.chdir(folder)  # MLflow puts the artifacts of a new database beside the caller
    try:
        return connect(ready_store(folder))
    finally:
        os.chdir(before)


@pytest.fixture
def run(store: Store, request: pytest.FixtureRequest) -> RunInfo:
    return create_run(
        store,
        experiment_name=None,
        run_name="r",
        tags={"a": "b"},
        idempotency_key=request.node.name.replace("'", ""),
        start_time_ms=1000,
    )


def history(store: Store, run: RunInfo, key: str) -> list[tuple[int, int, float]]:
    return [(point.step, point.timestamp, point.value) for point in store.client.get_metric_history(run.run_id, key)]


def test_a_run_is_made_once_per_key_and_in_the_experiment_that_was_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    first = create_run(
        store,
        experiment_name="chosen",
        run_name="r",
        tags={"long": "x" * 9000},
        idempotency_key="key-1",
        start_time_ms=7,
    )
    again = create_run(store, experiment_name="chosen", run_name="r", tags={}, idempotency_key="key-1", start_time_ms=8)
    assert (first.run_id, first.experiment_id, first.start_time_ms) == (
        again.run_id,
        again.experiment_id,
        again.start_time_ms,
    )
    assert store.client.get_experiment(first.experiment_id).name == "chosen"
    assert len(first.tags["long"]) == 8000
    assert first.tags["long"].endswith("(cut)")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from-environment")
    assert store.client.get_experiment(create_run_in(store, None).experiment_id).name == "from-environment"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", first.experiment_id)
    assert create_run_in(store, None).experiment_id == first.experiment_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.tracking_uri)
    assert create_run_in(store, None).experiment_id == first.experiment_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/mlflow.db")
    assert create_run_in(store, None).experiment_id == "0", "an id of another store means nothing here"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    store.client.delete_experiment(store.client.create_experiment("old"))
    with pytest.raises(StoreRejected, match="experiment 'old' is deleted; choose another"):
        create_run_in(store, "old")


def create_run_in(store: Store, experiment: str | None) -> RunInfo:
    return create_run(
        store,
        experiment_name=experiment,
        run_name="r",
        tags={},
        idempotency_key=f"in-{os.urandom(4).hex()}",
        start_time_ms=1,
    )


def test_status_and_the_lists(store: Store, run: RunInfo) -> None:
    assert run.run_id in {one.run_id for one in search_running_runs(store)}
    finish_run(store, run.run_id, "KILLED", 5000)
    assert (get_run(store, run.run_id).status, get_run(store, run.run_id).end_time_ms) == ("KILLED", 5000)
    assert run.run_id not in {one.run_id for one in search_running_runs(store)}
    reopen_run(store, run.run_id)
    assert get_run(store, run.run_id).status == "RUNNING"
    assert run.run_id in {one.run_id for one in list_runs(store, "Default")}
    assert list_runs(store, "no such experiment") == []


def test_points_sent_twice_are_stored_once_and_more_than_a_request_holds_are_split(store: Store, run: RunInfo) -> None:
    points = [("train_loss", 1.0 / step, 1000 + step, step) for step in range(1, 2302)]
    log_points(store, run.run_id, points)
    log_points(store, run.run_id, points[:1500])
    assert [step for step, _, _ in history(store, run, "train_loss")] == list(range(1, 2302))
    assert delivered_pairs(store, run.run_id, ["train_loss", "absent"], 2298) == {
        ("train_loss", 2299),
        ("train_loss", 2300),
        ("train_loss", 2301),
    }


def test_infinities_become_the_largest_finite_number_and_nan_stays(store: Store, run: RunInfo) -> None:
    log_points(store, run.run_id, [("x", math.inf, 1, 1), ("x", -math.inf, 2, 2), ("x", math.nan, 3, 3)])
    values = [value for _, _, value in history(store, run, "x")]
    assert values[:2] == [sys.float_info.max, -sys.float_info.max]
    assert math.isnan(values[2])


def test_names_are_made_legal_and_accepted(store: Store, run: RunInfo) -> None:
    names = ["a b", "loss (eval)", "/x//y/", "../up", "ü" * 3, "n" * 400, "a,b=c"]
    log_points(store, run.run_id, [(name, 1.0, 1, 1) for name in names])
    set_tags(store, run.run_id, dict.fromkeys(names, "v") | {f"tag{n}": "v" * 9000 for n in range(150)})
    held = get_run(store, run.run_id)
    assert set(held.metrics or {}) == {legal_name(name) for name in names}
    assert sum(len(held.tags[f"tag{n}"]) == 8000 for n in range(150)) == 150


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2e-5", "2e-05"),
        ("2e-5", 2e-05),
        ("True", "true"),
        ("False", False),
        ("'a b'", "a b"),
        ("''", None),
        ("None", ""),
        ("8", "8.0"),
        ("0.10", 0.1),
    ],
)
def test_same_meaning(first: object, second: object) -> None:
    assert same_meaning(first, second)
    assert same_meaning(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [("1", "true"), ("2e-5", "2e-6"), ("a", "A"), ("", "0"), ("None", "none of it"), ("1_000", "1000")],
)
def test_another_meaning(first: object, second: object) -> None:
    assert not same_meaning(first, second)


def test_params_that_mlflow_run_logged_are_left_and_a_difference_is_told(store: Store, run: RunInfo) -> None:
    for key, value in {"learning_rate": "2e-5", "seed": "1", "model_name": "'my model'"}.items():
        store.client.log_param(run.run_id, key, value)
    wanted = {
        "learning_rate": 2e-05,
        "seed": 2,
        "model_name": "my model",
        "flag": True,
        "text": "t" * 7000,
        **{f"p{n}": n for n in range(230)},
    }
    assert log_params(store, run.run_id, wanted) == {"seed": ("1", "2")}
    assert log_params(store, run.run_id, wanted) == {"seed": ("1", "2")}
    held = get_run(store, run.run_id).params
    assert (held["learning_rate"], held["flag"], held["p229"]) == ("2e-5", "true", "229")
    assert len(held["text"]) == 6000
    assert len(held) == 235


def test_inputs_twice_add_nothing(store: Store, run: RunInfo) -> None:
    given = [
        {
            "name": "train",
            "digest": "d" * 64,
            "source": "/data/a.jsonl",
            "context": "training",
            "schema": None,
            "profile": {"records": 3},
        },
        {
            "name": "eval",
            "digest": "e" * 10,
            "source": {"code": "stdlib"},
            "source_type": "code",
            "context": "validation",
        },
    ]
    log_inputs(store, run.run_id, given)
    log_inputs(store, run.run_id, given)
    held = store.client.get_run(run.run_id).inputs.dataset_inputs
    assert {(one.dataset.name, one.dataset.digest, one.tags[0].value) for one in held} == {
        ("train", "d" * 36, "training"),
        ("eval", "e" * 10, "validation"),
    }
    assert {one.dataset.source for one in held} == {'{"uri": "/data/a.jsonl"}', '{"code": "stdlib"}'}


def test_files_are_put_listed_fetched_and_deleted_and_immutable_ones_are_links(
    store: Store, run: RunInfo, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    (state / "deep").mkdir(parents=True)
    large = state / "optimizer.safetensors"
    large.write_bytes(os.urandom(placement.LINK_FROM_BYTES))
    (state / "deep" / "small.json").write_text("{}")
    for _ in range(2):
        artifacts.put_file(store, run.run_id, large, "checkpoints/1/state", immutable=True)
        artifacts.put_file(store, run.run_id, large, "whole")
        artifacts.put_file(store, run.run_id, state / "deep" / "small.json", "whole/deep")
        artifacts.put_file(store, run.run_id, state / "deep" / "small.json")
        artifacts.put_text(store, run.run_id, '{"step": 1}\n', "checkpoints/index.json")
        artifacts.put_text(store, run.run_id, "hello", "note.txt")
    size = placement.LINK_FROM_BYTES
    expected = {
        "checkpoints/1/state/optimizer.safetensors": size,
        "checkpoints/index.json": 12,
        "note.txt": 5,
        "small.json": 2,
        "whole/deep/small.json": 2,
        "whole/optimizer.safetensors": size,
    }
    assert artifacts.list_files(store, run.run_id) == expected
    assert artifacts.list_files(store, run.run_id, "whole").keys() == {
        "whole/deep/small.json",
        "whole/optimizer.safetensors",
    }
    assert large.stat().st_nlink == 2
    fetched = artifacts.download(store, run.run_id, "checkpoints", tmp_path / "back")
    assert json.loads((fetched / "index.json").read_text()) == {"step": 1}
    for _ in range(2):
        artifacts.delete(store, run.run_id, "whole")
        artifacts.delete(store, run.run_id, "checkpoints/1")
    assert large.stat().st_nlink == 1
    assert artifacts.list_files(store, run.run_id).keys() == {"checkpoints/index.json", "note.txt", "small.json"}
    root = Path(run.artifact_uri.removeprefix("file://"))
    assert {path.name for path in root.rglob("*") if path.is_file()} == {"index.json", "note.txt", "small.json"}


@pytest.mark.parametrize("path", ["", "..", "a/../../b", "/etc", "a//b"])
def test_a_path_that_leaves_the_run_is_refused(store: Store, run: RunInfo, path: str) -> None:
    with pytest.raises(StoreRejected, match="artifact path"):
        artifacts.delete(store, run.run_id, path)


def test_replacing_a_large_file_leaves_the_one_that_was_linked_alone(
    store: Store, run: RunInfo, tmp_path: Path
) -> None:
    one, two = tmp_path / "one" / "w.bin", tmp_path / "two" / "w.bin"
    for path, byte in ((one, b"1"), (two, b"2")):
        path.parent.mkdir()
        path.write_bytes(byte * placement.LINK_FROM_BYTES)
        artifacts.put_file(store, run.run_id, path, immutable=True)
    assert one.read_bytes()[:1] == b"1"
    assert (artifacts.download(store, run.run_id, "w.bin", tmp_path / "back")).read_bytes()[:1] == b"2"


def test_tags_of_earlier_versions_are_read_under_their_present_names(store, run):
    set_tags(store, run.run_id, {"mltrack.heartbeat": "1", "mltrack.boot_id": "a", "mltrack.trainer_heartbeat": "2"})
    tags = get_run(store, run.run_id).tags
    assert (tags["mltrack.trainer_heartbeat"], tags["mltrack.trainer_boot_id"]) == ("2", "a")
    assert "mltrack.heartbeat" not in tags
