"""A model's metrics on a data set: sums over all targets, divided once, so that the batch size does not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mltrack.data import CodeDataset, Sampler
from mltrack.errors import ConfigurationError, did_you_mean
from mltrack.tasks import task_for
from mltrack.training.batches import MicroBatch, load_batches
from mltrack.training.gradient import is_out_of_memory
from mltrack.training.precision import Precision

OnBatch = Callable[[int, int], None]


def evaluate(
    model: nn.Module, dataset: CodeDataset, *, batch_size: int, device: torch.device, precision: Precision, on_batch: OnBatch | None = None
) -> tuple[dict[str, float], Any]:
    """Evaluate without dropout and without gradients; the model's mode is as before afterwards.

    Args:
        on_batch: called before each batch with (batches done, all batches); what it raises ends the evaluation.

    Returns:
        The metrics by name, `loss` first, and the task's evaluator with its predictions.
    """
    evaluator = task_for(dataset.task).evaluator(label_names(dataset))
    order = [list(batch) for batch in Sampler(dataset.lengths, 0, 0, batch_size=batch_size, shuffle=False)]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for done, batch in enumerate(load_batches(dataset, order, pin=device.type == "cuda")):
                if on_batch is not None:
                    on_batch(done, len(order))
                with precision.autocast():
                    _add(evaluator, model, batch, device)
    finally:
        model.train(was_training)
    return evaluator.compute(), evaluator


def _add(evaluator: Any, model: nn.Module, batch: MicroBatch, device: torch.device) -> None:
    """Add a batch; where it does not fit into memory, its halves."""
    try:
        evaluator.update(model, batch.to(device))
        return
    except Exception as error:
        if not is_out_of_memory(error) or len(batch.records) == 1:
            raise
    for half in batch.split((len(batch.records) + 1) // 2):
        _add(evaluator, model, half, device)


def check_metric_name(dataset: CodeDataset, name: str) -> None:
    """Refuse a metric that an evaluation on this data set does not give.

    Raises:
        ConfigurationError: with those that it gives.
    """
    given = [f"eval_{metric}" for metric in task_for(dataset.task).evaluator(label_names(dataset)).compute()]
    if name not in given:
        raise ConfigurationError(f"metric_name: seen '{name}'; {did_you_mean(name, given)}")


def label_names(dataset: CodeDataset) -> list[str] | None:
    """The classes in the order of their numbers; None for generation."""
    if not dataset.task.is_classification:
        return None
    return [name for name, _ in sorted(dataset.label_mapping.items(), key=lambda item: item[1])]
