"""The same checks on the Hugging Face Trainer and on mltrack: does the result depend on how the work was cut up?

Invariant: both sides get the same weights, the same token ids and the same seed, each by its documented interface; both
accumulate, evaluate and resume by themselves, and what is compared is read off the model and the optimizer.

    python benchmarks/exactness.py            # about a minute
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_job import write_model, write_records

RESULTS = Path(__file__).resolve().parent / "results" / "exactness.json"
TASKS = ("text_classification", "code_generation")
BATCH_SIZES = (1, 3, 8, 64)
RECORDS, HELD_OUT = 60, 16
GROUP = 8
"""Examples of an optimizer step: 44 records are five whole groups and a tail of four."""
STEPS_BEFORE_THE_STOP = 8
"""Of 22 in two epochs of 11, with two micro-batches of two each."""
Gradients = list[torch.Tensor]
"""One flat float64 vector an optimizer step."""


class Sides:
    """One task: its data, and its model as a folder."""

    def __init__(self, folder: Path, task: str, *, dropout: float):
        from mltrack.data import DatasetLoader
        from mltrack.models import resolve_model

        folder.mkdir(parents=True)
        self.task, self.folder = task, folder
        records = write_records(folder / "records.jsonl", task, RECORDS)
        self.source = resolve_model(str(write_model(folder / "model", records, task, dropout=dropout)), task)
        loader = DatasetLoader(records, self.source.tokenizer, task=task, max_length=64)
        train, held_out = loader.split_records(HELD_OUT / RECORDS)
        self.train, self.held_out = (
            loader.dataset(train, self.source.tokenizer),
            loader.dataset(held_out, self.source.tokenizer),
        )

    def model(self) -> Any:
        """The same weights each time."""
        mapping = self.train.label_mapping if self.task != "code_generation" else None
        return self.source.build(label_mapping=mapping, max_length=64, seed=0)


def place(sides: Sides, name: str) -> Path:
    """A folder that nobody used yet."""
    number = 1
    while (path := sides.folder / f"{name}-{number}").exists():
        number += 1
    return path


# -- the Hugging Face Trainer


def hf_trainer(sides: Sides, output_dir: Path, *, callbacks: Any = (), **options: Any) -> Any:
    """With a data collator that pads, as its documentation says for each task."""
    from transformers import (
        DataCollatorForSeq2Seq,
        DataCollatorWithPadding,
        PrinterCallback,
        Trainer,
        TrainingArguments,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = sides.source.tokenizer
    collator = (
        DataCollatorForSeq2Seq(tokenizer) if sides.task == "code_generation" else DataCollatorWithPadding(tokenizer)
    )
    defaults = {
        "seed": 7,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "warmup_steps": 3,
    }
    trainer = Trainer(
        model=sides.model(),
        args=TrainingArguments(output_dir=str(output_dir), **{**defaults, **options}),
        train_dataset=_as_lists(sides.train),
        eval_dataset=_as_lists(sides.held_out),
        data_collator=collator,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _as_lists(dataset: Any) -> list[dict[str, Any]]:
    made = []
    for example in dataset:
        ids = [int(token) for token in example["input_ids"]]
        labels = (
            example["labels"] if isinstance(example["labels"], int) else [int(label) for label in example["labels"]]
        )
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return made


def hf_eval_losses(sides: Sides) -> list[float]:
    trainers = (hf_trainer(sides, place(sides, "hf-eval"), per_device_eval_batch_size=size) for size in BATCH_SIZES)
    return [float(trainer.evaluate()["eval_loss"]) for trainer in trainers]


def hf_gradients(sides: Sides, batch_size: int) -> Gradients:
    from transformers import TrainerCallback

    seen: Gradients = []

    class Reader(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            seen.append(_flat(parameter.grad for parameter in model.parameters()))

    options = {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": GROUP // batch_size,
        "max_grad_norm": 0.0,
    }
    hf_trainer(
        sides, place(sides, "hf-accumulation"), callbacks=[Reader()], num_train_epochs=1, learning_rate=1e-12, **options
    ).train()
    return seen


def hf_resume(sides: Sides) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of a run that was not stopped, and of a new Trainer that goes on from its checkpoint in mid-epoch."""
    options = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": STEPS_BEFORE_THE_STOP,
    }
    folder = place(sides, "hf-resume")
    whole = hf_trainer(sides, folder, **options)
    whole.train()
    torch.manual_seed(999)  # a new process would not have the old generator
    resumed = hf_trainer(sides, folder, **options)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS_BEFORE_THE_STOP}"))
    return _flat(whole.model.parameters()), _flat(resumed.model.parameters())


# -- mltrack


def mltrack_trainer(sides: Sides, output_dir: Path, **options: Any) -> Any:
    from mltrack import AdvancedTrainer

    defaults = {"seed": 7, "device": "cpu", "use_mixed_precision": "off", "warmup_steps": 3}
    return AdvancedTrainer(sides.model(), sides.train, sides.held_out, output_dir=output_dir, **{**defaults, **options})


def mltrack_eval_losses(sides: Sides) -> list[float]:
    from mltrack.evaluation.evaluate import evaluate
    from mltrack.hardware.precision import Precision

    cpu, model = torch.device("cpu"), sides.model()
    return [
        evaluate(model, sides.held_out, batch_size=size, device=cpu, precision=Precision("off", cpu))[0]["loss"]
        for size in BATCH_SIZES
    ]


