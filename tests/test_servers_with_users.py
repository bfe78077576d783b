"""A server with users and permissions: each refusal is one line that names the permission, and what a user cannot see
is not deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
import pytest
from artifact_stores import ArtifactStore
from conftest import _records
from hf_folders import encoder_folder
from mlflow import MlflowClient
from retained_checkpoints import RetainedRun
from servers import mlflow_server

from mltrack.journal import records
from mltrack.relay import sync
from mltrack.store import StoreDenied, connect, get_run, models_of_run, prune
from mltrack.store.runs import find_experiment

pytest.importorskip("flask_wtf", reason="mlflow's own users need mlflow[auth]")
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
MODEL = "theirs"
CONFIG = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/users.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
SignIn = Callable[[str], MlflowClient]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("users")
    (folder / "auth.ini").write_text(CONFIG.format(folder=folder))
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "password-of-admin",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "x",
    }
    with mlflow_server(folder, options=("--app-name", "basic-auth"), **variables) as uri:
        yield uri


@pytest.fixture
def sign_in(server: str, monkeypatch: pytest.MonkeyPatch) -> SignIn:
    """From now on requests are those of this user, who is made where missing."""

    def as_user(name: str) -> MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"password-of-{name}")
        return MlflowClient(server)

    as_user("admin")
    from mlflow.server import get_app_client

    for name in ("one", "two"):
        users = get_app_client("basic-auth", tracking_uri=server)
        try:
            users.get_user(name)
        except Exception:
            users.create_user(name, f"password-of-{name}")
    return as_user


def test_what_a_user_may_not_is_one_line_with_the_permission(server: str, sign_in: SignIn, tmp_path: Path) -> None:
    theirs = sign_in("one").create_experiment("of one")
    run_id = sign_in("one").create_run(theirs).info.run_id
    sign_in("two")
    store = connect(server)
    with pytest.raises(
        StoreDenied,
        match=(
            r"looking for the experiment 'of one': permission denied \(403\) for user two; this needs the permission READ"
        ),
    ):
        find_experiment(store, "of one")
    with pytest.raises(
        StoreDenied,
        match=rf"reading run {run_id}: permission denied \(403\) for user two; this needs the permission READ",
    ):
        get_run(store, run_id)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = "wrong"
    with pytest.raises(
        StoreDenied, match=r"check the user name and password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    ):
        get_run(store, run_id)
    (tmp_path / "r.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in _records("text_classification", 24)), encoding="utf-8"
    )
    words = (
        "train",
        "--task",
        "text_classification",
        "--dataset-path",
        "r.jsonl",
        *commands.TINY,
        "--max-steps",
        "1",
        "--tracking-uri",
        server,
    )
    user = {"MLFLOW_TRACKING_USERNAME": "two", "MLFLOW_TRACKING_PASSWORD": "password-of-two"}
    waiting = commands.mltrack(*words, "--experiment-name", "of one", cwd=tmp_path, **user)
    assert waiting.returncode == 0, waiting.stderr
    assert "permission denied (403) for user two; this needs the permission READ" in waiting.stderr + waiting.stdout
    assert "Traceback" not in waiting.stderr


def test_a_model_that_belongs_to_somebody_else_keeps_the_registration_waiting_alone(
    server: str, sign_in: SignIn, tmp_path: Path
) -> None:
    sign_in("one").create_registered_model(MODEL)
    sign_in("two").create_experiment("of two")
    there = ArtifactStore("proxied", server, "of two", dict, lambda path: b"")
    run = RetainedRun(tmp_path / "run", there, encoder_folder(tmp_path / "encoder" / "step-1"))
    run.keep(1)
    run.record(
        records.model(
            step=1,
            path="checkpoints/step-00000001",
            registered_name=MODEL,
            promote="auto",
            promote_margin=0.0,
            metrics={},
            tags={},
            description="",
        )
    )
    run.end()
    with pytest.raises(
        StoreDenied, match=rf"{MODEL}: permission denied \(403\) for user two; this needs the permission READ"
    ):
        sync(run.directory)
    delivery = run.directory.read_delivery()
    assert (delivery["registered"], delivery["failed"]) == (None, [])
    assert MlflowClient(server).get_run(delivery["run_id"]).info.status == "FINISHED"
    assert "permission denied (403) for user two" in delivery["waiting"]
    store = connect(server)
    (row,) = models_of_run(store, delivery["run_id"])
    sign_in("admin").create_model_version(MODEL, f"models:/{row['model_id']}", model_id=row["model_id"])
    sign_in("two")
    assert MlflowClient(server).search_model_versions("") == [], "two does not see it"
    assert prune(store, row["model_id"]) == "registered"
    assert [(one["step"], one["status"]) for one in models_of_run(store, delivery["run_id"])] == [(1, "READY")]
