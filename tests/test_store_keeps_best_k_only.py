"""The artifact store holds the checkpoints that stay and no byte of another one, on every kind of store and whenever
the relay was killed.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import cut_off
import pytest
from artifact_stores import KINDS, ArtifactStore, artifact_store
from hf_folders import decoder_folder, encoder_folder, write_model_folder
from mlflow import MlflowClient
from retained_checkpoints import EVALUATION_SET, RetainedRun

from mltrack.relay import sync
from mltrack.store import artifacts, connect, light_model, models_of_run, placement


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "step-1")


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=[] if kind == "local" else pytest.mark.long) for kind in KINDS]
)
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactStore]:
    with artifact_store(request.param, tmp_path_factory.mktemp(request.param)) as store:
        yield store


def test_the_demoted_ones_bytes_are_gone(there: ArtifactStore, encoder: Path, tmp_path: Path) -> None:
    """Steps 1, 10 and 11: on S3, MLflow before 3.17 deletes by the beginning of a name."""
    run, other = RetainedRun(tmp_path / "run", there, encoder), RetainedRun(tmp_path / "other", there, encoder)
    other.keep(1)
    other.end()
    sync(other.directory)
    before = there.model_folders()
    for kept in ((1,), (1, 10), (1, 10, 11), (10, 11)):
        run.keep(*kept)
        sync(run.directory)
        run.assert_store_holds(*kept)
    run.keep(11, 12)  # what was never seen by a relay goes as well
    run.keep(12, 13)
    run.end()
    assert sync(run.directory).failed == []
    run.assert_store_holds(12, 13)
    assert len(there.model_folders() - before) == 2
    other.assert_store_holds(1)
    index = artifacts.download(connect(there.uri), run.run_id, "checkpoints/index.json", tmp_path / "index").read_text()
    assert all(row["model_id"] in index for row in models_of_run(connect(there.uri), run.run_id))


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["local", "proxied"])
def test_killed_between_any_two_steps_and_started_again(kind: str, encoder: Path, tmp_path: Path) -> None:
    """Step 1 is there, 2 is to be published and 1 to go; every other time 2 is evicted as well before the relay comes
    back.
    """
    with artifact_store(kind, tmp_path / "store") as there, cut_off.relays() as relay:

        def begun(name: str) -> RetainedRun:
            run = RetainedRun(tmp_path / name, there, encoder)
            run.keep(1)
            relay(run.directory)
            run.keep(2)
            return run

        whole = begun("whole")
        steps = relay(whole.directory)
        whole.assert_store_holds(2)
        cuts = cut_off.between(steps)
        assert {"create_logged_model", "finalize_logged_model", "delete_logged_model", "log_outputs", "log_batch"} <= {
            steps[cut] for cut in cuts
        }
        for number, cut in enumerate(cuts):
            run = begun(f"cut-{cut}")
            assert relay(run.directory, cut) == steps[:cut]
            if number % 2:
                run.keep(3)
            run.end()
            relay(run.directory)
            run.assert_store_holds(3 if number % 2 else 2)
            held = MlflowClient(there.uri).get_metric_history(run.run_id, "eval_loss")
            assert [point.step for point in held] == [1, 2, 3][: 3 if number % 2 else 2], (
                "a model's metric is no second point of the run"
            )
        assert len(there.model_folders()) == len(cuts) + 1


def test_a_directory_without_its_delivery_file_loses_no_model(
    there: ArtifactStore, encoder: Path, tmp_path: Path
) -> None:
    """Delivered again from the first byte: what stands there now is not taken for what was left over from then."""
    run = RetainedRun(tmp_path / "run", there, encoder)
    for kept in ((1,), (1, 2), (2, 3)):
        run.keep(*kept)
    run.end()
    sync(run.directory)
    ids = [row["model_id"] for row in models_of_run(connect(there.uri), run.run_id)]
    run.directory.delivery_file.unlink()
    sync(run.directory)
    run.assert_store_holds(2, 3)
    assert [row["model_id"] for row in models_of_run(connect(there.uri), run.run_id)] == ids


def test_linked_and_never_written_through(tmp_path: Path) -> None:
    checkpoint = decoder_folder(tmp_path / "decoder", hidden_size=256)
    with artifact_store("local", tmp_path / "store") as there:
        run = RetainedRun(tmp_path / "run", there, checkpoint)
        run.keep(1, 2)
        original = (run.folder(1) / "model.safetensors").read_bytes()
        sync(run.directory)
        rows = models_of_run(connect(there.uri), run.run_id)
        placed = [Path(row["artifact_location"].removeprefix("file://")) / "model.safetensors" for row in rows]
        assert [
            path.samefile(run.folder(step) / "model.safetensors") for path, step in zip(placed, (1, 2), strict=True)
        ] == [True, True]
        run.keep(2)
        sync(run.directory)
        assert not placed[0].exists()
        checkpoint_weights = run.folder(2) / "model.safetensors"
        assert checkpoint_weights.read_bytes() == original, "the other checkpoint is as it was"
        assert checkpoint_weights.stat().st_nlink == 2
        run.keep(3)  # the folder of step 2 goes: the store's own name keeps nothing of it either
        sync(run.directory)
        run.assert_store_holds(3)


def test_copied_where_the_file_system_gives_no_link(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    checkpoint = decoder_folder(tmp_path / "decoder", hidden_size=256)
    folder = memory / f"mltrack-test-{os.getpid()}"
    try:
        with artifact_store("local", tmp_path / "store") as there:
            run = RetainedRun(folder / "run", there, checkpoint)
            run.keep(1)
            sync(run.directory)
            run.assert_store_holds(1)
            (row,) = models_of_run(connect(there.uri), run.run_id)
            placed = Path(row["artifact_location"].removeprefix("file://")) / "model.safetensors"
            assert placed.stat().st_size >= placement.LINK_FROM_BYTES
            assert placed.stat().st_dev != run.folder(1).stat().st_dev
            run.keep(2)
            sync(run.directory)
            run.assert_store_holds(2)
    finally:
        placement.remove(folder)


def test_what_a_killed_process_left_under_a_temporary_name_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    ended = commands.run(sys.executable, "-c", "import os; print(os.getpid())", cwd=tmp_path).stdout.strip()
    host = os.uname().nodename
    names = {
        "dead": f".mltrack-{host}-{ended}-abc",
        "living": f".mltrack-{host}-{os.getppid()}-abc",
        "elsewhere": ".mltrack-a-b-1-abc",
    }
    for name in names.values():
        (tmp_path / "root" / name).mkdir(parents=True)
    placement.place_text("x", tmp_path / "root" / "file")
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == sorted(
        [names["living"], names["elsewhere"], "file"]
    )


def test_a_checkpoint_is_in_the_store_once_and_whole(encoder: Path, tmp_path: Path) -> None:
    """What the logged model does not hold byte for byte lies beside it, the list of hashes last."""
    folder = write_model_folder(encoder, tmp_path / "model", task="text_classification", hf_config={}, requirements=[])
    beside = light_model.files_beside_model(encoder)
    assert beside[-1] == "metadata.json"
    assert set(beside) == {"config.json", "metadata.json", "optimizer.json", "optimizer.safetensors", "state.json"}
    for path in encoder.iterdir():
        if path.name not in beside:
            assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


SEEN = """
import json, os, sys, mlflow
experiment, name, digest = sys.argv[1:]
by = [{"field_name": "metrics.eval_loss", "ascending": True, "dataset_name": name, "dataset_digest": digest}]
found = mlflow.search_logged_models([experiment], order_by=by, output_format="list", datasets=[{"dataset_name": name, "dataset_digest": digest}])
answers = []
for model in found:
    uri = f"models:/{model.model_id}"
    row = mlflow.pyfunc.load_model(uri).predict(["eval(x)"])[0]
    assert mlflow.transformers.load_model(uri)("eval(x)")[0]["label"] == row["label"]
    (metric,) = model.metrics
    answers.append([int(model.tags["mltrack.step"]), str(model.status), metric.key, metric.value, metric.step, metric.dataset_name, metric.dataset_digest])
