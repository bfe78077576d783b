"""`mlflow run` with nothing but the environment's bin in front of the system's: each task, its params, its status."""

from __future__ import annotations

import json

import commands
import pytest
from mlflow import MlflowClient
from tracked_runs import delivered, until

from mltrack.journal import find_run_directories

pytestmark = pytest.mark.long

LITTLE = (
    "-P",
    "model_name=scratch:tiny",
    "-P",
    "max_length=64",
    "-P",
    "batch_size=8",
    "-P",
    "epochs=1",
    "-P",
    "max_steps=4",
)


def mlflow_run(project, *words, folder, **extra):
    """Run a project into a database of the test's own; returns (finished process, client)."""
    uri = f"sqlite:///{folder}/mlflow.db"
    output = ("-P", f"output_dir={folder}/runs")
    finished = commands.run(
        "mlflow",
        "run",
        project,
        "--env-manager",
        "local",
        *words,
        *output,
        cwd=folder,
        MLFLOW_TRACKING_URI=uri,
        **extra,
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


@pytest.mark.parametrize("task", ["text_classification", "code_generation", "security_classification"])
def test_each_task_by_the_top_level_project(tmp_path, records_file, task):
    records = records_file(task, 40)
    words = (
        "-P",
        f"task={task}",
        "-P",
        f"dataset_path={records}",
        "-P",
        "learning_rate=2e-4",
        "-P",
        "use_mixed_precision=false",
        *LITTLE,
    )
    finished, client = mlflow_run(commands.ROOT, *words, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "2e-4", "as typed"
    assert run.data.params["use_mixed_precision"] == "false"
    assert "mltrack.param_differences" not in run.data.tags
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss")] == [1, 2, 3, 4]
    assert client.get_model_version_by_alias(f"mltrack-{task}", "champion").run_id == run.info.run_id


@pytest.mark.parametrize("task", ["text_classification", "code_generation", "security_classification"])
def test_the_tasks_own_project_has_the_same_effective_configuration(tmp_path, records_file, task):
    records = records_file(task, 40)
    configs = []
    for number, (project, words) in enumerate(
        [(commands.ROOT, ("-P", f"task={task}")), (commands.ROOT / "projects" / task, ())]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        finished, client = mlflow_run(
            project,
            *words,
            "-P",
            f"dataset_path={records}",
            "-P",
            "model_name=scratch:tiny",
            "-P",
            "max_steps=1",
            folder=folder,
        )
        assert finished.returncode == 0, finished.stderr
        config = json.loads((folder / "runs" / only_run(client).info.run_id / "config.json").read_text())
        configs.append({name: value for name, value in config.items() if name != "output_dir"})
    assert configs[0] == configs[1]


def test_a_failed_training_is_a_failed_run(tmp_path, records_file):
    records = records_file("text_classification", 40)
    words = (
        "-P",
        "task=text_classification",
        "-P",
        f"dataset_path={records}",
        "-P",
        "metric_name=eval_nonsense",
        *LITTLE,
    )
    finished, client = mlflow_run(commands.ROOT, *words, folder=tmp_path)
    assert finished.returncode != 0
    assert "metric_name: seen 'eval_nonsense'; accepted: eval_loss" in finished.stderr
    assert "Traceback" not in finished.stderr.split("mlflow.projects")[0]
    assert only_run(client).info.status == "FAILED"


def test_both_ways_stand_in_one_experiment_with_the_same_metrics_and_params(tmp_path, records_file):
    records = records_file("code_generation", 40)
    options = {
        "dataset_path": str(records),
        "learning_rate": "2e-4",
        "model_name": "scratch:tiny",
        "max_length": "64",
        "max_steps": "4",
        "epochs": "1",
    }
    words = [word for name, value in options.items() for word in ("-P", f"{name}={value}")]
    finished, client = mlflow_run(commands.ROOT, "-P", "task=code_generation", *words, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
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


def test_predict_and_evaluate_are_entry_points(tmp_path, records_file):
    records = records_file("code_generation", 40)
    finished, _ = mlflow_run(commands.ROOT, "-P", f"dataset_path={records}", *LITTLE, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for entry, words in (
        ("predict", ("-P", "text=Add the value", "-P", "max_new_tokens=4")),
        ("evaluate", ("-P", f"dataset_path={records}")),
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
            cwd=tmp_path,
            MLFLOW_TRACKING_URI=uri,
        )
        assert finished.returncode == 0, finished.stderr
    assert "perplexity" in finished.stdout


def test_resume_under_mlflow_run_continues_the_run(tmp_path, records_file):
    records = records_file("text_classification", 40)
    words = ("-P", "task=text_classification", "-P", f"dataset_path={records}", *LITTLE)
    finished, client = mlflow_run(commands.ROOT, *words, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    run_id = only_run(client).info.run_id
    words = ("--run-id", run_id, "-P", "task=text_classification", "-P", "max_steps=7", "-P", "epochs=2")
    finished, client = mlflow_run(commands.ROOT, *words, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert f"MLFLOW_RUN_ID names run {run_id}" in finished.stderr + finished.stdout
    assert [metric.step for metric in client.get_metric_history(run_id, "train_loss")] == list(range(1, 8))


def test_the_samples_are_a_table_of_the_ui(tmp_path, records_file):
    import mlflow

    finished, client = mlflow_run(
        commands.ROOT, "-P", f"dataset_path={records_file('code_generation', 40)}", *LITTLE, folder=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    run_id = only_run(client).info.run_id
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        table = mlflow.load_table("evaluation/samples_table.json", run_ids=[run_id])
    finally:
        mlflow.set_tracking_uri(before)
    assert list(table.columns) == ["description", "completion", "reference", "valid"]
    assert len(table) == 4
