"""Evaluates a saved model on records: `mltrack evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mltrack.data import DatasetLoader
from mltrack.data.encoding import kept_of_long_texts
from mltrack.data.requested import one_part
from mltrack.evaluation.evaluate import evaluate
from mltrack.hardware import allow_planned_attention, choose_device, choose_precision
from mltrack.hardware.precision import Precision
from mltrack.models import resolve_model
from mltrack.tasks.names import task_named


def evaluate_folder(
    folder: str | Path,
    dataset_path: str,
    *,
    task: str,
    batch_size: int,
    reading: Mapping[str, Any] | None = None,
    notice: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """The metrics of a model that mltrack trained, by name.

    Args:
        reading: how `DatasetLoader` reads the records: columns, labels, on_bad_record.
        notice: called with a line for the user on what was left out.

    Raises:
        DatasetError: a record cannot be used, or its label is unknown to the model.
        ConfigurationError: the folder holds no such model.
    """
    one_part(dataset_path)
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    kind = task_named(task).configured(config["mltrack"].get("task_options") or {})
    source = resolve_model(str(folder), kind, as_trained=True)
    max_length = int(config["mltrack"]["max_length"])
    mapping = dict(config["label2id"]) if source.task.has_classes else None
    options: dict[str, Any] = {
        "max_length": max_length,
        "label_mapping": mapping,
        "truncation": kept_of_long_texts(config["mltrack"]),
        **(reading or {}),
    }
    loader = DatasetLoader(dataset_path, source.tokenizer, task=kind, **options)
    dataset = loader.load()
    loader.bad_records.report(dataset_path, "evaluation", notice)
    device = choose_device("auto")
    allow_planned_attention(device, False)  # for one evaluation a plan per shape does not pay
    model = source.build(label_mapping=mapping, max_length=max_length, seed=0, whole=True).to(device)
    metrics, _ = evaluate(
        model,
        dataset,
        batch_size=batch_size,
        device=device,
        precision=Precision(choose_precision("auto", device), device),
    )
    return metrics
