"""In one process with mltrack, the user's own MLflow keeps its environment, retries, time-outs, tracking URI and log
levels, in every thread.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands
import mlflow
import pytest
from faulty_proxy import faulty_proxy
from mlflow import environment_variables as variables
from ready_store import ready_store
from registered_runs import finish, model_folder
from servers import mlflow_server

from mltrack import registry
from mltrack.store import Store, StoreUnavailable, artifacts, connect, create_run, get_run, ping

WATCHED = (
    variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    variables.MLFLOW_HTTP_REQUEST_TIMEOUT,
    variables.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
    variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR,
    variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
)
LOGGERS = ("mlflow", "mlflow.store.db.utils", "alembic", "alembic.runtime.migration", "sqlalchemy.engine")


def seen() -> dict[str, Any]:
    """What the user's own MLflow calls would be made with."""
    environment = {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW_", "GIT_", "PG"))}
    levels = {name: (logging.getLogger(name).level, logging.getLogger(name).disabled) for name in LOGGERS}
    return {
        "environment": environment,
        "settings": {one.name: one.get() for one in WATCHED},
        "uri": mlflow.get_tracking_uri(),
        "levels": levels,
    }


@contextmanager
def unchanged() -> Iterator[None]:
    """Inside, another thread looks all the time; it and this one see what was there before, at the end too."""
    before, others, stop = seen(), [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            if (found := seen()) != before:
                others.append(found)
            time.sleep(0.0005)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        stop.set()
        looking.join()
    assert not others, f"{len(others)} times, first {others[0]}"
    assert seen() == before


@pytest.fixture(params=["nothing set", "all set"])
def users_settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for one in WATCHED:
        monkeypatch.delenv(one.name, raising=False)
    if request.param == "all set":
        given = ("3", "77", "1", "true", "false")
        for one, value in zip(WATCHED, given, strict=True):
            monkeypatch.setenv(one.name, value)
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/users.db")


def _everything(store: Store, folder: Path) -> None:
    """A verb of each kind: requests, files, a registration, a model loaded."""
    ping(store)
    run = create_run(store, experiment_name="ours", run_name="r", tags={}, idempotency_key="k", start_time_ms=1)
    artifacts.put_text(store, run.run_id, "hello", "note.txt")
    assert artifacts.download(store, run.run_id, "note.txt", folder / "back").read_text() == "hello"
    finish(store, model_folder(folder), "ours", 0.5)
    assert registry.predict("models:/ours/1", ["def f(): pass"], store.tracking_uri)


@pytest.mark.usefixtures("users_settings")
def test_with_an_embedded_database(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with unchanged():
        _everything(connect(f"sqlite:///{tmp_path}/ours.db"), tmp_path)
    assert "database tables" not in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.usefixtures("users_settings")
def test_with_a_server(tmp_path: Path) -> None:
    with mlflow_server(tmp_path / "server") as uri, unchanged():
        _everything(connect(uri), tmp_path)


def test_our_calls_do_not_retry_and_theirs_do_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    with faulty_proxy("http://127.0.0.1:1", matching="") as proxy:
        proxy.fault = "unavailable"
        store = connect(proxy.uri)
        with pytest.raises(StoreUnavailable):
            get_run(store, "0" * 32)
        assert proxy.count("unavailable") == 1
        proxy.seen.clear()
        with pytest.raises(mlflow.MlflowException):
            mlflow.MlflowClient(proxy.uri).get_run("0" * 32)
        assert proxy.count("unavailable") == 3
        proxy.seen.clear()
        proxy.fault, proxy.delay_s = "slow", 2.0
        errors: list[Exception] = []
        theirs = threading.Thread(
            target=_raised, args=(lambda: mlflow.MlflowClient(proxy.uri).get_run("0" * 32), errors)
        )
        theirs.start()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="timed out"):
            get_run(connect(proxy.uri, request_timeout_s=1.0), "0" * 32)
        assert time.monotonic() - began < 1.8
        theirs.join()
        assert "timeout" not in str(errors[0])


def _raised(call: Callable[[], object], errors: list[Exception]) -> None:
    try:
        call()
    except Exception as error:
        errors.append(error)


TRAIN = """
import sys
sys.path.insert(0, sys.argv[3])
from test_mlflow_of_the_user_is_left_alone import unchanged
from mltrack import TrainModelRequest, TrainModelUseCase

request = dict(task="text_classification", dataset_path=sys.argv[1], tracking_uri=sys.argv[2], model_name="scratch:tiny", max_length=64, batch_size=8, max_steps=4)
with unchanged():
    response = TrainModelUseCase().execute(TrainModelRequest(**request))
assert response.success and response.registered_model, response
with unchanged():
    response = TrainModelUseCase().execute(TrainModelRequest(**{**request, "model_name": "models:/mltrack-text_classification/1"}))
assert response.success, response
print("unchanged")
"""


@pytest.mark.long
def test_during_a_training_in_the_users_process(tmp_path: Path, records_file: Callable[..., Path]) -> None:
    """MLflow is imported before, as in a notebook, so that nothing is handed to another process."""
    words = (
        sys.executable,
        "-c",
        TRAIN,
        records_file("text_classification", 24),
        ready_store(tmp_path),
        Path(__file__).parent,
    )
    finished = commands.run(*words, cwd=tmp_path)
    assert finished.stdout.endswith("unchanged\n"), finished.stdout + finished.stderr
