"""What MLflow holds after a small training: each number once, the kept checkpoints and nothing else, a loadable
version.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import tiny
from conftest import write_records
from mlflow import MlflowClient
from mlflow.entities import ViewType
from ready_store import ready_store
from tracked_runs import delivered, kill, start_training, until

from mltrack.journal import read_journal, records

OPTIONS = ("--epochs", "4", "--max-checkpoints", "1", "--eval-every", "2", "--seed", "3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, response, client, records file) of a text classification that `mltrack train` ran."""
    folder = tmp_path_factory.mktemp("held")
    uri, records = ready_store(folder), write_records(folder / "records.jsonl", count=48)
    words = commands.training(records, *OPTIONS, "--output", "json")
    finished = commands.mltrack(*words, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder, tiny.last_json_line(finished.stdout), MlflowClient(uri), records


def _journal_points(folder, run_id):
    found = {}
    for record in read_journal(folder / "mltrack-runs" / run_id / "journal"):
        if record["type"] == "metrics":
            for name, value in {**record["values"], **record["timing"]}.items():
                found.setdefault(name, []).append((record["step"], value, record["time_ms"]))
    return found


def test_every_point_of_the_journal_is_there_exactly_once_and_in_order(trained):
    folder, response, client, _ = trained
    journal = _journal_points(folder, response["run_id"])
    for name, points in journal.items():
        held = [
            (metric.step, metric.value, metric.timestamp)
            for metric in client.get_metric_history(response["run_id"], name)
        ]
        assert sorted(held) == sorted(points), name
    held = client.get_run(response["run_id"]).data.metrics
    assert {name for name in held if not name.startswith("system/") or name in records.COSTS} == set(journal)


def test_each_optimizer_step_has_its_metrics_once(trained):
    _, response, client, _ = trained
    for name in ("train_loss", "learning_rate", "grad_norm", "tokens_per_second"):
        assert [metric.step for metric in client.get_metric_history(response["run_id"], name)] == list(
            range(1, response["steps_run"] + 1)
        )


def test_epochs_are_aggregated_at_the_number_of_finished_epochs(trained):
    _, response, client, _ = trained
    for name in (
        "train_loss",
        "train_loss_std",
        "train_loss_min",
        "train_loss_max",
        "eval_loss",
        "eval_macro_f1",
        "seconds",
    ):
        assert [metric.step for metric in client.get_metric_history(response["run_id"], f"epoch/{name}")] == [
            1,
            2,
            3,
            4,
        ]


def test_the_run_is_finished_with_params_tags_inputs_and_artifacts(trained):
    _, response, client, file = trained
    run = client.get_run(response["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "2e-3", "as typed"
    assert run.data.params["dataset_path"] == str(file)
    assert "output" not in run.data.params
    assert run.data.tags["mltrack.status"] == "FINISHED"
    assert run.data.tags["mltrack.task"] == "text_classification"
    assert run.data.tags["mltrack.kind"] == "train"
    assert {held.dataset.name for held in run.inputs.dataset_inputs} == {"records.jsonl-train", "records.jsonl-eval"}
    names = {file.path for file in client.list_artifacts(response["run_id"])}
    assert {"config.json", "metrics.json", "metrics.csv", "figures", "evaluation", "checkpoints"} <= names


def test_loss_and_evaluation_come_first_in_the_charts(trained):
    """MLflow sorts sections by what stands before the last slash of a name, and `system/` is a tab of its own."""
    _, response, client, _ = trained
    run = client.get_run(response["run_id"])
    sections = {name.rpartition("/")[0] for name in run.data.metrics}
    assert sorted(sections) == ["", "Loss", "epoch", "system"], "the nameless one stands behind those with a name"
    losses = {
        name: [(point.step, point.value) for point in client.get_metric_history(response["run_id"], f"{name}eval_loss")]
        for name in ("", "Loss/")
    }
    assert losses["Loss/"] == losses[""] != []
    assert client.get_metric_history(response["run_id"], "Loss/train_loss")
    assert not [name for name in run.data.metrics if name.startswith("epoch/eval_f1_")]
    shown = {name for name in run.data.metrics if "/" not in name and not name.startswith("eval_")}
    assert shown == {"grad_norm", "learning_rate", "tokens_per_second", "train_loss"}
    assert float(run.data.params["baseline_majority_accuracy"]) == pytest.approx(
        response["baselines"]["baseline_majority_accuracy"], rel=1e-5
    )


def test_a_tag_is_for_people_or_names_the_trainer(trained):
    folder, response, client, _ = trained
    tags = {name for name in client.get_run(response["run_id"]).data.tags if name.startswith("mltrack.")}
    trainer = {name for name in tags if name.startswith("mltrack.trainer_")}
    assert trainer == {
        f"mltrack.trainer_{name}" for name in ("pid", "started", "boot_id", "pid_namespace", "heartbeat")
    }
    assert tags - trainer == {
        f"mltrack.{name}"
        for name in [
            "kind",
            "task",
            "status",
            "delivery",
            "device",
            "precision",
            "parameters",
            "host",
            "version",
            "data_check",
            "data_digest",
            "local_id",
            "working_directory",
        ]
    }
    held = json.loads(Path(client.download_artifacts(response["run_id"], "environment.json", str(folder))).read_text())
    assert {"mltrack", "python", "torch", "transformers", "mlflow", "cpu", "memory_gib", "trainer"} <= set(held)
    assert held["trainer"]["pid"] == client.get_run(response["run_id"]).data.tags["mltrack.trainer_pid"]


def test_the_description_says_how_good_the_model_is_and_what_to_do_with_it(trained):
    folder, response, client, file = trained
    note = client.get_run(response["run_id"]).data.tags["mlflow.note.content"]
    (best,) = [one for one in response["checkpoints"] if one["step"] == response["best_step"]]
    assert f"Best eval_loss **{response['best_metric']:.4f}** at step {response['best_step']}" in note
    assert f"eval_macro_f1 {best['metrics']['eval_macro_f1']:.4f} (majority " in note
    assert f"**Data**: `{file}`, " in note
    assert "`seed=3`" in note
    assert "`eval_every=2`" in note
    assert "label_smoothing" not in note, "an option that has its default is left out"
    (load,) = [line for line in note.splitlines() if line.startswith("mltrack predict")]
    finished = commands.mltrack(*shlex.split(load)[1:], cwd=folder)
    assert finished.returncode == 0, finished.stderr
    assert len(note.splitlines()) <= 40, "one screen"


def test_what_each_checkpoint_costs_is_a_metric_at_its_step(trained):
    _, response, client, _ = trained
    names = tuple(f"system/checkpoint_{name}" for name in ("stall_ms", "write_ms", "bytes"))
    costs = {
        name: {metric.step: metric.value for metric in client.get_metric_history(response["run_id"], name)}
        for name in names
    }
    assert [sorted(held) for held in costs.values()] == [sorted(costs["system/checkpoint_bytes"])] * 3
    assert all(value > 0 for held in costs.values() for value in held.values())
    for one in response["checkpoints"]:
        on_disk = [path.stat().st_size for path in Path(one["path"]).iterdir() if path.name != "metadata.json"]
        assert costs["system/checkpoint_bytes"][one["step"]] == sum(on_disk)


def test_the_best_and_the_latest_checkpoints_are_there_and_no_other_bytes(trained):
    folder, response, client, _ = trained
    kept = {one["step"] for one in response["checkpoints"]}
    assert kept == {response["best_step"], response["steps_run"]}
    experiment = client.get_run(response["run_id"]).info.experiment_id
    models = client.search_logged_models([experiment])
    assert {int(model.tags["mltrack.step"]) for model in models} == kept
    assert {str(model.status) for model in models} == {"READY"}
    on_disk = {path.parent.parent.name for path in folder.glob("mlruns/*/models/*/artifacts/model.safetensors")}
    assert on_disk == {model.model_id for model in models}
    weights = list(folder.glob("mlruns/**/*.safetensors"))
    assert sum(path.name == "model.safetensors" for path in weights) == len(kept)
    assert sum(path.name == "optimizer.safetensors" for path in weights) == len(kept)
    index = json.loads(
        (folder / "mlruns" / experiment / response["run_id"] / "artifacts/checkpoints/index.json").read_text()
    )
    assert {one["step"]: one["model_id"] for one in index} == {
        int(model.tags["mltrack.step"]): model.model_id for model in models
    }


def test_the_best_is_registered_as_challenger_and_first_champion(trained):
    _, response, client, _ = trained
    held = response["registered_model"]
    assert {key: held[key] for key in ("name", "version", "aliases")} == {
        "name": "mltrack-text_classification",
        "version": "1",
        "aliases": ["challenger", "champion"],
    }
    assert held["decision"].startswith("champion: there was no champion; eval_loss ")
    version = client.get_model_version_by_alias(held["name"], "champion")
    assert version.source == response["model_uri"]
    assert version.tags["mltrack.step"] == str(response["best_step"])
    assert "| eval_macro_f1 | " in version.description
    assert "| figure | this model | baseline_majority | baseline_tfidf |" in version.description
    assert f"models:/{held['name']}/1" in version.description


def test_the_response_says_what_happened(trained):
    folder, response, _, _ = trained
    assert (response["success"], response["status"], response["exit_code"], response["delivery"]) == (
        True,
        "FINISHED",
        0,
        "complete",
    )
    assert response["errors"] == []
    assert 0 <= response["best_epoch"] < response["epochs_run"] == 4
    assert (folder / "mltrack-runs" / response["run_id"] / "model" / "model.safetensors").exists()
    assert json.loads((folder / "mltrack-runs" / response["run_id"] / "metrics.json").read_text())["summary"][
        "best_metrics"
    ]["eval_loss"]


LOADING = """
import json, sys, mlflow
uri = "models:/mltrack-text_classification@champion"
table = mlflow.pyfunc.load_model(uri).predict(["def f(x):\\n    eval(x)"])
pipeline = mlflow.transformers.load_model(uri)
answer = pipeline("def f(x):\\n    eval(x)")[0]
rows = table.to_dict("records") if hasattr(table, "to_dict") else table
assert "mltrack" not in sys.modules
print(json.dumps([rows[0]["label"], rows[0]["score"], answer["label"], answer["score"]]))
"""


def test_mlflow_loads_the_champion_both_ways_and_they_agree(trained):
    folder, _, _, _ = trained
    finished = commands.run(
        sys.executable, "-c", LOADING, cwd=folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db", PYTHONPATH=""
    )
    assert finished.returncode == 0, finished.stderr
    label, score, same_label, same_score = json.loads(finished.stdout.strip().splitlines()[-1])
    assert label == same_label
    assert score == pytest.approx(same_score, abs=1e-4)


def test_predict_and_evaluate_by_registry_uri(trained):
    folder, _, _, records = trained
    uri = "models:/mltrack-text_classification@champion"
    finished = commands.mltrack(
        "predict", "--model-uri", uri, "--text", "def f(x):\n    eval(x)", "--output", "json", cwd=folder
    )
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout)[0]
    assert answer["label"] in ("safe", "unsafe")
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-4)
    found = [
        json.loads(
            commands.mltrack(
                "evaluate",
                "--model-uri",
                uri,
                "--dataset-path",
                records,
                "--batch-size",
                size,
                "--output",
                "json",
                cwd=folder,
            ).stdout
        )
        for size in (1, 64)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-2)
    assert found[0].keys() >= {"loss", "accuracy", "macro_f1", "f1_safe"}


def test_predict_from_another_folder_says_where_it_looked(trained, tmp_path):
    finished = commands.mltrack(
        "predict", "--model-uri", "models:/mltrack-text_classification@champion", "--text", "x", cwd=tmp_path
    )
    assert finished.returncode == 1
    line = finished.stderr.strip().splitlines()[-1]
    assert f"{tmp_path}/mlflow.db" in line
    assert "MLFLOW_TRACKING_URI" in line


def test_models_list_show_and_promote(trained):
    folder, _, client, records = trained
    words = commands.training(records, "--epochs", "1", "--output", "json")
    second = tiny.last_json_line(commands.mltrack(*words, cwd=folder).stdout)
    assert second["registered_model"]["aliases"] == ["challenger"], "there is a champion already"
    name = "mltrack-text_classification"
    assert commands.mltrack("models", "list", cwd=folder).stdout.strip() == f"{name}  @challenger = 2, @champion = 1"
    assert (
        commands.mltrack("models", "promote", name, "--version", "2", cwd=folder).stdout.strip()
        == f"{name}@champion: version 1 -> 2"
    )
    assert client.get_model_version_by_alias(name, "champion").version in (2, "2")
    shown = commands.mltrack("models", "show", name, cwd=folder).stdout
    assert shown.startswith(f"{name}/2  @challenger @champion")
    missing = commands.mltrack("models", "promote", name, "--version", "9", cwd=folder)
    assert missing.returncode == 1
    assert f"{name} has no version '9'; it has 1, 2" in missing.stderr


def everything_of(client: MlflowClient, run_id: str, folder: Path) -> dict[str, object]:
    """All that MLflow holds of a run: each point of each metric, params, tags, inputs, the bytes of every artifact,
    models with their files, versions.
    """
    run = client.get_run(run_id)
    models = [model for model in client.search_logged_models([run.info.experiment_id]) if model.source_run_id == run_id]
    stored = folder / "mlruns"
    return {
        "points": {
            name: sorted((one.step, one.timestamp, one.value) for one in client.get_metric_history(run_id, name))
            for name in run.data.metrics
        },
        "params": run.data.params,
        "tags": run.data.tags,
        "status": (run.info.status, run.info.end_time),
        "inputs": sorted(
            (one.dataset.name, one.dataset.digest, one.dataset.source) for one in run.inputs.dataset_inputs
        ),
        "models": sorted((model.model_id, model.name, str(sorted(model.tags.items()))) for model in models),
        "versions": sorted(
            (one.name, one.version, one.source, str(sorted(one.tags.items())))
            for one in client.search_model_versions(f"run_id='{run_id}'")
        ),
        "files": {
            str(path.relative_to(stored)): path.read_bytes() for path in sorted(stored.rglob("*")) if path.is_file()
        },
    }


def test_sync_again_sends_nothing_twice(trained):
    folder, response, client, _ = trained
    before = everything_of(client, response["run_id"], folder)
    assert all(before.values())
    (folder / "mltrack-runs" / response["run_id"] / "delivery.json").unlink()
    finished = commands.mltrack("sync", response["run_id"], cwd=folder)
    assert finished.returncode == 0, finished.stderr
    assert "complete" in finished.stdout
    after = everything_of(client, response["run_id"], folder)
    for what, value in before.items():
        assert after[what] == value, what


def test_offline_then_sync_makes_one_run(tmp_path, records_file):
    records = records_file("code_generation", 24)
    words = commands.training(records, "--epochs", "1", "--offline", "true", "--output", "json", task="code_generation")
    response = tiny.last_json_line(commands.mltrack(*words, cwd=tmp_path).stdout)
    assert (response["success"], response["delivery"]) == (True, "pending")
    assert not (tmp_path / "mlflow.db").exists()
    for _ in range(2):
        finished = commands.mltrack("sync", response["run_id"], cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(["0"], run_view_type=ViewType.ALL)
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert client.get_model_version_by_alias("mltrack-code_generation", "champion").run_id == runs[0].info.run_id


def test_a_killed_trainer_leaves_a_failed_run_with_every_point(tmp_path, records_file):
    """SIGKILL in the middle of an endless training: the relay notices, delivers and tells the truth."""
    client = MlflowClient(ready_store(tmp_path))
    process, directory = start_training(records_file("text_classification", 40), cwd=tmp_path, steps=30)
    kill(process.pid)
    run_id = until(lambda: directory.read_run().run_id, "the run in MLflow")
    until(lambda: client.get_run(run_id).info.status != "RUNNING", "the end of the run")
    assert client.get_run(run_id).info.status == "FAILED"
    steps = [metric.step for metric in client.get_metric_history(run_id, "train_loss")]
    assert steps == list(tiny.points(directory.journal, "train_loss"))
    listed = json.loads(commands.mltrack("runs", "--output", "json", cwd=tmp_path).stdout)
    assert [(row["run"], row["state"], row["delivery"]) for row in listed] == [(run_id, "FAILED", "complete")]


def test_sigterm_ends_with_a_checkpoint_and_resume_continues_the_run(tmp_path, records_file):
    client = MlflowClient(ready_store(tmp_path))
    process, directory = start_training(records_file("text_classification", 40), cwd=tmp_path, steps=10)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    until(lambda: delivered(directory), "the delivery, for which a signal leaves little time")
    run_id = directory.read_run().run_id
    assert client.get_run(run_id).info.status == "KILLED"
    stopped_at = max(tiny.points(directory.journal, "train_loss"))
    words = ("train", "--resume", run_id, "--epochs", "10000", "--max-steps", stopped_at + 5, "--output", "json")
    finished = commands.mltrack(*words, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    response = tiny.last_json_line(finished.stdout)
    assert (response["run_id"], response["steps_run"]) == (run_id, stopped_at + 5)
    assert client.get_run(run_id).info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run_id, "train_loss")]
    assert steps == list(range(1, stopped_at + 6))


def test_the_process_does_not_import_mlflow_to_train(tmp_path):
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            "import mltrack, sys; print(sorted({'torch', 'mlflow', 'transformers'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
        env=commands.environment(),
        cwd=tmp_path,
    )
    assert finished.stdout.strip() == "[]"
