"""A database that somebody else can write to: what it calls a run's or a model's folder is touched only where it is
one.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hf_folders import encoder_folder, write_model_folder

from mltrack import registry
from mltrack.store import (
    RunInfo,
    Store,
    StoreRejected,
    artifacts,
    connect,
    create_run,
    models_of_run,
    prune,
    publish,
    register,
)
from mltrack.store.light_model import identified

SECRET = b"CANARY: a year of work"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is made once, for each test to copy."""
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(here: Path, tables: Path) -> Store:
    shutil.copy(tables, here)
    return connect("sqlite:///mlflow.db")


@pytest.fixture
def run(store: Store) -> RunInfo:
    return create_run(store, experiment_name=None, run_name="r", tags={}, idempotency_key="k", start_time_ms=1)


@pytest.fixture
def house(here: Path) -> Path:
    (here / "house" / "checkpoints" / "1").mkdir(parents=True)
    for name in ("thesis.txt", "config.json", "checkpoints/1/data.bin"):
        (here / "house" / name).write_bytes(SECRET)
    return here / "house"


@pytest.fixture
def model(store: Store, run: RunInfo, here: Path) -> str:
    folder = write_model_folder(
        encoder_folder(here / "checkpoint"), here / "model", task="text_classification", hf_config={}, requirements=[]
    )
    return publish(store, run.run_id, folder, name="step-1", step=1, tags={}, metrics={}, timestamp_ms=1)


def alter(here: Path, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(here / "mlflow.db")) as database:
        database.execute(statement, values)
        database.commit()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nothing(house: Path, model_id: str) -> None:
    """A house without an MLmodel file."""


def of_another(house: Path, model_id: str) -> None:
    (house / "MLmodel").write_text(identified("flavors: {}\n", model_id="m-" + "0" * 32, run_id="r"))


def unreadable(house: Path, model_id: str) -> None:
    (house / "MLmodel").write_text("[" * 5000 + f"model_id: {model_id}")


@pytest.mark.parametrize("holding", [nothing, of_another, unreadable])
def test_a_model_whose_folder_is_somebodys_house(
    here: Path, store: Store, run: RunInfo, model: str, house: Path, holding: Callable[..., None]
) -> None:
    holding(house, model)
    before = contents(house)
    alter(here, "UPDATE logged_models SET artifact_location = ? WHERE model_id = ?", str(house), model)
    assert prune(store, model) == "foreign"
    assert contents(house) == before
    assert [(row["model_id"], row["status"]) for row in models_of_run(store, run.run_id)] == [(model, "READY")]
    register(store, "told", model)
    assert any("nothing of it was deleted" in line for line in registry.delete("told", tracking_uri=store.tracking_uri))
    assert contents(house) == before


def test_its_own_folder_goes_wherever_that_lies(here: Path, store: Store, run: RunInfo, model: str) -> None:
    (row,) = models_of_run(store, run.run_id)
    moved = Path(row["artifact_location"].removeprefix("file://")).rename(here / "moved")
    alter(here, "UPDATE logged_models SET artifact_location = ? WHERE model_id = ?", str(moved), model)
    assert prune(store, model) == "pruned"
    assert not moved.exists()


def test_a_run_whose_folder_is_somebodys_house(here: Path, store: Store, run: RunInfo, house: Path) -> None:
    before = contents(house)
    alter(here, "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", str(house), run.run_id)
    store = connect(store.tracking_uri)
    (here / "config.json").write_text("{}")
    for touch in (
        lambda: artifacts.delete(store, run.run_id, "checkpoints/1"),
        lambda: artifacts.put_file(store, run.run_id, here / "config.json"),
        lambda: artifacts.put_text(store, run.run_id, "text", "thesis.txt"),
        lambda: artifacts.download(store, run.run_id, "thesis.txt", here / "fetched"),
        lambda: artifacts.list_files(store, run.run_id),
    ):
        with pytest.raises(StoreRejected, match="not that run's folder"):
            touch()
    assert contents(house) == before


def test_a_link_in_the_runs_folder_leads_nowhere(here: Path, store: Store, run: RunInfo, house: Path) -> None:
    before = contents(house)
    root = Path(run.artifact_uri.removeprefix("file://"))
    root.mkdir(parents=True)
    (root / "reports").symlink_to(house)
    (here / "config.json").write_text("{}")
    for touch in (
        lambda: artifacts.put_file(store, run.run_id, here / "config.json", "reports"),
        lambda: artifacts.delete(store, run.run_id, "reports/checkpoints"),
    ):
        with pytest.raises(StoreRejected, match="leads out"):
            touch()
    assert contents(house) == before


def test_the_lock_of_a_database_follows_no_link_and_waits_for_no_pipe(here: Path, house: Path, tables: Path) -> None:
    before = contents(house)
    for name in ("linked", "piped", "plain"):
        shutil.copy(tables, here / f"{name}.db")
    (here / ".linked.db.lock").symlink_to(house / "thesis.txt")
    os.mkfifo(here / ".piped.db.lock")
    for name in ("linked", "piped", "plain"):
        connect(f"sqlite:///{name}.db").client.search_experiments()
    assert contents(house) == before
    assert (here / ".plain.db.lock").read_bytes() == b""
