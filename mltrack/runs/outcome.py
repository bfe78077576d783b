"""The files that a finished training leaves beside its model: report, confusion matrix, samples, learning curves,
lengths of the records.

Invariant: they describe the model that is kept (the best), on the evaluation set of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

from mltrack.data import CodeDataset
from mltrack.errors import Interrupted
from mltrack.evaluation.evaluate import label_names
from mltrack.evaluation.figures import confusion_matrix_figure, learning_curves_figure, token_lengths_figure
from mltrack.evaluation.reports import classification_report
from mltrack.evaluation.samples import Sample, fixed_prompts, generate_samples, syntax_valid_share
from mltrack.training import AdvancedTrainer

Written = list[tuple[Path, str]]
"""(file, folder in the run's artifacts)."""
Part = tuple[str, Callable[[], Written]]
"""What it is, and what writes it."""

SAMPLE_TOKENS = 128


def outcome_parts(trainer: AdvancedTrainer, folder: Path, *, step: int, check: Callable[..., None]) -> list[Part]:
    """What describes a trained model, each with a function that writes its files into `folder` and logs what they
    measured.

    Args:
        trainer: its model holds the weights that are kept.
        step: optimizer steps behind those weights.
        check: raises Interrupted once a stop was asked for.
    """
    dataset = trainer.eval_dataset
    parts: list[Part] = [
        (
            "learning curves",
            lambda: [
                (learning_curves_figure(_curves(trainer.state.history), folder / "learning_curves.png"), "figures")
            ],
        ),
        (
            "token lengths",
            lambda: [
                (
                    token_lengths_figure(
                        _lengths(trainer), trainer.train_dataset.max_length, folder / "token_lengths.png"
                    ),
                    "figures",
                )
            ],
        ),
    ]
    if dataset is None:
        return parts
    if dataset.task.is_classification:
        return parts + _classification_parts(trainer, dataset, folder, check)
    return [*parts, ("samples", lambda: _generation_files(trainer, dataset, folder, step, check))]


def _classification_parts(
    trainer: AdvancedTrainer, dataset: CodeDataset, folder: Path, check: Callable[..., None]
) -> list[Part]:
    @cache
    def report() -> dict[str, Any]:
        _, evaluator = trainer.evaluated(dataset, check)
        return classification_report(evaluator.labels, evaluator.predictions, label_names(dataset) or [])

    def report_file() -> Written:
        path = folder / "classification_report.json"
        path.write_text(json.dumps(report(), indent=1), encoding="utf-8")
        return [(path, "evaluation")]

    def matrix_file() -> Written:
        matrix = report()["confusion_matrix"]
        path = confusion_matrix_figure(matrix.get("matrix"), matrix["labels"], folder / "confusion_matrix.png")
        return [(path, "figures")] if path is not None else []

    return [("classification report", report_file), ("confusion matrix", matrix_file)]


def _generation_files(
    trainer: AdvancedTrainer, dataset: CodeDataset, folder: Path, step: int, check: Callable[..., None]
) -> Written:
    check()
    chosen = fixed_prompts(dataset.records)
    with (
        trainer.precision.autocast() if trainer.device.type == "cuda" else nullcontext()
    ):  # flash attention computes in nothing else; a CPU is slower so
        samples = generate_samples(
            trainer.model,
            dataset.tokenizer,
            [record.description or "" for record in chosen],
            max_new_tokens=min(SAMPLE_TOKENS, dataset.max_length // 2),
            references=[record.text for record in chosen],
            stop_requested=lambda: _ended(check),
        )
    check()
    share = syntax_valid_share(samples)
    trainer.tracker.log_metrics({"eval_syntax_valid": share}, step=step)
    path = folder / "samples.json"
    path.write_text(json.dumps([asdict(sample) for sample in samples], indent=1), encoding="utf-8")
    return [(path, "evaluation"), (_table(trainer, samples, folder), "evaluation")]


def _table(trainer: AdvancedTrainer, samples: Sequence[Sample], folder: Path) -> Path:
    """The samples as a table that MLflow's UI shows and compares between runs: the prompts are the same ones."""
    rows = [asdict(sample) for sample in samples]
    columns = [field.name for field in fields(Sample)]
    path = folder / "samples_table.json"
    path.write_text(
        json.dumps({"columns": columns, "data": [[row[column] for column in columns] for row in rows]}),
        encoding="utf-8",
    )
    trainer.tracker.set_tags(
        {"mlflow.loggedArtifacts": json.dumps([{"path": f"evaluation/{path.name}", "type": "table"}])}
    )
    return path


def _ended(check: Callable[..., None]) -> bool:
    try:
        check()
    except Interrupted:
        return True
    return False


def _lengths(trainer: AdvancedTrainer) -> dict[str, Any]:
    """Tokens of each record by split."""
    splits = {"training": trainer.train_dataset, "evaluation": trainer.eval_dataset}
    return {name: dataset.uncut_lengths for name, dataset in splits.items() if dataset is not None}


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if name not in ("epoch", "step") and value is not None and not name.startswith("eval_f1_"):
                curves.setdefault(name, []).append((entry["step"], value))
    return curves
