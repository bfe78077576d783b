"""A model's metrics on a data set: sums over all targets, divided once, so the batch size does not matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mltrack.data import CodeDataset, Sampler
from mltrack.data.batches import MicroBatch, load_batches
from mltrack.data.collate import PADDED_TO
from mltrack.errors import ConfigurationError, did_you_mean, one_of
from mltrack.hardware.memory import free_memory
from mltrack.hardware.precision import Precision
from mltrack.shortage import is_out_of_memory

OnBatch = Callable[[int, int], None]
Metrics = Mapping[str, Callable[[list[int], list[int]], float]]
"""Own metrics by name: of predictions and labels, both class indices (one per record) or token ids (one per target)."""


def evaluate(
    model: nn.Module,
    dataset: CodeDataset,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    max_batch_tokens: int | None = None,
    metrics: Metrics | None = None,
    on_batch: OnBatch | None = None,
) -> tuple[dict[str, float], Any]:
    """Evaluate without dropout and gradients; afterwards the model's mode is as before.

    Args:
        batch_size: examples at once; fewer if `max_batch_tokens`, padding included, or the memory does not allow it.
        metrics: the user's own: each is called once with all predictions and all labels, in batch order, the shortest
            batches first.
        on_batch: called before each batch with (batches done, all batches); an exception ends the evaluation.

    Returns:
        The metrics by name, `loss` first, and the task's evaluator with its predictions.
    """
    evaluator = _evaluator(dataset, metrics)
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
    return evaluator.compute() | _own(metrics, evaluator), evaluator


def _evaluator(dataset: CodeDataset, metrics: Metrics | None) -> Any:
    if not metrics:
        return dataset.task.evaluator(label_names(dataset))
    evaluator = dataset.task.evaluator(label_names(dataset), keeps_predictions=True)
    if not hasattr(evaluator, "predictions"):
        raise ConfigurationError(f"metrics: {dataset.task} has no predictions; leave metrics out")
    return evaluator


def _own(metrics: Metrics | None, evaluator: Any) -> dict[str, float]:
    values = {}
    for name, function in (metrics or {}).items():
        value = function(evaluator.predictions, evaluator.labels)
        try:
            values[name] = float(value)
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"metrics: {name} must return a number, not {type(value).__name__} {str(value)[:40]!r}"
            ) from None
    return values


def _add(evaluator: Any, model: nn.Module, batch: MicroBatch, device: torch.device, room: int | None) -> int | None:
    """Add a batch, in parts of at most `room` tokens, padding included; if memory runs out, in halves of the part that
    did not fit.

    Returns:
        The tokens that fit, for the next batches.
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
        free_memory(device)
        room = (part.rows + 1) // 2 * part.width
        waiting = [smaller for one in (part, *waiting) for smaller in _parts(one, room)]
    return room


def _parts(batch: MicroBatch, room: int | None) -> list[MicroBatch]:
    return batch.split(None if room is None else max(1, room // batch.width))


def check_metric_name(dataset: CodeDataset, name: str, metrics: Metrics | None = None) -> None:
    """Refuse a metric that an evaluation on this data set does not give, and own metrics with a name that is taken.

    Raises:
        ConfigurationError: with the names that it gives.
    """
    own = _evaluator(dataset, metrics).compute() | {"seconds": 0.0}
    if taken := sorted(own.keys() & (metrics or {}).keys()):
        raise ConfigurationError(f"metrics: {dataset.task} already has a metric '{taken[0]}'; use another name")
    given = [f"eval_{metric}" for metric in (*own, *(metrics or {}))]
    if name not in given:
        raise ConfigurationError(f"metric_name must be {one_of(given)}, not '{name}'{did_you_mean(name, given)}")


def label_names(dataset: CodeDataset) -> list[str] | None:
    """The classes in the order of their indices; None for a task without classes."""
    return list(dataset.label_mapping) if dataset.task.has_classes else None
