"""The Python blocks of docs/api.md run as written, but for the substitutions of that page's table, and print what they
promise.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
TEXT = PAGE.read_text(encoding="utf-8")


def substitutions() -> dict[str, str]:
    """The table under 'What the test replaces'."""
    rows = re.findall(r"^\| `(.*?)` \| `(.*?)` \|", TEXT.split("## What the test replaces")[1], re.MULTILINE)
    assert rows
    return dict(rows)


def snippet(title: str, number: int = 0) -> str:
    """A block under a heading, with the substitutions, each of which is one whole expression or argument."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL)
    assert section is not None, title
    code = re.findall(r"^```python\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)[number]
    for here, there in substitutions().items():
        code = re.sub(rf"(?<![\w/]){re.escape(here)}(?![\w.])", there, code)
    return code


def run_snippet(title: str, names: dict[str, Any], number: int = 0) -> dict[str, Any]:
    """Run a block with these names known; returns all names afterwards."""
    exec(compile(snippet(title, number), f"{PAGE.name}: {title}", "exec"), names)
    return names


@pytest.fixture
def samples(here: Path, records_file) -> Path:
    """`samples.json` in the working directory."""
    lines = records_file("text_classification", 40).read_text(encoding="utf-8").splitlines()
    path = here / "samples.json"
    path.write_text(json.dumps([json.loads(line) for line in lines]), encoding="utf-8")
    return path


@pytest.fixture
def parts(samples: Path) -> dict[str, Any]:
    """What the blocks take as given: a tokenizer, data sets and a model that fits them."""
    from mltrack import DatasetLoader
    from mltrack.models import resolve_model

    source = resolve_model("scratch:tiny", "text_classification")
    loader = DatasetLoader(samples, task="text_classification", max_length=64)
    source.train_tokenizer([record.text for record in loader.records])
    train_ds, eval_ds = (loader.dataset(records, source.tokenizer) for records in loader.split_records(0.2))
    model = source.build(label_mapping=loader.label_mapping, max_length=64, seed=0)
    return {"tokenizer": source.tokenizer, "train_ds": train_ds, "eval_ds": eval_ds, "model": model}


def test_data(parts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    names = run_snippet("Data", parts)
    assert capsys.readouterr().out == "Train: 32, Test: 8\n"
    assert names["loader"].label_mapping == {"safe": 0, "unsafe": 1}
    assert names["loader"].get_statistics()["records"] == 40
    assert {"source", "digest", "task", "max_length"} <= set(names["loader"].get_info())


def test_training(parts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    results = run_snippet("Training", parts)["results"]
    assert capsys.readouterr().out == f"Best metric: {results['best_metric']:.4f}\n"
    assert results["epochs_run"] == 2
    assert results["steps_run"] == 4  # 32 records, 8 x 2 examples a step
    assert {"best_epoch", "best_step", "training_time", "stopped_early", "history"} <= set(results)
    assert list(Path("models/checkpoints").glob("**/step-*/metadata.json"))


def test_resume(parts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    names = run_snippet("Training", parts)
    capsys.readouterr()
    results = run_snippet("Resume", names)["results"]
    assert capsys.readouterr().out == "Goes on after step 4\n"
    assert (results["steps_run"], results["epochs_run"]) == (6, 3)


def test_a_data_set_of_your_own_and_a_run_that_is_resumed(parts: dict[str, Any], here: Path) -> None:
    from mltrack.models import save_pretrained

    save_pretrained(parts["model"], parts["tokenizer"], here / "base")
    names = run_snippet("A data set of your own", parts)
    assert names["results"]["steps_run"] == 10  # 40 examples, 8 a step, 2 epochs
    assert names["results"]["best_metric"] is not None
    response = run_snippet("A data set of your own", names, 1)["response"]
    assert response.success, response.errors
    assert response.epochs_run == 2
    assert not response.baselines


def test_a_run_is_resumed(samples: Path) -> None:
    first = run_snippet("A whole training", {})["response"]
    response = run_snippet("Resume", {}, 1)["response"]
    assert response.success, response.errors
    assert response.epochs_run == 3
    same = {Path(one.model_path).resolve() for one in (first, response)}
    assert len(same) == 1, "the run has one directory; its MLflow id may not be known yet when a response is made"


def test_callbacks_and_own_metrics(parts: dict[str, Any]) -> None:
    trainer = run_snippet("Callbacks and own metrics", parts)["trainer"]
    assert trainer.state.history[-1]["eval_kappa"] <= 1.0
    assert trainer.state.best_metric == max(entry["eval_kappa"] for entry in trainer.state.history)


def test_metrics(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_snippet("Metrics", {})
    assert capsys.readouterr().out == "Best eval loss: 0.3500\n"
    statistics = names["tracker"].get_statistics("train_loss")
    assert (statistics.count, statistics.min, statistics.max, statistics.last) == (2, 0.44, 0.45, 0.44)
    assert names["summary"]["best_metrics"]["eval_loss"] == {"value": 0.35, "step": 1, "epoch": 0}
    assert json.loads((here / "models/logs/metrics.json").read_text(encoding="utf-8"))
    assert len((here / "models/logs/metrics.csv").read_text(encoding="utf-8").splitlines()) == 1 + 5
    names["tracker"].close()


def test_checkpoints(parts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    parts["optimizer"] = torch.optim.AdamW(parts["model"].parameters(), lr=1e-3)
    parts["scheduler"] = torch.optim.lr_scheduler.LambdaLR(parts["optimizer"], lambda step: 1.0)
    before = {name: value.clone() for name, value in parts["model"].state_dict().items()}
    names = run_snippet("Checkpoints", parts)
    assert capsys.readouterr().out == "Best epoch: 5, metric: 0.3500\n"
    held = names["checkpoint"]
    assert {"scheduler_state_dict", "scaler_state_dict", "metadata"} <= set(held)
    assert (held["epoch"], held["step"], held["metric_value"], held["extra_state"]) == (
        5,
        1000,
        0.35,
        {"note": "first"},
    )
    assert all(torch.equal(before[name], value) for name, value in names["model"].state_dict().items())
    assert names["manager"].list_checkpoints() == []  # the block's last word is delete_checkpoint


def test_checkpoints_of_an_empty_folder(here: Path) -> None:
    from mltrack import CheckpointManager

    manager = CheckpointManager(
        checkpoint_dir="models/checkpoints", max_checkpoints=3, metric_name="eval_loss", mode="min"
    )
    assert manager.load_best_checkpoint() is None
    assert manager.load_latest_checkpoint() is None


def test_a_whole_training_and_loading(samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mlflow

    uri = f"sqlite:///{samples.parent / 'mlflow.db'}"
    names = run_snippet("A whole training", {})
    response = names["response"]
    assert response.success, response.errors
    assert response.delivery == "complete"
    first, second = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r"Best metric: \d\.\d{4}, best epoch: [12], time: \d+\.\d\ds", first)
    assert second == f"Model: {response.model_path}, metrics: {response.metrics_file}"
    assert Path(response.model_path, "model.safetensors").is_file()
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        loaded = run_snippet("Loading a registered model", {})
        assert "safe" in capsys.readouterr().out
        assert [sorted(answer["scores"]) for answer in loaded["model"].predict(["a", "b"])] == [["safe", "unsafe"]] * 2
        pipeline = mlflow.transformers.load_model("models:/mltrack-text_classification@champion")
        assert pipeline("eval(x)")[0]["label"] in ("safe", "unsafe")
    finally:
        mlflow.set_tracking_uri(before)


def test_num_labels_that_contradicts_the_data_says_both_numbers(samples: Path) -> None:
    from mltrack import TrainModelRequest, TrainModelUseCase

    response = TrainModelUseCase().execute(
        TrainModelRequest(
            dataset_path=str(samples), task="text_classification", model_name="scratch:tiny", num_labels=5
        )
    )
    assert (response.success, response.exit_code) == (False, 2)
    assert "5" in response.errors[0]
    assert "2" in response.errors[0]


@pytest.mark.parametrize(
    "title", ["code generation", "security", "high performance", "little memory", "a quick experiment"]
)
def test_the_requests_of_the_table_are_valid(title: str) -> None:
    from mltrack import TrainModelRequest

    row = re.search(rf"^\| {title} \| `(.*)` \|$", TEXT, re.MULTILINE)
    assert row is not None
    assert eval(f"TrainModelRequest({row[1]})", {"TrainModelRequest": TrainModelRequest}).validate() == []
