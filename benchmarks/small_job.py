"""A training that takes a second: generated records, a tiny model with dropout, and the options that make every kind of
work fall often.

Invariant: the same name and count give the same records, and the same seed the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VERBS = ("add", "scale", "shift", "count", "merge", "split", "clamp", "wrap")
NOUNS = ("value", "total", "index", "row", "name", "price", "speed", "angle")
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "attention_dropout")


@dataclass(frozen=True)
class SmallJob:
    """What is trained, and how."""

    task: str
    records: Path
    model: Path
    """A Hugging Face folder."""
    options: Mapping[str, object]

    def words(self, **changed: object) -> list[str]:
        """The words of `mltrack train` behind the command."""
        given = {"task": self.task, "dataset_path": self.records, "model_name": self.model, **self.options, **changed}
        return [
            "train",
            *(str(word) for name, value in given.items() for word in ("--" + name.replace("_", "-"), value)),
        ]


def write_records(path: Path, task: str, count: int, *, start: int = 0) -> Path:
    """Distinct small functions of uneven length, numbered from `start`; the label or the description follows from the
    code.
    """
    made = []
    for i in range(start, start + count):
        verb, noun = VERBS[i % len(VERBS)], NOUNS[(i // len(VERBS)) % len(NOUNS)]
        body = "".join(f"    {noun} = {noun} + {i + j}\n" for j in range(i % 4))
        code = f"def {verb}_{noun}({noun}):\n{body}    return {'eval' if i % 2 else 'str'}({noun})\n"
        made.append(
            {"description": f"{verb} the {noun} {i}", "code": code}
            if task == "code_generation"
            else {"code": code, "label": ("safe", "unsafe")[i % 2]}
        )
    path.write_text("".join(json.dumps(record) + "\n" for record in made), encoding="utf-8")
    return path


def write_model(folder: Path, records: Path, task: str, *, dropout: float) -> Path:
    """A `scratch:tiny` model as a Hugging Face folder whose configuration has dropout everywhere."""
    from mltrack.data import DatasetLoader
    from mltrack.models import resolve_model, save_pretrained

    source = resolve_model("scratch:tiny", task)
    loader = DatasetLoader(records, task=task, max_length=64)
    held = loader.records
    source.train_tokenizer([text for record in held for text in (record.description, record.text) if text])
    mapping = loader.label_mapping if task != "code_generation" else None
    model = source.build(label_mapping=mapping, max_length=64, seed=0)
    for name in DROPOUTS:
        if hasattr(model.config, name):
            setattr(model.config, name, dropout)
    save_pretrained(model, source.tokenizer, folder)
    return folder


def small_job(
    folder: Path, task: str = "text_classification", *, count: int = 64, dropout: float = 0.1, **options: object
) -> SmallJob:
    """Everything that a process needs to train it: 4 epochs of accumulated steps, the last one ragged; evaluations and
    checkpoints in mid-epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out = 3 * count // 10
    records = write_records(folder / "records.jsonl", task, count - held_out)
    defaults = {
        "max_length": 64,
        "validation_path": write_records(folder / "validation.jsonl", task, held_out, start=count),
        "batch_size": 4,
        "eval_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "epochs": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 5,
        "eval_every": 4,
        "save_every": 2,
        "max_checkpoints": 2,
        "early_stopping_patience": 50,
        "use_mixed_precision": "off",
        "device": "cpu",
        "seed": 7,
    }
    return SmallJob(
        task, records, write_model(folder / "model", records, task, dropout=dropout), {**defaults, **options}
    )
