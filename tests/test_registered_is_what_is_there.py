"""What a run says that it registered is there: a model that somebody deleted is published again, and a registration
that failed is not reported.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
import tiny
from artifact_stores import ArtifactStore, artifact_store
from hf_folders import encoder_folder
from ready_store import ready_store
from retained_checkpoints import RetainedRun

from mltrack import registry
from mltrack.journal import records
from mltrack.relay import sync
from mltrack.store import connect, models_of_run


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactStore]:
    with artifact_store("local", tmp_path_factory.mktemp("local")) as store:
        yield store


@pytest.fixture
def finished(there: ArtifactStore, tmp_path: Path) -> RetainedRun:
    """A run whose best, step 1, was registered, and then deleted by force."""
    run = RetainedRun(tmp_path / "run", there, encoder_folder(tmp_path / "encoder" / "step-1"))
    run.keep(1, 2)
    ends(run, tmp_path.name)
    registered = sync(run.directory).registered
    assert registered is not None
    registry.delete(tmp_path.name, registered["version"], there.uri, force=True)
    assert [row["step"] for row in models_of_run(connect(there.uri), run.run_id)] == [2]
    return run


def ends(run: RetainedRun, name: str, step: int = 1) -> None:
    fields = {"registered_name": name, "promote": "auto", "metrics": {}, "tags": {}, "description": ""}
    run.record(records.model(step=step, path=f"checkpoints/{run.folder(step).name}", **fields))
    run.end()


@pytest.mark.parametrize("further", [(), (1, 3)], ids=["nothing-left", "went-on"])
def test_what_was_deleted_is_published_and_registered_again(
    further: tuple[int, ...], finished: RetainedRun, there: ArtifactStore, tmp_path: Path
) -> None:
    run = finished
    run.record(records.resumed(2, 0))
    if further:
        run.keep(*further)
    ends(run, tmp_path.name)
    progress = sync(run.directory)
    assert progress.failed == []
    assert progress.registered is not None
    assert (
        Path(registry.local_folder(f"models:/{tmp_path.name}/{progress.registered['version']}", there.uri))
        / "model.safetensors"
    ).exists()
    run.assert_store_holds(*(further or (1, 2)))
    assert progress.best_model_id == models_of_run(connect(there.uri), run.run_id)[0]["model_id"]


def test_a_registration_that_failed_is_not_an_earlier_one(finished: RetainedRun, tmp_path: Path) -> None:
    """Its bytes are not here either."""
    run = finished
    shutil.rmtree(run.folder(1))
    run.record(records.resumed(2, 0))
    ends(run, tmp_path.name)
    progress = sync(run.directory)
    assert progress.failed == ["model of step 1: its checkpoint was not delivered"]
    assert (progress.registered, progress.best_model_id) == (None, None)


def test_in_a_new_place_only_the_model_that_the_run_ended_with_is_registered(
    finished: RetainedRun, tmp_path: Path
) -> None:
    """The one of the training that was resumed is superseded, whether its checkpoint is still here or not."""
    run = finished
    run.record(records.resumed(2, 0))
    run.keep(3, best=3)
    ends(run, tmp_path.name, step=3)
    progress = sync(run.directory, ready_store(tmp_path, "new.db"))
    assert (progress.failed, progress.complete) == ([], True)
    assert progress.registered is not None
    assert progress.registered["version"] == "1"


@pytest.mark.long
def test_a_resumed_training_reports_the_version_that_is_there(tmp_path: Path, records_file) -> None:
    uri, name = ready_store(tmp_path), "mltrack-text_classification"
    words = commands.training(records_file("text_classification", 40), "--max-steps", "4", "--output", "json")
    first = commands.mltrack(*words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    run_id = tiny.last_json_line(first.stdout)["run_id"]
    deleted = commands.mltrack("models", "delete", name, "--version", "1", "--force", "true", cwd=tmp_path)
    assert deleted.returncode == 0, deleted.stderr
    resumed = commands.mltrack("train", "--resume", run_id, "--max-steps", "8", "--output", "json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "refused" not in resumed.stderr
    response = tiny.last_json_line(resumed.stdout)
    registered = response["registered_model"]
    assert response["delivery"] == "complete"
    for model in (f"models:/{registered['name']}/{registered['version']}", response["model_uri"]):
        assert registry.predict(str(registry.local_folder(model, uri)), ["def f(x): return x"])
