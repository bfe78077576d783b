"""A tracking server on PostgreSQL: every point once, also of a killed trainer.

Needs initdb and postgres (Debian's package `postgresql`). `make test-postgres` fails without them; a plain test run
skips."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import commands
import pytest
import tiny
from mlflow import MlflowClient
from registered_runs import intent, logged_model, model_folder
from servers import free_port, mlflow_server
from sqlalchemy import create_engine, text
from tracked_runs import delivered, kill, recorded_run, sent, start_training, until

from mltrack import registry, relay
from mltrack.journal import RunDirectory
from mltrack.store import StoreUnavailable, connect, list_runs

PASSWORD = "S3cr/et@Pw"
pytestmark = [pytest.mark.postgres, pytest.mark.long]


def _programs() -> Path | None:
    found = shutil.which("initdb")
    folders = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *([Path(found).resolve().parent] if found else []),
    ]
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "createdb").exists()), None)


@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL server with one empty database."""

    uri: str
    control: Callable[[str], object]
    """pg_ctl with these words."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server of its own, started."""
    programs = _programs()
    if programs is None:
        if os.environ.get("MLTRACK_REQUIRE_POSTGRES"):
            pytest.fail("PostgreSQL's initdb is missing; install it (Debian: apt-get install postgresql)")
        pytest.skip("PostgreSQL's initdb is missing; `make test-postgres` insists on it")
    folder, port = Path(tempfile.mkdtemp(prefix="mltrack-postgres-")), free_port()
    as_postgres = ["su", "postgres", "-c"] if os.geteuid() == 0 else ["sh", "-c"]  # initdb refuses root
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    subprocess.run(
        [*as_postgres, f"{programs}/initdb -D {data} -U mlflow -A trust --no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    rules = data / "pg_hba.conf"
    rules.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"

    def control(words: str) -> None:
        command = f"{programs}/pg_ctl -D {data} -w -o '{options}' -l {folder}/log {words}"
        subprocess.run(
            [*as_postgres, command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )

    control("start")
    try:
        subprocess.run(
            [f"{programs}/createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "tracking"], check=True
        )
        yield Cluster(f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/tracking", control)
    finally:
        subprocess.run(
            [*as_postgres, f"{programs}/pg_ctl -D {data} -m immediate stop"], check=False, capture_output=True, cwd="/"
        )
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(cluster, tmp_path_factory) -> Iterator[str]:
    """A tracking server in front of it."""
    with mlflow_server(tmp_path_factory.mktemp("server"), backend=cluster.uri) as uri:
        yield uri


def _assert_all_delivered(client, journal, run_id):
    for name in ("train_loss", "learning_rate", "grad_norm"):
        held = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        assert held == list(tiny.points(journal, name).items())


def test_a_training_is_there_once_with_its_model(server, tmp_path, records_file):
    records = records_file("text_classification", 40)
    words = commands.training(records, "--epochs", "2", "--output", "json")
    finished = commands.mltrack(*words, "--tracking-uri", server, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    response = tiny.last_json_line(finished.stdout)
    assert response["delivery"] == "complete"
    client = MlflowClient(server)
    _assert_all_delivered(client, tmp_path / "mltrack-runs" / response["run_id"] / "journal", response["run_id"])
    assert client.get_model_version_by_alias("mltrack-text_classification", "champion").run_id == response["run_id"]


def test_a_description_that_its_column_cannot_hold_is_cut(server, tmp_path):
    store, folder = connect(server), model_folder(tmp_path)
    outcome = registry.register(
        store, "described", logged_model(store, folder), intent(0.5), "version {version} " + "x" * 20_000
    )
    description = store.client.get_model_version("described", str(outcome.version)).description
    assert description.startswith("version 1 xxx")
    assert len(description) <= 5000


def test_a_killed_trainer_is_failed_with_every_point(server, tmp_path, records_file):
    records = records_file("text_classification", 40)
    process, directory = start_training(records, "--tracking-uri", server, cwd=tmp_path, steps=40)
    kill(process.pid)
    client, run_id = MlflowClient(server), until(lambda: directory.read_run().run_id, "the run in MLflow")
    until(lambda: client.get_run(run_id).info.status != "RUNNING", "the end of the run", 180)
    assert client.get_run(run_id).info.status == "FAILED"
    _assert_all_delivered(client, directory.journal, run_id)


@pytest.fixture(scope="module")
def guarded(cluster) -> str:
    """The URI of a database of its own, without the password that its user needs."""
    engine = create_engine(cluster.uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE guarded LOGIN PASSWORD '{PASSWORD}'"))
        connection.execute(text("CREATE DATABASE guarded OWNER guarded"))
    engine.dispose()
    return cluster.uri.replace("mlflow@", "guarded@").replace("/tracking", "/guarded")


def test_a_password_is_recorded_nowhere_and_found_where_its_users_keep_it(guarded, tmp_path):
    """In the URI that is given or in MLFLOW_TRACKING_URI, in PGPASSWORD, in ~/.pgpass."""
    full = guarded.replace("guarded@", f"guarded:{PASSWORD}@")
    (tmp_path / ".pgpass").write_text(f"*:*:*:guarded:{PASSWORD}\n")
    (tmp_path / ".pgpass").chmod(0o600)
    ways = {
        "option": (("--tracking-uri", full), {}),
        "variable": ((), {"MLFLOW_TRACKING_URI": full}),
        "password": ((), {"PGPASSWORD": PASSWORD}),
        "file": ((), {"HOME": str(tmp_path)}),
    }
    for name, (words, variables) in ways.items():
        directory = recorded_run(tmp_path / "runs" / name, full)
        assert json.loads(directory.run_file.read_text())["tracking_uri"] == guarded
        finished = commands.mltrack("sync", directory.path, *words, cwd=tmp_path, **variables)
        assert finished.returncode == 0, finished.stderr
        assert PASSWORD not in finished.stdout + finished.stderr
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and PASSWORD in path.read_text()]
    assert len(list_runs(connect(full))) == len(ways)


@pytest.mark.parametrize(
    ("given", "said"),
    [(None, "no password was given, put it into"), ("another", "check the user name and password in")],
)
def test_a_password_that_is_missing_or_wrong_is_said_with_its_places(guarded, tmp_path, monkeypatch, given, said):
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    if given is not None:
        monkeypatch.setenv("PGPASSWORD", given)
    with pytest.raises(StoreUnavailable) as refused:
        relay.sync(recorded_run(tmp_path / "run", guarded))
    assert f"; {said} MLFLOW_TRACKING_URI or --tracking-uri, PGPASSWORD or ~/.pgpass" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_given_directly_and_away_at_the_start_it_gets_everything_when_it_is_back(cluster, tmp_path, records_file):
    """The training starts while PostgreSQL is stopped; PostgreSQL starts while it trains, and is stopped and started
    once more.
    """
    records = records_file("text_classification", 40)
    words = commands.training(records, "--epochs", "9999", "--max-steps", "200", "--output", "json")
    engine = create_engine(cluster.uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE direct"))  # of no server, which would keep the files itself
    engine.dispose()
    uri = cluster.uri.replace("/tracking", "/direct")
    cluster.control("-m immediate stop")
    process = commands.start(*words, "--tracking-uri", uri, cwd=tmp_path)
    journal = until(lambda: next(iter(tmp_path.glob("mltrack-runs/*/journal")), None), "a journal", 90)
    until(lambda: len(tiny.points(journal, "train_loss")) >= 5, "steps without the database", 60)
    directory = RunDirectory(journal.parent)
    cluster.control("start")
    until(lambda: sent(directory) > 0, "the first points")
    cluster.control("-m immediate stop")
    cluster.control("start")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    until(lambda: delivered(directory), "the rest of the delivery", 180)
    _assert_all_delivered(MlflowClient(uri), journal, str(directory.read_delivery()["run_id"]))
