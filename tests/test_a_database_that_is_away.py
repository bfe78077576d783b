"""A database given directly as tracking URI that is away or silent costs seconds, as a tracking server does, and a
training starts without it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
import tiny
from servers import free_port

from mltrack.store import StoreRejected, StoreUnavailable, connect
from mltrack.store.refusal import StoreSlow

MLFLOWS_OWN_WAIT_S = 101.3
"""What MLflow's ten tries take."""
WORDS = (
    "train",
    "--task",
    "text_classification",
    *commands.TINY,
    "--max-steps",
    "2",
    "--exit-wait",
    "1",
    "--output",
    "json",
)


@pytest.fixture
def silent() -> Iterator[str]:
    """A socket that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{listener.getsockname()[1]}/tracking"


@pytest.fixture
def refusing() -> str:
    return f"postgresql+psycopg2://mlflow:secret@127.0.0.1:{free_port()}/tracking"


def test_one_that_refuses(refusing: str) -> None:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"^postgresql\+psycopg2://mlflow@.*connecting: .*refused") as caught:
        connect(refusing)
    assert "secret" not in str(caught.value)
    assert time.monotonic() - began < 10


def test_one_that_is_silent(silent: str) -> None:
    began = time.monotonic()
    with pytest.raises(StoreSlow, match="timeout expired"):
        connect(silent, request_timeout_s=2)
    assert time.monotonic() - began < 10


def test_a_time_out_that_the_user_has_given_stays(silent: str) -> None:
    began = time.monotonic()
    with pytest.raises(StoreSlow):
        connect(f"{silent}?connect_timeout=2", request_timeout_s=30)
    assert time.monotonic() - began < 15


def test_a_driver_that_is_not_installed_is_said_at_once() -> None:
    with pytest.raises(StoreRejected, match=r"write postgresql\+psycopg2:// and pip install 'mltrack\[postgres\]'$"):
        connect("postgresql+psycopg://mlflow@127.0.0.1:1/tracking")
    with pytest.raises(StoreRejected, match="install the package"):
        connect("mysql+pymysql://mlflow@127.0.0.1:1/tracking")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_a_training_starts_without_it(kind: str, request: pytest.FixtureRequest, tmp_path: Path, records_file) -> None:
    began = time.monotonic()
    words = (
        *WORDS,
        "--dataset-path",
        records_file("text_classification", 24),
        "--tracking-uri",
        request.getfixturevalue(kind),
    )
    finished = commands.mltrack(*words, cwd=tmp_path)
    assert time.monotonic() - began < MLFLOWS_OWN_WAIT_S
    assert finished.returncode == 0, finished.stderr
    response = tiny.last_json_line(finished.stdout)
    assert (response["status"], response["steps_run"], response["delivery"]) == ("FINISHED", 2, "pending")
