"""MLFLOW_RUN_ID and MLFLOW_EXPERIMENT_ID that name something deleted, missing or of another tool: the line says which
variable named it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ready_store import ready_store

from mltrack import TrainingMetricsTracker
from mltrack.config import TrainModelRequest
from mltrack.journal import RunDirectory
from mltrack.relay import sync
from mltrack.runs.description import describe_run
from mltrack.store import StoreRejected, connect
from mltrack.store.runs import find_experiment

Open = Callable[..., list[str]]


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(ready_store(tmp_path))


@pytest.fixture
def lines(client: MlflowClient, tmp_path: Path) -> Open:
    """What is said while the run of a training is opened, by the trainer and by its relay."""

    def opened() -> list[str]:
        said: list[str] = []
        request = TrainModelRequest(
            task="text_classification", model_name="scratch:tiny", dataset_path="x", tracking_uri=client.tracking_uri
        )
        info = describe_run(request, None, said.append)
        with TrainingMetricsTracker(tmp_path / info.local_id, run=info) as tracker:
            tracker.log_metric("train_loss", 1.0, step=1)
        sync(directory := RunDirectory(tmp_path / info.local_id))
        return said + directory.read_delivery()["notices"]

    return opened


def test_a_run_that_cannot_be_written(client: MlflowClient, lines: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = client.create_run("0").info.run_id
    client.delete_run(run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(
        StoreRejected,
        match=f"^MLFLOW_RUN_ID names run {run_id}: .*: run {run_id} is deleted; restore it with '.*mlflow runs restore",
    ):
        lines()
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(StoreRejected, match=f"^MLFLOW_RUN_ID names run {'0' * 32}: .* not found$"):
        lines()
    Path(client.tracking_uri.removeprefix("sqlite:///")).unlink()
    with pytest.raises(StoreRejected, match=f"^MLFLOW_RUN_ID names run {'0' * 32}: there is no database sqlite:"):
        lines()


def test_a_run_of_another_tool_is_said_and_one_of_mlflow_run_is_not(
    client: MlflowClient, lines: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = client.create_run("0", run_name="sweep 7", tags={"mlflow.source.name": "their_script.py"})
    client.log_metric(run.info.run_id, "their_loss", 0.5)
    client.set_terminated(run.info.run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    (line,) = lines()
    assert (
        line == f"MLFLOW_RUN_ID names run {run.info.run_id} ('sweep 7' of their_script.py, FINISHED, 1 metrics), which"
        " mltrack did not create; this training is added to it"
    )
    projects = client.create_run("0", tags={"mlflow.source.type": "PROJECT", "mlflow.source.name": "."})
    monkeypatch.setenv("MLFLOW_RUN_ID", projects.info.run_id)
    assert lines() == []


def test_an_experiment_that_cannot_be_written(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    store = connect(client.tracking_uri)
    experiment = client.create_experiment("theirs")
    client.delete_experiment(experiment)
    for variable, value in (("MLFLOW_EXPERIMENT_ID", experiment), ("MLFLOW_EXPERIMENT_NAME", "theirs")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            with pytest.raises(
                StoreRejected,
                match=(
                    f"experiment 'theirs' that {variable} names is deleted; .*experiments restore --experiment-id"
                    f" {experiment}"
                ),
            ):
                find_experiment(store, None)
            assert find_experiment(store, "Default") == "0", "the command line wins"
    for wrong in ("77", "abc"):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", wrong)
        with pytest.raises(
            StoreRejected,
            match=f"looking for the experiment that MLFLOW_EXPERIMENT_ID names .*--experiment-name.*: .*{wrong}",
        ):
            find_experiment(store, None)
