"""What a registered version points at stays, bytes and all, though its checkpoint is evicted; on every kind of artifact
store.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from artifact_stores import KINDS, ArtifactStore, artifact_store
from hf_folders import encoder_folder
from mlflow import MlflowClient
from retained_checkpoints import RetainedRun

from mltrack.relay import sync
from mltrack.store import connect, models_of_run, prune, register, resolve


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "step-1")


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=[] if kind == "local" else pytest.mark.long) for kind in KINDS]
)
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactStore]:
    with artifact_store(request.param, tmp_path_factory.mktemp(request.param)) as store:
        yield store


def _model_of(there: ArtifactStore, run: RetainedRun, step: int) -> dict[str, Any]:
    (row,) = [row for row in models_of_run(connect(there.uri), run.run_id) if row["step"] == step]
    return row


def _files_of(there: ArtifactStore, model_id: str) -> dict[str, int]:
    return {name: size for name, size in there.files().items() if f"/{model_id}/" in name}


def test_demoted_and_registered_it_stays_and_its_training_state_goes(
    there: ArtifactStore, encoder: Path, tmp_path: Path
) -> None:
    run = RetainedRun(tmp_path / "run", there, encoder)
    run.keep(1)
    sync(run.directory)
    store = connect(there.uri)
    held = _model_of(there, run, 1)
    name = f"kept-{there.kind}"
    version = register(store, name, held["model_id"])
    before = _files_of(there, held["model_id"])
    for kept in ((2,), (3,)):
        run.keep(*kept)
        sync(run.directory)
    run.end()
    sync(run.directory)
    assert _files_of(there, held["model_id"]) == before != {}
    assert (_model_of(there, run, 1)["status"], _model_of(there, run, 3)["status"]) == ("READY", "READY")
    assert {row["step"] for row in models_of_run(store, run.run_id)} == {1, 3}
    folder = resolve(store, f"models:/{name}/{version}", tmp_path / "fetched")
    assert (folder / "model.safetensors").read_bytes() == (encoder / "model.safetensors").read_bytes()
    steps = {
        file.split("checkpoints/")[1].split("/")[0]
        for file in there.files()
        if f"{run.run_id}/artifacts/checkpoints/" in f"/{file}"
    }
    assert steps == {"3", "index.json"}, "a training is not resumed from a evicted checkpoint"


def test_a_relay_without_its_memory_and_a_leftover_sweep_leave_it_alone(
    there: ArtifactStore, encoder: Path, tmp_path: Path
) -> None:
    run = RetainedRun(tmp_path / "run", there, encoder)
    run.keep(1)
    sync(run.directory)
    model_id = _model_of(there, run, 1)["model_id"]
    register(connect(there.uri), f"swept-{there.kind}", model_id)
    before = _files_of(there, model_id)
    run.directory.delivery_file.unlink()
    run.keep(2)
    run.end()
    sync(run.directory)
    assert _files_of(there, model_id) == before
    assert {row["step"]: row["status"] for row in models_of_run(connect(there.uri), run.run_id)} == {
        1: "READY",
        2: "READY",
    }


def test_registered_by_somebody_else_while_it_is_being_pruned(encoder: Path, tmp_path: Path) -> None:
    """After the first question and before the bytes: the pruner asks again."""
    with artifact_store("local", tmp_path / "store") as there:
        run = RetainedRun(tmp_path / "run", there, encoder)
        run.keep(1)
        sync(run.directory)
        store, model_id = connect(there.uri), _model_of(there, run, 1)["model_id"]
        real = store.client

        class Meanwhile:
            def __getattr__(self, verb: str) -> Any:
                if verb == "get_logged_model":
                    register(connect(there.uri), "meanwhile", model_id)
                return getattr(real, verb)

        before = there.files()
        store.client = Meanwhile()
        assert prune(store, model_id) == "registered"
        assert there.files() == before
        assert _model_of(there, run, 1)["status"] == "READY"


def test_while_its_bytes_go_a_model_is_not_ready_and_not_registered(encoder: Path, tmp_path: Path) -> None:
    """Cut off between the bytes and the entry: nobody takes the rest for a model."""
    from mltrack.store import StoreRejected

    class CutOffError(BaseException):
        pass

    with artifact_store("local", tmp_path / "store") as there:
        run = RetainedRun(tmp_path / "run", there, encoder)
        run.keep(1)
        sync(run.directory)
        store, model_id = connect(there.uri), _model_of(there, run, 1)["model_id"]
        real = store.client

        class CutOff:
            def __getattr__(self, verb: str) -> Any:
                if verb == "delete_logged_model":
                    raise CutOffError
                return getattr(real, verb)

        store.client = CutOff()
        with pytest.raises(CutOffError):
            prune(store, model_id)
        assert _files_of(there, model_id) == {}
        assert _model_of(there, run, 1)["status"] == "FAILED"
        with pytest.raises(StoreRejected, match="only a READY model can be registered"):
            register(connect(there.uri), "too-late", model_id)
        assert prune(connect(there.uri), model_id) == "pruned"
        assert (
            MlflowClient(there.uri).search_logged_models(
                [MlflowClient(there.uri).get_run(run.run_id).info.experiment_id]
            )
            == []
        )
