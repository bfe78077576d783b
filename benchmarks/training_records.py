"""What all sides start from: records of the standard library in two files, a model's folder, and an MLflow store that
exists already.

Invariant: as many records as were asked for, none of them in both files; the same seed gives the same folder.

    start = prepare(folder, "code_generation", records=640, held_out=160)
    job = Job(side="hf", task="code_generation", folder=..., uri=start.store(folder / "hf.db"), **start.places)
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZES = {"text_classification": (640, 128), "code_generation": (640, 160)}
"""Training and evaluation records by task; the classification source has 768 distinct ones."""
GPU_RECORDS = 5120
"""Training records on a GPU: 80 steps of 64."""
LARGE = {
    "vocab_size": 50265,
    "hidden_size": 1024,
    "num_layers": 24,
    "num_heads": 16,
    "max_positions": 1024,
    "dropout": 0.0,
}
"""A decoder of about 350 million parameters, for a GPU."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where everything lies."""

    places: dict[str, str]
    """weights, train, valid, task: as a Job has them."""
    empty_store: Path

    def store(self, path: Path) -> str:
        """The URI of a fresh MLflow store of its own at `path`; an existing one stays. No side pays for making its
        tables.
        """
        if not path.exists():
            shutil.copy(self.empty_store, path)
        return f"sqlite:///{path}"


def prepare(
    folder: Path,
    task: str,
    *,
    records: int | None = None,
    held_out: int | None = None,
    model: str = "scratch:small",
    seed: int = 7,
) -> Start:
    """Write it all.

    Args:
        records, held_out: None: those of `SIZES`. More training records than the source has come several times, in one
            order: lengths as they are.
        model: a scratch preset, or `large`: the preset's encoder of the largest size, or the decoder of `LARGE`.
    """
    import numpy as np

    from mltrack.data import DatasetLoader
    from mltrack.models import save_pretrained

    folder.mkdir(parents=True)
    num_train, num_valid = records or SIZES[task][0], held_out or SIZES[task][1]
    source = DatasetLoader("stdlib", task=task)
    assert len(source.records) > num_valid, (
        f"{task}: {num_valid} evaluation records asked for, the source has {len(source.records)}"
    )
    order = np.random.default_rng(seed).permutation(len(source.records))
    distinct = min(num_train, len(order) - num_valid)
    chosen = [source.records[number] for number in order[: distinct + num_valid].tolist()]
    train, valid = folder / "train.jsonl", folder / "valid.jsonl"
    _write(train, [chosen[number % distinct] for number in range(num_train)])
    _write(valid, chosen[distinct:])
    made, tokenizer = _model(model, task, chosen[:distinct], train, seed)
    save_pretrained(made, tokenizer, folder / "weights")
    store = folder / "empty.db"
    script = f"import mlflow; mlflow.MlflowClient('sqlite:///{store}').search_experiments()"
    subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.DEVNULL, cwd=folder)
    return Start(
        places={"task": task, "weights": str(folder / "weights"), "train": str(train), "valid": str(valid)},
        empty_store=store,
    )


def _write(path: Path, records: list[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            row = (
                {"code": record.text, "label": record.label}
                if record.label is not None
                else {"description": record.description, "code": record.text}
            )
            file.write(json.dumps(row) + "\n")


def _model(name: str, task: str, records: list[Any], train: Path, seed: int) -> tuple[Any, Any]:
    """A new model and the tokenizer trained for it."""
    from mltrack.data import DatasetLoader
    from mltrack.models import presets, resolve_model

    source = resolve_model("scratch:base" if name == "large" else name, task)
    source.train_tokenizer([text for record in records for text in (record.description, record.text) if text])
    if name == "large" and task == "code_generation":
        import torch
        from transformers import LlamaForCausalLM

        torch.manual_seed(seed)
        config = presets.decoder_config(presets.Preset(**LARGE), source.tokenizer)
        config.vocab_size = LARGE["vocab_size"]  # the tokenizer of a few hundred records has fewer
        return LlamaForCausalLM(config), source.tokenizer
    mapping = DatasetLoader(train, task=task).label_mapping if task != "code_generation" else None
    return source.build(label_mapping=mapping, max_length=256, seed=seed), source.tokenizer
