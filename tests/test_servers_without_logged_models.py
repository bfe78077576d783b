"""A server of MLflow 2 is asked once which one it is, and has the checkpoints' models among the artifacts of their run.

The stand-in is a present server behind a proxy that says 2.22.1 and knows no logged models. With a real one:
MLTRACK_OLD_MLFLOW=/path/to/python (of an environment with `pip install 'mlflow<3' 'sqlalchemy<2.1'`), `-m exhaustive`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import commands
import pytest
import tiny
from faulty_proxy import FaultyProxy, faulty_proxy
from registered_runs import model_folder
from servers import mlflow_server
from tracked_runs import delivered, until

from mltrack.journal import find_run_directories
from mltrack.store import (
    Store,
    StoreRejected,
    StoreUnavailable,
    artifacts,
    connect,
    create_run,
    get_alias,
    list_versions,
    load_pyfunc,
    models_of_run,
    prune,
    publish,
    register,
    registry,
    resolve,
    set_alias,
)
from mltrack.store.run_models import FOLDER
from mltrack.store.server_version import holds_models, server_version

NOT_FOUND = json.dumps({"error_code": "ENDPOINT_NOT_FOUND", "message": "no such endpoint"}).encode()


@contextmanager
def saying(*answers: tuple[int, str]) -> Iterator[tuple[str, list[str]]]:
    """(URI, paths that were asked for) of a server that gives these answers in turn, the last one again and again."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *words: object) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "text", "version", "holds"),
    [
        (200, "2.22.1", "2.22.1", False),
        (200, "2.9.0\n", "2.9.0", False),
        (200, "3.0.0rc1", "3.0.0rc1", True),
        (200, "3.17.2", "3.17.2", True),
        (200, "10.1", "10.1", True),
        (200, "<html>a gateway's page</html>", None, True),
        (200, "2." + "2" * 1000, None, True),
        (200, "", None, True),
        (404, "2.22.1", None, True),
        (403, "", None, True),
    ],
)
def test_a_server_is_asked_once(status: int, text: str, version: str | None, holds: bool) -> None:
    with saying((status, text)) as (uri, asked):
        store = connect(uri)
        assert asked == []
        assert [(server_version(store), holds_models(store)) for _ in range(3)] == [(version, holds)] * 3
        assert asked == ["/version"]


def test_one_that_does_not_answer_is_asked_again() -> None:
    with saying((503, "not now"), (200, "2.22.1")) as (uri, asked):
        store = connect(uri)
        with pytest.raises(StoreUnavailable, match="asking for its version"):
            holds_models(store)
        assert not holds_models(store)
        assert asked == ["/version"] * 2


def test_a_database_is_no_server(tmp_path: Path) -> None:
    store = connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert (server_version(store), holds_models(store)) == (None, True)


def as_old(proxy: FaultyProxy) -> str:
    """The URI of the proxy, which answers as a server of MLflow 2 does."""
    forward = proxy.forward

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        if path == "/version":
            return 200, [("Content-Type", "text/html")], b"2.22.1"
        if "logged-models" in path or path.endswith("/runs/outputs"):
            return 404, [("Content-Type", "application/json")], NOT_FOUND
        return forward(method, path, headers, body)

    proxy.forward = answer  # type: ignore[method-assign]
    return proxy.uri


@pytest.fixture
def old_store(server: str) -> Iterator[Store]:
    """A connection to the stand-in."""
    with faulty_proxy(server) as proxy:
        yield connect(as_old(proxy), request_timeout_s=30)


def new_run(store: Store, key: str) -> str:
    return create_run(
        store, experiment_name=None, run_name="r", tags={}, idempotency_key=key, start_time_ms=1000
    ).run_id


