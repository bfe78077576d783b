"""A model's metrics on a data set: sums over all targets, divided once, so that the batch size does not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mltrack.data import CodeDataset, Sampler
from mltrack.data.batches import MicroBatch, load_batches
from mltrack.data.collate import PADDED_TO
from mltrack.errors import ConfigurationError, did_you_mean
from mltrack.hardware.memory import make_room
from mltrack.hardware.precision import Precision
from mltrack.shortage import is_out_of_memory

OnBatch = Callable[[int, int], None]


def evaluate(
    model: nn.Module,
    dataset: CodeDataset,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    max_batch_tokens: int | None = None,
    on_batch: OnBatch | None = None,
) -> tuple[dict[str, float], Any]:
    """Evaluate without dropout and without gradients; the model's mode is as before afterwards.

    Args:
        batch_size: examples at once; fewer where `max_batch_tokens`, padding included, or the memory does not hold
            them.
        on_batch: called before each batch with (batches done, all batches); what it raises ends the evaluation.

    Returns:
        The metrics by name, `loss` first, and the task's evaluator with its predictions.
    """
    evaluator = dataset.task.evaluator(label_names(dataset))
    order = list(
        Sampler(
            dataset.lengths,
            0,
            0,
            batch_size=batch_size,
            shuffle=False,
            max_tokens=max_batch_tokens,
            padded_to=PADDED_TO,
        )
    )
    room = None
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for done, batch in enumerate(load_batches(dataset, order, pin=device.type == "cuda")):
                if on_batch is not None:
                    on_batch(done, len(order))
                with precision.autocast():
                    room = _add(evaluator, model, batch, device, room)
    finally:
        model.train(was_training)
    return evaluator.compute(), evaluator


def _add(evaluator: Any, model: nn.Module, batch: MicroBatch, device: torch.device, room: int | None) -> int | None:
    """Add a batch, in parts of at most `room` tokens, padding included; where memory runs out, in halves of the part
    that did not fit.

    Returns:
        What fits: the next batches begin with it.
    """
    waiting = _parts(batch, room)
    while waiting:
        part = waiting.pop(0)
        try:
            evaluator.update(model, part.to(device))
            continue
        except Exception as error:
            if not is_out_of_memory(error) or part.rows == 1:
                raise
        make_room(device)
        room = (part.rows + 1) // 2 * part.width
        waiting = [smaller for one in (part, *waiting) for smaller in _parts(one, room)]
    return room


def _parts(batch: MicroBatch, room: int | None) -> list[MicroBatch]:
    return batch.split(None if room is None else max(1, room // batch.width))


def check_metric_name(dataset: CodeDataset, name: str) -> None:
    """Refuse a metric that an evaluation on this data set does not give.

    Raises:
        ConfigurationError: with those that it gives.
    """
    given = [f"eval_{metric}" for metric in dataset.task.evaluator(label_names(dataset)).compute()]
    if name not in given:
        raise ConfigurationError(f"metric_name: seen '{name}'; {did_you_mean(name, given)}")


def label_names(dataset: CodeDataset) -> list[str] | None:
    """The classes in the order of their indices; None for a task without classes."""
    return list(dataset.label_mapping) if dataset.task.has_classes else None
