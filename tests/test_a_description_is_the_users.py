"""The description and the name of a run in MLflow are mltrack's until a person changes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ready_store import ready_store

from mltrack import relay
from mltrack.evaluation.beside_baselines import verdict
from mltrack.journal import JournalWriter, RunDirectory, RunInfo, records
from mltrack.relay.note import NOTE_TAG, description, is_replaceable, marked


def summary(**changed: Any) -> dict[str, Any]:
    evaluations = [
        {"step": 40, "epoch": 1, "train_loss": 0.5, "eval_loss": 0.4, "eval_macro_f1": 0.9},
        {"step": 20, "epoch": 0, "train_loss": 0.6, "eval_loss": 0.5, "eval_macro_f1": 0.8},
    ]
    data = {
        name: {"records": count, "classes": {"safe": count}} for name, count in (("training", 90), ("evaluation", 10))
    }
    return {
        "task": "text_classification",
        "model": "scratch:tiny",
        "parameters": 1234,
        "options": {"seed": "7"},
        "data": {"source": "train.jsonl", **data},
        "findings": ["near_overlap: 10.0% of the validation records"],
        "metric": "eval_loss",
        "mode": "min",
        "step": 40,
        "total_steps": 100,
        "best_step": 40,
        "verdict": "better than every baseline: eval_macro_f1 0.9000 (tfidf 0.8800)",
        "evaluations": evaluations,
        "registered_name": "mltrack-text_classification",
        "example": "eval(x)",
        "warnings": [],
    } | changed


@pytest.fixture
def run(tmp_path: Path) -> tuple[RunDirectory, str, MlflowClient]:
    """A training that is over and not delivered yet, its store, and a client of it."""
    uri = ready_store(tmp_path / "store")
    directory = RunDirectory(tmp_path / "runs" / "one")
    writer = JournalWriter(directory.journal)
    writer.append(records.metrics(40, {"train_loss": 0.5}, {}, epoch=1))
    writer.append(records.end("FINISHED", 0))
    writer.close()
    directory.write_run(RunInfo(local_id="one", tracking_uri=uri, created_ms=1, run_name="text_classification tiny"))
    directory.summary_file.write_text(json.dumps(summary()))
    return directory, uri, MlflowClient(uri)


def note_of(directory: RunDirectory, client: MlflowClient) -> str:
    return client.get_run(directory.read_run().run_id).data.tags[NOTE_TAG]


def test_it_is_one_screen_with_result_data_and_commands() -> None:
    version = {"name": "mltrack-text_classification", "version": "3"}
    lines = description(summary(), "run1", "FINISHED", version).splitlines()
    assert lines[0].startswith("**Finished**, 40 of 100 steps. Best eval_loss **0.4000** at step 40 (epoch 2); better")
    assert "| **40** | 2 | 0.5000 | 0.4000 | 0.9000 |" in lines
    assert "**Data**: `train.jsonl`, 90 training and 10 evaluation records; safe 90.  " in lines
    assert "mltrack predict --model-uri models:/mltrack-text_classification/3 --text 'eval(x)'" in lines
    assert "mltrack train --resume run1 --epochs N" in lines
    assert lines[-1] == "- near_overlap: 10.0% of the validation records"
    assert len(lines) < 40


def test_a_run_without_an_evaluation_or_a_model_says_so() -> None:
    text = description(summary(evaluations=[], best_step=None, verdict="", step=3), "run1", "RUNNING")
    assert text.startswith("**Training**, 3 of 100 steps, not evaluated yet.")
    assert "models:/" not in text
    assert "--resume" not in text


def test_a_description_that_is_current_is_replaced_and_one_that_a_person_changed_stays(run) -> None:
    directory, uri, client = run
    relay.sync(directory, uri)
    assert note_of(directory, client).startswith("**Finished**, 40 of 100 steps")
    directory.summary_file.write_text(json.dumps(summary(step=41)))
    relay.sync(directory, uri)
    assert note_of(directory, client).startswith("**Finished**, 41 of 100 steps")
    mine = note_of(directory, client).replace("Finished", "Finished, the good one")
    client.set_tag(directory.read_run().run_id, NOTE_TAG, mine)
    directory.summary_file.write_text(json.dumps(summary(step=42)))
    relay.sync(directory, uri)
    assert note_of(directory, client) == mine


def experiment_of(directory: RunDirectory, client: MlflowClient) -> Any:
    return client.get_experiment(directory.read_run().experiment_id)


def test_the_experiment_has_a_view_for_each_task_that_begins_with_the_loss(run) -> None:
    directory, uri, client = run
    relay.sync(directory, uri)
    held = experiment_of(directory, client)
    saved = json.loads(held.tags["mlflow.sharedViewState.mltrack-text_classification"])
    assert saved["name"] == "text_classification by eval_loss"
    state = json.loads(saved["state"])
    assert [one["metricKey"] for one in state["compareRunCharts"]] == [
        "train_loss",
        "eval_loss",
        "eval_macro_f1",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
    ]
    assert state["searchFilter"] == "tags.`mltrack.task` = 'text_classification'"
    found = client.search_runs([held.experiment_id], state["searchFilter"], order_by=[f"{state['orderByKey']} ASC"])
    assert found == [], "the server takes filter and order"
    assert held.tags[NOTE_TAG].startswith("Trainings by mltrack")
    directory.summary_file.write_text(json.dumps(summary(task="code_generation")))
    relay.sync(directory, uri)
    note = experiment_of(directory, client).tags[NOTE_TAG]
    assert note.index("viewStateShareKey=mltrack-code_generation") < note.index("mltrack-text_classification")


def test_a_view_and_an_experiment_that_a_person_changed_stay(run) -> None:
    directory, uri, client = run
    relay.sync(directory, uri)
    experiment_id = directory.read_run().experiment_id
    mine = {"mlflow.sharedViewState.mltrack-text_classification": "mine", NOTE_TAG: "our GPUs"}
    for name, value in mine.items():
        client.set_experiment_tag(experiment_id, name, value)
    directory.summary_file.write_text(json.dumps(summary(task="code_generation")))
    relay.sync(directory, uri)
    held = experiment_of(directory, client).tags
    assert {name: held[name] for name in mine} == mine
    assert "mlflow.sharedViewState.mltrack-code_generation" in held


@pytest.mark.parametrize("content", ["", "[]", '{"task": 1}', "{"])
def test_a_summary_that_is_none_costs_the_description_alone(run, content: str) -> None:
    directory, uri, client = run
    directory.summary_file.write_text(content)
    relay.sync(directory, uri)
    held = client.get_run(directory.read_run().run_id)
    assert held.info.status == "FINISHED"
    assert NOTE_TAG not in held.data.tags


def test_what_is_replaceable() -> None:
    text = "**Finished**\n\nlines"
    assert is_replaceable("")
    assert is_replaceable(" \n")
    assert is_replaceable(marked(text))
    assert not is_replaceable(text)
    assert not is_replaceable(marked(text) + "\nmine")
    assert not is_replaceable("mine\n" + marked(text))


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        (None, "PROJECT", "text_classification tiny"),
        ("mine", "PROJECT", "mine"),
        (None, "LOCAL", None),
        ("sneaky-fox-holes", "PROJECT", "sneaky-fox-holes"),
    ],
)
def test_a_run_of_mlflow_run_gets_a_telling_name_unless_a_person_gave_one(run, name, source, expected) -> None:
    directory, uri, client = run
    made = client.create_run("0", run_name=name, tags={"mlflow.source.type": source})
    info = directory.read_run()
    info.run_id = made.info.run_id
    directory.write_run(info)
    relay.sync(directory, uri)
    assert client.get_run(made.info.run_id).info.run_name == (expected or made.info.run_name)


@pytest.mark.parametrize(
    ("metrics", "baselines", "judged_by", "expected"),
    [
        (
            {"eval_loss": 4.2},
            {"baseline_unigram_loss": 6.3},
            "eval_loss",
            "better than every baseline: eval_loss 4.2000 (unigram 6.3000)",
        ),
        (
            {"eval_loss": 0.6, "eval_accuracy": 0.9, "eval_macro_f1": 0.8},
            {
                "baseline_majority_accuracy": 0.6,
                "baseline_majority_macro_f1": 0.4,
                "baseline_tfidf_accuracy": 0.8,
                "baseline_tfidf_macro_f1": 0.8,
            },
            "eval_loss",
            "no better than tfidf: eval_macro_f1 0.8000 (majority 0.4000, tfidf 0.8000)",
        ),
        ({"eval_loss": 1.0}, {}, "eval_loss", ""),
        ({}, {"baseline_unigram_loss": 6.3}, "eval_loss", ""),
    ],
)
def test_the_verdict(metrics, baselines, judged_by, expected) -> None:
    assert verdict(metrics, baselines, judged_by) == expected