def mltrack_gradients(sides: Sides, batch_size: int) -> Gradients:
    seen: Gradients = []
    options = {"batch_size": batch_size, "gradient_accumulation_steps": GROUP // batch_size, "max_grad_norm": 1e9}
    trainer = mltrack_trainer(sides, place(sides, "mltrack-accumulation"), num_epochs=1, learning_rate=1e-12, **options)
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(_flat(parameter.grad for parameter in trainer.model.parameters()))
    )
    trainer.train()
    return seen


def mltrack_resume(sides: Sides) -> tuple[torch.Tensor, torch.Tensor]:
    options = {
        "num_epochs": 2,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "eval_every": 4,
        "save_every": STEPS_BEFORE_THE_STOP,
        "keep_every": STEPS_BEFORE_THE_STOP,
    }
    whole = mltrack_trainer(sides, place(sides, "mltrack-resume"), **options)
    whole.train()
    manager = whole.checkpoint_manager
    (held,) = (one for one in manager.list_checkpoints() if one.step == STEPS_BEFORE_THE_STOP)
    torch.manual_seed(999)
    resumed = mltrack_trainer(sides, place(sides, "mltrack-resume"), **options)
    resumed.load_checkpoint(manager.load_checkpoint(held))
    resumed.train()
    return _flat(whole.model.parameters()), _flat(resumed.model.parameters())


# -- the checks


def _flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])


def evaluation(losses: list[float]) -> dict[str, Any]:
    """eval_loss at each evaluation batch size."""
    spread = (max(losses) - min(losses)) / min(losses)
    figures = ", ".join(f"{loss:.6f}" for loss in losses)
    return {"losses": losses, "spread": spread, "shown": f"{figures}\nspread {spread:.1e}", "met": spread < 1e-5}


def accumulation(one: Gradients, many: Gradients) -> dict[str, Any]:
    """Gradients of 8 micro-batches of 1 against those of 1 micro-batch of 8, at the same weights; the tail is the
    epoch's last step.
    """
    assert len(one) == len(many), (len(one), len(many))
    differences = [float((a - b).norm() / b.norm()) for a, b in zip(one, many, strict=True)]
    whole, tail = max(differences[:-1]), differences[-1]
    return {
        "steps": len(one),
        "whole_groups": whole,
        "tail": tail,
        "shown": f"whole groups {whole:.1e}\nragged tail {tail:.1e}",
        "met": max(differences) < 1e-4,
    }


def resume(whole: torch.Tensor, resumed: torch.Tensor) -> dict[str, Any]:
    """Final weights of a run that was stopped in mid-epoch and resumed against those of one that was not."""
    differ = int((whole != resumed).sum())
    largest = float((whole - resumed).abs().max())
    shown = "equal" if not differ else f"{differ:,} of {whole.numel():,} differ\nby up to {largest:.1e}"
    return {
        "different_weights": differ,
        "weights": whole.numel(),
        "largest": largest,
        "shown": shown,
        "met": differ == 0,
    }


Side = tuple[
    Callable[[Sides], list[float]],
    Callable[[Sides, int], Gradients],
    Callable[[Sides], tuple[torch.Tensor, torch.Tensor]],
]
SIDES: dict[str, Side] = {
    "Hugging Face Trainer": (hf_eval_losses, hf_gradients, hf_resume),
    "mltrack": (mltrack_eval_losses, mltrack_gradients, mltrack_resume),
}
CHECKS = {
    "evaluation": f"eval_loss at evaluation batch sizes {'/'.join(map(str, BATCH_SIZES))}",
    "accumulation": "gradient of 8x1 against 1x8, relative",
    "resume": "weights after a resume in mid-epoch, dropout 0.1",
}


def main() -> None:
    """Run the checks on both sides, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="mltrack-exactness-") as folder:
        for task in TASKS:
            plain, dropping = (
                Sides(Path(folder) / f"{task}-{dropout}", task, dropout=dropout) for dropout in (0.0, 0.1)
            )
            for side, (eval_losses, gradients, resume_weights) in SIDES.items():
                print(f"{task}: {side} ...", file=sys.stderr, flush=True)
                found = results.setdefault(side, {})
                found[f"{task}, evaluation"] = evaluation(eval_losses(plain))
                found[f"{task}, accumulation"] = accumulation(gradients(plain, 1), gradients(plain, 8))
                found[f"{task}, resume"] = resume(*resume_weights(dropping))
    _print_table(results)
    _write(options.output, results)
    sys.exit(0 if all(cell["met"] for cell in results["mltrack"].values()) else 1)


def _print_table(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"exactness, {datetime.date.today()}, CPU, one thread, fp32", show_lines=True)
    for column in ("", *SIDES):
        table.add_column(column)
    for row in results["mltrack"]:
        task, check = row.split(", ")
        table.add_row(f"{task}: {CHECKS[check]}", *(results[side][row]["shown"] for side in SIDES))
    console = Console()
    if not console.is_terminal:
        console.width = 150
    console.print(table)


def _write(path: Path, results: dict[str, dict[str, dict[str, Any]]]) -> None:
    from importlib.metadata import version

    made = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/exactness.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")}
        | {"python": platform.python_version()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**made, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
