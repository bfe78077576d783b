"""What the user's process has switched on before a training: it changes nothing of the training, and the training
nothing of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from conftest import _records
from mlflow import MlflowClient
from mlflow.entities import ViewType
from tracked_runs import STREAM

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

SWITCHED_ON = """
import asyncio, json, logging, warnings
import mlflow
from mltrack import TrainModelRequest, TrainModelUseCase

mlflow.set_tracking_uri("sqlite:///theirs.db")
mlflow.set_experiment("theirs")
mlflow.autolog()
for flavor in ("sklearn", "pytorch", "transformers"):
    getattr(mlflow, flavor).autolog()
logging.basicConfig(level=logging.DEBUG, filename="log.txt")
warnings.simplefilter("error")
request = dict(dataset_path="records.jsonl", task="text_classification", model_name="scratch:tiny", max_steps=2, batch_size=8, max_length=64)
said = []


async def trained(**more):
    response = TrainModelUseCase(notice=said.append).execute(TrainModelRequest(**request, **more))
    return [response.success, response.errors, response.run_id, response.delivery, (response.registered_model or {}).get("version")]


answers = [asyncio.run(trained())]
with mlflow.start_run() as run:
    mlflow.log_param("batch_size", "theirs")
    answers.append(asyncio.run(trained(tracking_uri="sqlite:///other.db", experiment_name="Default")))
    still_active = mlflow.active_run().info.run_id == run.info.run_id
import numpy
from sklearn.linear_model import LogisticRegression

warnings.simplefilter("ignore")
LogisticRegression().fit(numpy.array([[0.0], [1.0]]), [0, 1])
print(json.dumps([answers, run.info.run_id, still_active, [warnings.filters[0][0], mlflow.get_tracking_uri()], said]))
"""


@pytest.mark.parametrize("variable", ["PYTHONWARNINGS=error", "PYTHONOPTIMIZE=2"])
def test_what_the_environment_says_to_python_does_not_stop_the_delivery(variable: str, tmp_path: Path) -> None:
    words = json.dumps([str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db", 3, 0, "one", False, None])
    name, _, value = variable.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", STREAM, words],
        env=commands.environment(**{name: value}),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.strip() == "complete", done.stderr


def test_autologging_an_event_loop_and_strict_warnings(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in _records("text_classification", 24)), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-c", SWITCHED_ON],
        cwd=tmp_path,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    answers, theirs, still_active, (_, uri), said = json.loads(done.stdout.strip().splitlines()[-1])
    assert [[success, errors, delivery, version] for success, errors, _, delivery, version in answers] == [
        [True, [], "complete", "1"]
    ] * 2, answers
    assert (still_active, uri) == (True, "sqlite:///theirs.db")
    client, other = MlflowClient(f"sqlite:///{tmp_path}/theirs.db"), MlflowClient(f"sqlite:///{tmp_path}/other.db")
    experiment = client.get_experiment_by_name("theirs").experiment_id
    ours, own = answers[0][2], answers[1][2]
    runs = {run.info.run_id: run for run in client.search_runs([experiment, "0"], run_view_type=ViewType.ALL)}
    (after,) = set(runs) - {ours, theirs}  # their own fit, after the trainings: autologging is as it was
    assert runs[after].data.tags["mlflow.autologging"] == "sklearn"
    assert {model.source_run_id for model in client.search_logged_models([experiment, "0"])} <= {ours, after}
    assert (runs[ours].data.params["batch_size"], runs[theirs].data.params) == ("8", {"batch_size": "theirs"})
    assert runs[theirs].data.metrics == {}
    assert [run.info.run_id for run in other.search_runs(["0"])] == [own]
    assert any(line.startswith(f"run {theirs} that is active here is in sqlite:") for line in said)
