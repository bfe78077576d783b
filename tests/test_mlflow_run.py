"""`mlflow run` with nothing but the environment's bin in front of the system's: each task, its params, its status."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import commands
import pytest
from conftest import write_records
from mlflow import MlflowClient
from mlflow.entities import Run
from ready_store import ready_store
from tracked_runs import delivered, until

from mltrack.journal import find_run_directories

pytestmark = pytest.mark.long

TASKS = ("text_classification", "code_generation", "security_classification")
LITTLE = {"model_name": "scratch:tiny", "max_steps": "4"}


def given(**options: object) -> list[str]:
    """The words of `mlflow run` for them."""
    return [word for name, value in options.items() for word in ("-P", f"{name}={value}")]


def mlflow_run(project, *words, folder):
    """Run a project into a database of the folder's own; returns (finished process, client)."""
    uri = ready_store(folder)
    finished = commands.run(
        "mlflow",
        "run",
        project,
        "--env-manager",
        "local",
        *words,
        *given(output_dir=folder / "runs"),
        cwd=folder,
        MLFLOW_TRACKING_URI=uri,
    )
    all_delivered(folder / "runs")
    return finished, MlflowClient(uri)


def all_delivered(output_dir):
    """Wait for the deliveries that a busy machine leaves to the relays."""
    until(lambda: all(map(delivered, find_run_directories(output_dir))), "the deliveries")


def only_run(client):
    """The one run of the default experiment."""
    (run,) = client.search_runs(["0"])
    return run


def config_of(folder, run):
    """What the training was made with, but for where it lies."""
    held = json.loads((folder / "runs" / run.info.run_id / "config.json").read_text())
    return {name: value for name, value in held.items() if name != "output_dir"}


@dataclass(frozen=True)
class Trained:
    """A run of the top-level project, as it was when it had ended."""

    folder: Path
    records: Path
    run: Run
    steps: list[int]
    champion: str
    """The run whose model it is."""
    config: Mapping[str, object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(task) -> a run of it, which is made once."""

    @cache
    def train(task: str) -> Trained:
        folder = tmp_path_factory.mktemp(task)
        records = write_records(folder / f"{task}.jsonl", task)
        words = given(task=task, dataset_path=records, **LITTLE)
        finished, client = mlflow_run(commands.ROOT, *words, folder=folder)
        assert finished.returncode == 0, finished.stderr
        run = only_run(client)
        return Trained(
            folder,
            records,
            run,
            [metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss")],
            client.get_model_version_by_alias(f"mltrack-{task}", "champion").run_id,
            config_of(folder, run),
        )

    return train


@pytest.mark.parametrize("task", TASKS)
def test_each_task_by_the_top_level_project(trained, task):
    made = trained(task)
    assert made.run.info.status == "FINISHED"
    assert made.run.data.params["max_steps"] == "4"
    assert "mltrack.param_differences" not in made.run.data.tags
    assert made.steps == [1, 2, 3, 4]
    assert made.champion == made.run.info.run_id
    assert made.run.info.run_name == f"{task} scratch:tiny", "MLflow's made-up name says nothing"
    assert made.run.data.tags["mlflow.note.content"].startswith("**Finished**, 4 of 4 steps")


def test_a_file_of_options_and_a_name_of_ones_own(tmp_path, records_file):
    options = {"dataset_path": records_file("text_classification", 40), "task": "text_classification", **LITTLE}
    (tmp_path / "my.yaml").write_text("".join(f"{name}: {value}\n" for name, value in options.items()))
    words = ("--run-name", "mine", *given(config=tmp_path / "my.yaml", task="text_classification"))
    finished, client = mlflow_run(commands.ROOT, *words, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    run = only_run(client)
    assert (run.info.run_name, run.data.params["max_steps"]) == ("mine", "4")
    assert "mltrack.yaml" in {file.path for file in client.list_artifacts(run.info.run_id)}


@pytest.mark.parametrize("task", TASKS)
def test_the_tasks_own_project_has_the_same_effective_configuration(tmp_path, trained, task):
    made, project = trained(task), commands.ROOT / "projects" / task
    finished, client = mlflow_run(project, *given(dataset_path=made.records, **LITTLE), folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert config_of(tmp_path, only_run(client)) == made.config


def test_a_failed_training_is_a_failed_run(tmp_path, records_file):
    records = records_file("text_classification", 40)
    words = given(task="text_classification", dataset_path=records, metric_name="eval_nonsense", **LITTLE)
    finished, client = mlflow_run(commands.ROOT, *words, folder=tmp_path)
    assert finished.returncode != 0
    assert re.search("metric_name must be .*eval_loss.* not 'eval_nonsense'", finished.stderr)
    assert "Traceback" not in finished.stderr.split("mlflow.projects")[0]
    assert only_run(client).info.status == "FAILED"


def test_both_ways_stand_in_one_experiment_with_the_same_metrics_and_params(tmp_path, records_file):
    records = records_file("code_generation", 40)
    options = {
        "dataset_path": str(records),
        "learning_rate": "2e-4",
        "use_mixed_precision": "false",
        "model_name": "scratch:tiny",
        "max_length": "64",
        "max_steps": "4",
        "epochs": "1",
    }
    words = given(task="code_generation", **options)
    finished, client = mlflow_run(commands.ROOT, *words, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    run = only_run(client)
    assert run.data.params["learning_rate"] == "2e-4", "as typed"
    assert run.data.params["use_mixed_precision"] == "false"
    assert "mltrack.param_differences" not in run.data.tags
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    finished = commands.mltrack("train", "--task", "code_generation", *words, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    all_delivered(tmp_path / "mltrack-runs")
    first, second = client.search_runs(["0"])
    names = [{name for name in run.data.metrics if not name.startswith("system/")} for run in (first, second)]
    assert names[0] == names[1]
    ignored = {"output_dir"}
    by_name = [
        {name: value for name, value in run.data.params.items() if name not in ignored} for run in (first, second)
    ]
    assert by_name[0] == by_name[1]


def test_predict_and_evaluate_are_entry_points(trained):
    made = trained("code_generation")
    for entry, words in (
        ("predict", given(text="Add the value", max_new_tokens=4)),
        ("evaluate", given(dataset_path=made.records)),
    ):
        finished = commands.run(
            "mlflow",
            "run",
            commands.ROOT,
            "-e",
            entry,
            "--env-manager",
            "local",
            *words,
            cwd=made.folder,
            MLFLOW_TRACKING_URI=ready_store(made.folder),
        )
        assert finished.returncode == 0, finished.stderr
    assert "perplexity" in finished.stdout


def test_resume_under_mlflow_run_continues_the_run(trained):
    made = trained("text_classification")
    run_id = made.run.info.run_id
    words = ("--run-id", run_id, *given(task="text_classification", max_steps=7))
    finished, client = mlflow_run(commands.ROOT, *words, folder=made.folder)
    assert finished.returncode == 0, finished.stderr
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert f"MLFLOW_RUN_ID names run {run_id}" in finished.stderr + finished.stdout
    assert [metric.step for metric in client.get_metric_history(run_id, "train_loss")] == list(range(1, 8))


def test_the_samples_are_a_table_of_the_ui(trained):
    import mlflow

    made = trained("code_generation")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(ready_store(made.folder))
    try:
        table = mlflow.load_table("evaluation/samples_table.json", run_ids=[made.run.info.run_id])
    finally:
        mlflow.set_tracking_uri(before)
    assert list(table.columns) == ["description", "completion", "reference", "valid"]
    assert len(table) == 4
