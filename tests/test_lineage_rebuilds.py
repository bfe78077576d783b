"""What a run was trained on is in MLflow, and the command that `data show` prints makes the same records again."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import pytest
import tiny
from ready_store import ready_store
from tracked_runs import client

from mltrack.data import DatasetLoader
from mltrack.data.requested import rebuild_command

OPTIONS = (
    "--model-name",
    "scratch:tiny",
    "--max-length",
    "32",
    "--batch-size",
    "16",
    "--epochs",
    "1",
    "--output",
    "json",
)
GIVEN = (
    "--columns",
    "code=func,label=target",
    "--labels",
    "0=safe,1=unsafe",
    "--on-bad-record",
    "skip",
    "--validation-split",
    "0.3",
    "--seed",
    "7",
)


def rows(count: int = 120) -> list[dict[str, Any]]:
    made = [
        {
            "func": f"def f{n}(x):\n    return {'eval' if n % 3 == 0 else 'len'}(x) + {n} * x[{n % 11}]",
            "target": int(n % 3 == 0),
        }
        for n in range(count)
    ]
    return [*made, {"func": "  ", "target": 0}]


def write(path: Path, given: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("lineage")
    uri = ready_store(folder)
    write(folder / "my data.jsonl", rows())
    ran = commands.mltrack(
        "train", "--task", "text_classification", "--dataset-path", "my data.jsonl", *GIVEN, *OPTIONS, cwd=folder
    )
    assert ran.returncode == 0, ran.stderr
    response = tiny.last_json_line(ran.stdout)
    return SimpleNamespace(folder=folder, response=response, run_id=response["run_id"], client=client(uri))


def show(trained: SimpleNamespace, *words: object) -> dict[str, Any]:
    ran = commands.mltrack("data", "show", trained.run_id, "--output", "json", *words, cwd=trained.folder)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def test_both_splits_are_inputs_with_digest_schema_classes_and_context(trained: SimpleNamespace) -> None:
    run = trained.client.get_run(trained.run_id)
    held = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert set(held) == {"training", "evaluation"}
    loader = DatasetLoader(
        trained.folder / "my data.jsonl",
        columns="code=func,label=target",
        labels="0=safe,1=unsafe",
        on_bad_record="skip",
        seed=7,
    )
    for (context, name), records in zip(
        (("training", "train"), ("evaluation", "eval")), loader.split_records(0.3), strict=True
    ):
        data, profile = held[context], json.loads(held[context].profile)
        assert data.name == f"my data.jsonl-{name}"
        assert profile["digest"].startswith(data.digest)
        assert len(profile["digest"]) == 64
        counts = {label: sum(record.label == label for record in records) for label in ("safe", "unsafe")}
        assert (profile["records"], profile["classes"]) == (len(records), counts)
        assert [column["name"] for column in json.loads(data.schema)["mlflow_colspec"]] == ["code", "label"]
        assert json.loads(data.source) == {"uri": "my data.jsonl"}
    assert run.data.tags["mltrack.data_digest"] == json.loads(held["training"].profile)["digest"]


def test_counts_and_shares_of_the_data_are_in_the_run(trained: SimpleNamespace) -> None:
    (summary,) = [one for one in trained.client.list_artifacts(trained.run_id, "data") if one.path == "data/data.json"]
    held = json.loads(Path(trained.client.download_artifacts(trained.run_id, summary.path)).read_text())
    assert (held["records_read"], held["records_left_out"]) == (121, 1)
    assert 0 <= held["training"]["truncated_share"] <= 1
    assert 0 <= held["evaluation"]["truncated_share"] <= 1
    bad = trained.folder / "mltrack-runs" / trained.run_id / "bad_records-training.jsonl"
    assert [json.loads(line)["record"] for line in bad.read_text().splitlines()] == [121]
    assert [one.path for one in trained.client.list_artifacts(trained.run_id, "data") if "bad" in one.path] == [
        "data/bad_records-training.jsonl"
    ]


def test_evaluation_metrics_are_linked_to_the_evaluation_set(trained: SimpleNamespace) -> None:
    run = trained.client.get_run(trained.run_id)
    evaluated = next(one.dataset for one in run.inputs.dataset_inputs if one.tags[0].value == "evaluation")
    models = trained.client.search_logged_models([run.info.experiment_id])
    linked = {
        (metric.dataset_name, metric.dataset_digest)
        for model in models
        for metric in model.metrics
        if metric.key.startswith("eval_")
    }
    assert linked == {(evaluated.name, evaluated.digest)}
    assert any(metric.key == "eval_loss" for model in models for metric in model.metrics)


def test_the_printed_command_makes_the_same_records(trained: SimpleNamespace, tmp_path: Path) -> None:
    told = show(trained)
    digests = [one["profile"]["digest"] for one in told["data_sets"]]
    command = shlex.split(told["rebuild"])
    assert command[:3] == ["mltrack", "data", "split"]
    ran = commands.mltrack(*command[1:], "--output-dir", tmp_path / "again", "--output", "json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    made = json.loads(ran.stdout)
    assert [one["digest"] for one in made] == digests
    assert [one["records"] for one in made] == [one["profile"]["records"] for one in told["data_sets"]]
    for one in made:  # and what was written is those records
        assert DatasetLoader(one["path"]).get_info()["digest"] == one["digest"]


def test_the_printed_command_says_that_the_file_holds_other_records_by_now(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    write(tmp_path / "changed.jsonl", [{**row, "func": row["func"].replace("eval", "exec")} for row in rows()])
    words = shlex.split(show(trained)["rebuild"])
    words[words.index(str(trained.folder / "my data.jsonl"))] = "changed.jsonl"
    ran = commands.mltrack(*words[1:], "--output-dir", "again", cwd=tmp_path)
    assert ran.returncode == 2
    training, _ = words[words.index("--digests") + 1].split(",")
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "digests: the training records have " in ran.stderr
    assert f"not {training}; " in ran.stderr
    assert not (tmp_path / "again").exists()
    words[words.index("--digests") + 1] = training
    assert re.search(f"digests .*TRAINING,EVALUATION.*'{training}'", commands.mltrack(*words[1:], cwd=tmp_path).stderr)


def test_from_mlflow_alone_and_from_the_run_directory_alone_it_is_the_same(trained: SimpleNamespace) -> None:
    local = show(trained, "--tracking-uri", "sqlite:///nowhere.db")
    remote = show(trained, "--output-dir", "nowhere")
    assert local == remote


def test_another_order_another_file_and_another_machine_give_the_same_digests(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    shuffled = rows()
    random.Random(1).shuffle(shuffled)
    write(tmp_path / "elsewhere" / "other.jsonl", shuffled)
    words = shlex.split(show(trained)["rebuild"])
    words[words.index(str(trained.folder / "my data.jsonl"))] = "elsewhere/other.jsonl"
    ran = commands.mltrack(*words[1:], "--output", "json", cwd=tmp_path, PYTHONHASHSEED="5")
    assert [one["digest"] for one in json.loads(ran.stdout)] == [
        one["profile"]["digest"] for one in show(trained)["data_sets"]
    ]


def test_a_person_reads_it(trained: SimpleNamespace) -> None:
    ran = commands.mltrack("data", "show", trained.run_id, cwd=trained.folder)
    assert ran.returncode == 0, ran.stderr
    assert "training    my data.jsonl-train: " in ran.stdout
    assert "  classes   safe " in ran.stdout
    assert ran.stdout.splitlines()[-1].startswith(
        f"rebuild     mltrack data split --dataset-path '{trained.folder}/my data.jsonl' --task text_classification"
    )


def test_a_run_that_is_not_there_is_one_line(trained: SimpleNamespace) -> None:
    ran = commands.mltrack("data", "show", "0" * 32, cwd=trained.folder)
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "0" * 32 in ran.stderr


def test_the_command_says_what_decides_the_records_and_nothing_else() -> None:
    options = {
        "dataset_path": "a.csv",
        "task": "code_generation",
        "seed": 3,
        "validation_split": 0.1,
        "learning_rate": 1e-3,
        "on_bad_record": "stop",
    }
    assert (
        rebuild_command(options)
        == "mltrack data split --dataset-path a.csv --task code_generation --validation-split 0.1 --seed 3"
    )
    two_files = {**options, "validation_path": "b.csv"}
    assert (
        rebuild_command(two_files)
        == "mltrack data split --dataset-path a.csv --task code_generation --validation-path b.csv"
    )
    of_another_folder = {**two_files, "dataset_path": "hf:name:train", "validation_path": "/c/b.csv"}
    assert rebuild_command(of_another_folder, working_directory="/d").endswith(
        "--dataset-path hf:name:train --task code_generation --validation-path /c/b.csv"
    )
    assert rebuild_command(
        {**two_files, "dataset_path": "stdlib"}, working_directory="/d", digests=["ab" * 32, "cd" * 32]
    ).endswith(
        "--dataset-path stdlib --task code_generation --validation-path /d/b.csv --digests"
        " abababababababab,cdcdcdcdcdcdcdcd"
    )