assert "mltrack" not in sys.modules
print(json.dumps(answers))
"""


@pytest.mark.long
def test_seen_sorted_by_what_was_measured_on_which_data_and_loaded_directly(encoder: Path, tmp_path: Path) -> None:
    with artifact_store("local", tmp_path / "store") as there:
        run = RetainedRun(tmp_path / "run", there, encoder)
        run.keep(3, 1, 2)
        run.end()
        sync(run.directory)
        client = MlflowClient(there.uri)
        held = client.get_run(run.run_id)
        name, digest = EVALUATION_SET["name"], EVALUATION_SET["digest"]
        finished = commands.run(
            sys.executable,
            "-c",
            SEEN,
            held.info.experiment_id,
            name,
            digest,
            cwd=tmp_path,
            MLFLOW_TRACKING_URI=there.uri,
            PYTHONPATH="",
        )
        assert finished.returncode == 0, finished.stderr
        answers = json.loads(finished.stdout.strip().splitlines()[-1])
        assert answers == [
            [step, "READY", "eval_loss", pytest.approx(1 / step), step, name, digest] for step in (3, 2, 1)
        ]
        assert sorted(output.step for output in held.outputs.model_outputs) == [1, 2, 3]
        assert sorted(point.step for point in client.get_metric_history(run.run_id, "eval_loss")) == [1, 2, 3]
        assert not any(
            math.isnan(point.value)
            for model in client.search_logged_models([held.info.experiment_id])
            for point in model.metrics
        )
