"""Every way a store can fail ends in one line of the right kind, and soon."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from servers import free_port

from mltrack.store import StoreRejected, StoreUnavailable, connect, create_run, default_tracking_uri, get_run, ping


def test_importing_the_package_loads_no_mlflow_and_using_it_neither_torch_nor_transformers(tmp_path: Path) -> None:
    program = (
        "import sys, mltrack.store as s\n"
        "assert 'mlflow' not in sys.modules and 'yaml' not in sys.modules\n"
        "assert s.active_run() is None\n"
        "store = s.connect(s.default_tracking_uri(None))\n"
        "run = s.create_run(store, experiment_name='e', run_name='r', tags={}, idempotency_key='k', start_time_ms=1)\n"
        "s.log_points(store, run.run_id, [('a', 1.0, 5, 1)]); s.log_params(store, run.run_id, {'p': '1'})\n"
        "assert not {'torch', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules), 'heavy'\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
    assert (tmp_path / "mlflow.db").exists()


def test_two_processes_that_begin_at_once_on_an_empty_folder_share_one_experiment(tmp_path: Path) -> None:
    program = (
        "import sys, mltrack.store as s\nstore = s.connect('sqlite:///mlflow.db')\nrun = s.create_run(store,"
        " experiment_name='race', run_name='r', tags={}, idempotency_key=sys.argv[1],"
        " start_time_ms=1)\nprint(run.experiment_id)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, key],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for key in ("a", "b", "c")
    ]
    results = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], [err[-800:] for _, err in results]
    assert len({out.strip() for out, _ in results}) == 1


def test_default_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_tracking_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert default_tracking_uri("sqlite:///a/b.db?timeout=5") == f"sqlite:///{tmp_path}/a/b.db?timeout=5"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert default_tracking_uri(None) == "http://host:5000"
    assert default_tracking_uri("sqlite:////x/y.db") == "sqlite:////x/y.db"


def test_a_dead_server_costs_little_and_names_the_remedy() -> None:
    store = connect(f"http://user:secret@127.0.0.1:{free_port()}")
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"asking for an experiment: .*MLFLOW_TRACKING_URI") as caught:
        ping(store)
    assert time.monotonic() - start < 10
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_costs_one_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = connect(f"http://127.0.0.1:{silent.getsockname()[1]}", request_timeout_s=1)
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match="timed out"):
            ping(store)
        assert time.monotonic() - start < 10


def test_the_file_store_is_refused_with_what_to_use(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "mlruns"), (tmp_path / "mlruns").as_uri()):
        with pytest.raises(StoreRejected, match=r"use sqlite:///mlflow.db or a server"):
            connect(uri)


def test_a_database_in_a_missing_folder_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="does not exist; make it"):
        connect(f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    (tmp_path / "text.db").write_text(
        "this is not a database, it is only a text that is long enough to be read as one" * 40
    )
    with pytest.raises((StoreRejected, StoreUnavailable), match="file is not a database"):
        connect(f"sqlite:///{tmp_path}/text.db")


@pytest.mark.long
def test_a_database_whose_tables_are_being_made_is_waited_for_and_an_old_one_is_rejected(tmp_path: Path) -> None:
    """MLflow's own processes make tables without our lock: what looks out of date may be complete in a second."""
    connect(f"sqlite:///{tmp_path}/made.db")
    database = Path(shutil.copy(tmp_path / "made.db", tmp_path / "between.db"))
    with closing(sqlite3.connect(database)) as connection:
        ((newest,),) = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        connection.execute("UPDATE alembic_version SET version_num = '75868b020152'")
        connection.commit()
    with pytest.raises(StoreUnavailable, match=r"75868b020152"):
        connect(f"sqlite:///{database}")
    os.utime(database, (0, 0))
    with pytest.raises(StoreRejected, match=r"75868b020152"):
        connect(f"sqlite:///{database}")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (newest,))
        connection.commit()
    ping(connect(f"sqlite:///{database}"))


def test_versions_are_kept_where_the_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another registry holds is not asked when checkpoints are deleted, so no version may lie in one."""
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/registry.db")
    store = connect(f"sqlite:///{tmp_path}/mlflow.db")
    store.client.create_registered_model("one")
    assert [model.name for model in store.client.search_registered_models()] == ["one"]
    assert not (tmp_path / "registry.db").exists()


def test_a_missing_run_is_rejected_and_a_locked_database_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = connect("sqlite:///mlflow.db?timeout=1")
    with pytest.raises(StoreRejected, match="reading run 0123"):
        get_run(store, "0123")
    blocker = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    try:
        blocker.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="database is locked"):
            create_run(store, experiment_name=None, run_name="r", tags={}, idempotency_key="k", start_time_ms=1)
    finally:
        blocker.close()
    assert (
        create_run(store, experiment_name=None, run_name="r", tags={}, idempotency_key="k", start_time_ms=1).status
        == "RUNNING"
    )
