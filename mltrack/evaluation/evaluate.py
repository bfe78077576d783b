"""One pass over a data set without training.

Invariant: the metrics are those that training reports, whatever the batch size; the model is left in the mode in which it came.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import torch

from mltrack import hardware
from mltrack.errors import Interrupted
from mltrack.tasks import task_for
from mltrack.tasks.contract import Evaluator


def evaluate_model(
    model: torch.nn.Module,
    dataset: Any,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    stop_requested: Callable[[], bool] | None = None,
) -> tuple[dict[str, float], Evaluator]:
    """The metrics of `model` on a CodeDataset, and the evaluator with what they were computed from.

    Args:
        batch_size: records a batch; longest records first, so that memory is tried at once and padding is small.
        device: where the model is put.
        precision: fp16, bf16 or off.
        stop_requested: asked before each batch.

    Raises:
        Interrupted: `stop_requested` said so; half an evaluation is no evaluation.
    """
    names = [dataset.id2label[i] for i in sorted(dataset.id2label)] if dataset.task.is_classification else None
    evaluator = task_for(dataset.task).evaluator(names)
    order = sorted(range(len(dataset)), key=lambda i: (-int(dataset.lengths[i]), i))
    was_training = model.training
    model.to(device).eval()
    try:
        with torch.inference_mode(), hardware.autocast(device, precision):
            for start in range(0, len(order), batch_size):
                if stop_requested is not None and stop_requested():
                    raise Interrupted(signal.SIGINT)
                batch = dataset.collate([dataset[i] for i in order[start : start + batch_size]])
                evaluator.update(model, {name: tensor.to(device) for name, tensor in batch.items()})
    finally:
        model.train(was_training)
    return evaluator.compute(), evaluator
