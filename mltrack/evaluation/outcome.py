"""The files that a finished training leaves beside its model: report, confusion matrix, samples, learning curves, lengths of the records.

Invariant: they describe the model that is kept (the best), on the evaluation set of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mltrack.data import CodeDataset
from mltrack.errors import Interrupted
from mltrack.evaluation.figures import confusion_matrix_figure, learning_curves_figure, token_lengths_figure
from mltrack.evaluation.reports import classification_report
from mltrack.evaluation.samples import Sample, fixed_prompts, generate_samples, syntax_valid_share
from mltrack.training import AdvancedTrainer, label_names

Written = list[tuple[Path, str]]
"""(file, folder in the run's artifacts)."""

SAMPLE_TOKENS = 128


def write_outcome(trainer: AdvancedTrainer, folder: Path, *, step: int, stop_requested: Callable[[], int | None]) -> Written:
    """Write the files of a trained model into `folder` and log what they measured.

    Args:
        trainer: its model holds the weights that are kept.
        step: optimizer steps behind those weights.
        stop_requested: a signal number ends it.

    Raises:
        Interrupted: a stop was asked for.
    """

    def check(*_: int) -> None:
        signal_number = stop_requested()
        if signal_number is not None:
            raise Interrupted(signal_number)

    dataset = trainer.eval_dataset
    files: Written = [(learning_curves_figure(_curves(trainer.state.history), folder / "learning_curves.png"), "figures")]
    files.append((token_lengths_figure(_lengths(trainer), trainer.train_dataset.max_length, folder / "token_lengths.png"), "figures"))
    if dataset is None:
        return files
    if dataset.task.is_classification:
        return files + _classification_files(trainer, dataset, folder, check)
    return files + _generation_files(trainer, dataset, folder, step, check)


def _classification_files(trainer: AdvancedTrainer, dataset: CodeDataset, folder: Path, check: Callable[..., None]) -> Written:
    names = label_names(dataset) or []
    _, evaluator = trainer.evaluated(dataset, check)
    report = classification_report(evaluator.labels, evaluator.predictions, names)
    path = folder / "classification_report.json"
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    matrix = report["confusion_matrix"]
    figure = confusion_matrix_figure(matrix["matrix"], matrix["labels"], folder / "confusion_matrix.png")
    return [(path, "evaluation"), (figure, "figures")]


def _generation_files(trainer: AdvancedTrainer, dataset: CodeDataset, folder: Path, step: int, check: Callable[..., None]) -> Written:
    check()
    chosen = fixed_prompts(dataset.records)
    with trainer.precision.autocast() if trainer.device.type == "cuda" else nullcontext():  # flash attention computes in nothing else; a CPU is slower so
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
    path.write_text(json.dumps({"columns": columns, "data": [[row[column] for column in columns] for row in rows]}), encoding="utf-8")
    trainer.tracker.set_tags({"mlflow.loggedArtifacts": json.dumps([{"path": f"evaluation/{path.name}", "type": "table"}])})
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
