"""Models and data that train in a second: a byte-level tokenizer, a small encoder and decoder, generated functions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from mltrack.data import DatasetLoader
from mltrack.models import resolve_model

DEVICE = os.environ.get("MLTRACK_TEST_DEVICE", "cpu")
"""Where the tests of the marker `device` compute (make test-gpu)."""


def data(path: Path, task: str, *, test_size: float = 0.25, max_length: int = 64) -> tuple[Any, Any, Any]:
    """(model source, training set, evaluation set) of a records file."""
    source = resolve_model("scratch:tiny", task)
    loader = DatasetLoader(path, task=task, max_length=max_length)
    train, evaluation = loader.split_records(test_size)
    source.train_tokenizer([text for record in train for text in (record.description, record.text) if text])
    return source, loader.dataset(train, source.tokenizer), loader.dataset(evaluation, source.tokenizer)


def model(source: Any, dataset: Any, *, dropout: float | None = None, seed: int = 0) -> torch.nn.Module:
    """A seeded tiny model; with `dropout`, every dropout probability of the configuration is that."""
    mapping = dataset.label_mapping if dataset.task.has_classes else None
    made = source.build(label_mapping=mapping, max_length=64, seed=seed)
    if dropout is not None:
        for module in made.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        for name in ("attention_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"):
            if hasattr(made.config, name):
                setattr(made.config, name, dropout)
    return made


def points(journal: Path, name: str) -> dict[int, float]:
    """{step: value} of a metric, from the journal."""
    from mltrack.journal import read_journal

    found: dict[int, float] = {}
    for record in read_journal(journal):
        if record["type"] == "metrics" and name in {**record["values"], **record["timing"]}:
            assert record["step"] not in found, (name, record["step"])
            found[record["step"]] = {**record["values"], **record["timing"]}[name]
    return found


def last_json_line(text: str) -> dict[str, Any]:
    """The response that `--output json` prints last."""
    return json.loads(text.strip().splitlines()[-1])
