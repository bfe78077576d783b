"""What each released version of mltrack left behind resumes, delivers, lists, promotes and loads with the code of
today.
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import commands
import mlflow.pyfunc
import pytest
import tiny
from mlflow import MlflowClient

from mltrack import registry

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

RECORDED = Path(__file__).resolve().parent / "recorded"
PLACE = "/tmp/mltrack-recorded"
"""Where the project lay when it was recorded (tests/recorded/record.py)."""
MODEL = "mltrack-text_classification"


def move(database: Path, new: str) -> None:
    """Let a SQLite store name the project's new place."""
    with closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if kind.upper().startswith(("VARCHAR", "TEXT")):
                    connection.execute(
                        f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE {column} LIKE ?",
                        (PLACE, new, f"%{PLACE}%"),
                    )
        connection.commit()


@pytest.fixture(scope="module", params=sorted(path.name for path in RECORDED.glob("*.tar.xz")))
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(RECORDED / request.param) as archive:
        archive.extractall(folder, filter="tar")
    return folder / "project"


@pytest.fixture
def project(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the recorded project, in which a test may do what it likes."""
    new = Path(shutil.copytree(unpacked, tmp_path / "project", symlinks=True))
    move(new / "mlflow.db", str(new))
    for path in [*new.glob("mltrack-runs/*/*.json"), *new.glob("mlruns/**/*.json"), *new.glob("mlruns/**/MLmodel")]:
        if not path.is_symlink() and PLACE in (text := path.read_text(encoding="utf-8")):
            path.write_text(text.replace(PLACE, str(new)), encoding="utf-8")
    monkeypatch.chdir(new)
    return new


def client_of(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project}/mlflow.db")


def mltrack(project: Path, *words: object) -> str:
    """What a command that ends well prints."""
    finished = commands.mltrack(*words, cwd=project)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def run_ids(project: Path) -> dict[str, str]:
    return json.loads((project / "runs.json").read_text(encoding="utf-8"))


def test_a_run_killed_in_mid_epoch_resumes_on_its_own_schedule(project: Path) -> None:
    run_id, client = run_ids(project)["killed"], client_of(project)
    before = client.get_run(run_id)
    response = tiny.last_json_line(mltrack(project, "train", "--resume", run_id, "--output", "json"))
    assert (response["run_id"], response["status"], response["delivery"]) == (run_id, "FINISHED", "complete")
    whole = json.loads((project / "uninterrupted.json").read_text(encoding="utf-8"))
    for key, tolerance in (
        ("learning_rate", 1e-9),
        ("train_loss", 1e-3),
        ("eval_loss", 1e-3),
    ):  # other processors round otherwise
        points = {str(point.step): point.value for point in client.get_metric_history(run_id, key)}
        assert points.keys() == whole[key].keys(), key
        assert all(math.isclose(points[step], value, rel_tol=tolerance) for step, value in whole[key].items()), key
        assert len(client.get_metric_history(run_id, key)) == len(points), "each step once"
    after = client.get_run(run_id)
    assert {key: after.data.params.get(key) for key in before.data.params} == before.data.params
    assert response["registered_model"]["name"] == "mltrack-code_generation"


def test_an_undelivered_run_is_delivered_and_registered(project: Path) -> None:
    local_id = run_ids(project)["undelivered"]
    mltrack(project, "sync", local_id)
    (run,) = client_of(project).search_runs(["0"], f"tags.`mltrack.local_id` = '{local_id}'")
    assert run.info.status == "FINISHED"
    version = client_of(project).get_model_version_by_alias("mltrack-security_classification", "champion")
    assert (version.run_id, int(version.version)) == (run.info.run_id, 1)


def test_runs_and_versions_are_listed(project: Path) -> None:
    ids = run_ids(project)
    runs = [json.loads(line) for line in mltrack(project, "runs", "--output", "json").splitlines()]
    listed = json.dumps(runs)
    assert ids["killed"] in listed
    assert ids["undelivered"] in listed
    shown = mltrack(project, "models", "show", MODEL)
    assert "champion" in shown
    assert "challenger" in shown


def test_a_challenger_is_promoted_and_rolled_back(project: Path) -> None:
    def champion() -> str:
        return client_of(project).get_model_version_by_alias(MODEL, "champion").run_id

    ids = run_ids(project)
    assert champion() == ids["champion"]
    decided = mltrack(
        project, "models", "promote", MODEL, "--dataset-path", "text_classification.jsonl", "--promote-margin", 100
    )
    assert "100" in decided
    assert champion() == ids["champion"], "nothing is better by so much"
    mltrack(project, "models", "promote", MODEL, "--version", 2)
    assert champion() == ids["challenger"]
    mltrack(project, "models", "rollback", MODEL)
    assert champion() == ids["champion"]


def test_a_version_loads_and_predicts(project: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    code = ["def f(x):\n    eval(x)"]
    for alias in ("champion", "challenger"):
        uri = f"models:/{MODEL}@{alias}"
        ours, theirs = registry.load(uri).predict(code), mlflow.pyfunc.load_model(uri).predict(code)
        assert ours == theirs
        assert ours[0]["label"] in {"safe", "unsafe"}
    said = mltrack(project, "predict", "--model-uri", f"models:/{MODEL}@champion", "--text", "def f(x): eval(x)")
    assert "safe" in said
