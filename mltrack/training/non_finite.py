"""The batch of a step whose loss or gradient was not finite, kept for inspection."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from mltrack.data.batches import MicroBatch
from mltrack.errors import NonFiniteLossError

if TYPE_CHECKING:
    from mltrack.training.gradient import StepGradient
    from mltrack.training.trainer import AdvancedTrainer


MAX_SKIPPED_IN_A_ROW = 10


def refuse_or_skip(trainer: AdvancedTrainer, gradient: StepGradient, losses: Sequence[float], grad_norm: float) -> None:
    """Accept a step that was skipped as requested or while fp16 finds its scale; else raise, and keep its batch as an
    artifact.

    Raises:
        NonFiniteLossError: with step, epoch, micro-batch and records.
    """
    state, tracker = trainer.state, trainer.tracker
    if trainer.precision.skips() or (
        trainer.config.on_non_finite == "skip" and state.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW
    ):
        return
    error = non_finite_error(
        gradient.group,
        losses,
        grad_norm,
        step=state.step + 1,
        epoch=state.epoch,
        location=trainer.train_dataset.location,
        skipped=state.skipped_in_a_row,
    )
    for path in save_group(tracker.directory.path / "non_finite", gradient.group, error, losses, grad_norm):
        tracker.log_artifact(path, "non_finite")
    raise error


def non_finite_error(
    group: Sequence[MicroBatch],
    losses: Sequence[float],
    grad_norm: float,
    *,
    step: int,
    epoch: int,
    location: Callable[[int], str],
    skipped: int = 0,
) -> NonFiniteLossError:
    """The error that names step, epoch, micro-batch and records.

    Args:
        losses: loss sum of each micro-batch.
        step: the optimizer step that was not taken; the first is 1.
        epoch: 0-based.
        location: "file: record N" of a record number.
        skipped: number of steps that were skipped right before it.
    """
    guilty = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
    named = [group[number] for number in guilty] or list(group)
    quantity, value = ("loss", losses[guilty[0]]) if guilty else ("gradient norm", grad_norm)
    which = f"micro-batch {guilty[0] + 1} of {len(group)}" if guilty and len(group) > 1 else None
    records = [location(number) for batch in named for number in batch.records]
    return NonFiniteLossError(
        quantity, value, step=step, epoch=epoch, records=records, micro_batch=which, skipped=skipped
    )


def save_group(
    folder: Path, group: Sequence[MicroBatch], error: NonFiniteLossError, losses: Sequence[float], grad_norm: float
) -> list[Path]:
    """Write the micro-batches' tensors (safetensors) and facts (JSON) into the folder; returns both files."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors_file, facts_file = folder / f"step-{error.step:08d}.safetensors", folder / f"step-{error.step:08d}.json"
    save_file(
        {
            f"{number}.{name}": tensor.detach().clone().contiguous()  # safetensors refuses shared memory
            for number, batch in enumerate(group)
            for name, tensor in batch.tensors.items()
        },
        tensors_file,
    )
    facts = {
        "step": error.step,
        "epoch": error.epoch,
        "grad_norm": str(grad_norm),
        "micro_batches": [
            {"records": batch.records, "loss_sum": str(loss), "targets": batch.targets}
            for batch, loss in zip(group, losses, strict=True)
        ],
        "named_records": list(error.records),
    }
    facts_file.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return [tensors_file, facts_file]