def test_a_model_is_published_registered_loaded_and_pruned(old_store: Store, tmp_path: Path) -> None:
    store, folder, name = old_store, model_folder(tmp_path), "of a run"
    run_id = new_run(store, "published")
    given: dict[str, Any] = {"tags": {"mltrack.epoch": 1}, "metrics": {"eval_loss": 0.5, "bad": float("nan")}}
    ids = [publish(store, run_id, folder, name="x", step=step, timestamp_ms=1, **given) for step in (4, 8)]
    assert ids == [f"runs:/{run_id}/{FOLDER}/step-0000000{step}" for step in (4, 8)]
    first, second = models_of_run(store, run_id)
    assert (first["model_id"], first["step"], first["status"]) == (ids[0], 4, "READY")
    assert (first["tags"], second["metrics"]) == ({"mltrack.epoch": "1"}, {"eval_loss": 0.5})

    assert register(store, name, ids[0], {"why": "best"}, "card") == "1"
    assert register(store, name, ids[0]) == "1", "once for each model"
    set_alias(store, name, "champion", 1)
    (version,) = list_versions(store, name)
    assert (version["model_id"], version["run_id"]) == (ids[0], run_id)
    assert (version["metrics"], version["tags"]) == ({"eval_loss": 0.5}, {"why": "best"})
    found = resolve(store, f"models:/{name}@champion", tmp_path / "fetched")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()} == files
    assert (found / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert load_pyfunc(store, f"models:/{name}/1").predict(["eval(x)"])[0]["label"]

    assert [prune(store, one) for one in ids] == ["registered", "pruned"]
    assert prune(store, ids[1]) == "gone"
    assert artifacts.list_names(store, run_id, FOLDER) == ["step-00000004", "step-00000004.json"]
    registry.delete_version(store, name, 1)
    assert get_alias(store, name, "champion") is None
    assert prune(store, ids[0]) == "pruned"
    assert models_of_run(store, run_id) == []
    with pytest.raises(StoreRejected, match="are not complete; run mltrack sync"):
        register(store, name, ids[0])


def test_an_upload_that_was_cut_off_is_completed_or_taken_away(old_store: Store, tmp_path: Path) -> None:
    store, folder = old_store, model_folder(tmp_path)
    run_id = new_run(store, "cut off")
    for step in (1, 2):
        artifacts.put_file(store, run_id, folder / "config.json", f"{FOLDER}/step-0000000{step}")
    assert [row["status"] for row in models_of_run(store, run_id)] == ["PENDING"] * 2
    whole = publish(store, run_id, folder, name="x", step=1, tags={}, metrics={}, timestamp_ms=1, goes_on=True)
    assert prune(store, f"runs:/{run_id}/{FOLDER}/step-00000002") == "pruned"
    assert [(row["model_id"], row["status"]) for row in models_of_run(store, run_id)] == [(whole, "READY")]


@pytest.fixture(
    params=[pytest.param("stand-in", marks=pytest.mark.long), pytest.param("real", marks=pytest.mark.exhaustive)]
)
def old_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URI of one with a database of its own."""
    folder = tmp_path / "server"
    if request.param == "real":
        if (python := os.environ.get("MLTRACK_OLD_MLFLOW")) is None:
            pytest.skip("MLTRACK_OLD_MLFLOW does not name the Python of an environment with mlflow<3")
        with mlflow_server(folder, backend=f"sqlite:///{folder}/server.db", python=python) as uri:
            yield uri
    else:
        with mlflow_server(folder) as uri, faulty_proxy(uri) as proxy:
            yield as_old(proxy)


@pytest.mark.timeout(900)
def test_a_training_has_its_points_and_its_model_there(old_server: str, tmp_path: Path, records_file: Any) -> None:
    here, records = tmp_path / "here", records_file("text_classification")
    often = ("--save-every", 4, "--eval-every", 4, "--max-checkpoints", 1, "--output", "json")

    def mltrack(*words: object, cwd: Path = here) -> Any:
        cwd.mkdir(exist_ok=True)
        done = commands.mltrack(*words, cwd=cwd, timeout_s=400, MLFLOW_TRACKING_URI=old_server)
        assert done.returncode == 0, done.stderr
        for directory in find_run_directories(cwd / "mltrack-runs"):
            until(lambda held=directory: delivered(held), "the delivery")
        return done

    mltrack(*commands.training(records, "--max-steps", 12, *often))
    (directory,) = find_run_directories(here / "mltrack-runs")
    told = directory.read_delivery()
    assert told["failed"] == []
    (line,) = told["notices"]
    assert "is MLflow 2." in line
    assert f"artifacts of the run, in {FOLDER}" in line
    assert len(line.splitlines()) == 1
    run_id, name, store = told["run_id"], "mltrack-text_classification", connect(old_server, request_timeout_s=60)
    assert [point.step for point in store.client.get_metric_history(run_id, "train_loss")] == list(range(1, 13))
    kept = {int(step) for step in artifacts.list_names(store, run_id, "checkpoints") if step.isdigit()}
    assert {row["step"] for row in models_of_run(store, run_id)} == kept
    assert 12 in kept
    assert len(kept) <= 2
    (version,) = list_versions(store, name)
    assert version["aliases"] == ["challenger", "champion"]
    assert version["metrics"]["eval_loss"] > 0
    assert load_pyfunc(store, f"models:/{name}@champion").predict(["eval(x)"])[0]["label"] in ("safe", "unsafe")

    elsewhere = tmp_path / "elsewhere"  # what is needed to go on is there
    resumed = mltrack("train", "--resume", run_id, "--max-steps", 16, "--output", "json", cwd=elsewhere)
    assert tiny.last_json_line(resumed.stdout)["steps_run"] == 16
    assert {point.step for point in store.client.get_metric_history(run_id, "train_loss")} == set(range(1, 17))
    versions = list_versions(store, name)
    mltrack("models", "delete", name, "--force")
    assert not {row["model_id"] for row in models_of_run(store, run_id)} & {one["model_id"] for one in versions}
