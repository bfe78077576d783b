"""Speed-ups of a step that change nothing but rounding; a first-time reader may skip this folder.

Each is a module with a context around the loop or a choice before it. Its `fingerprint` gives what decides the bits of
a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mltrack.checkpoints.state import unwrapped
from mltrack.collector import frozen
from mltrack.config import TrainingConfig
from mltrack.hardware import allow_planned_attention, allow_tf32, choose_precision, repeating_exactly
from mltrack.training.speed import attention, compiled, dropout, first_token


def fingerprint(
    config: TrainingConfig, model: nn.Module, device: torch.device, *, cls_only: bool = False
) -> dict[str, Any]:
    """What the speed-ups contribute to the bits of a result, by name; compared when a training is resumed.

    Args:
        cls_only: the result of `uses_cls_only` for the model.
    """
    on = config.effective_speedups
    return {
        **dropout.fingerprint(on),
        **first_token.fingerprint(cls_only=cls_only),
        **compiled.fingerprint(config),
        **attention.fingerprint(model, on, device),
        "optimizer": "AdamW" if on.fused_adamw else "AdamW, not fused",
        "fp32 products": "TF32" if on.tf32 and device.type == "cuda" else "whole",
    }


def uses_cls_only(model: nn.Module, config: TrainingConfig, *, replicated: bool) -> bool:
    """Whether the model's last layer is computed only for its first token; a replicated model must keep its classes'
    forward methods.
    """
    return config.effective_speedups.first_token and not replicated and first_token.reads_first_token(unwrapped(model))


def choose_kernels(config: TrainingConfig, device: torch.device) -> None:
    """Choose a GPU's kernels for products and attention, for the whole process: what follows a training, such as the
    evaluation of its best weights, computes as it did.
    """
    on = config.effective_speedups
    allow_tf32(device, choose_precision(config.precision, device), on.tf32)
    allow_planned_attention(device, not on.any_shape_attention)


@contextmanager
def training_context(
    model: nn.Module, config: TrainingConfig, device: torch.device, *, cls_only: bool = False
) -> Iterator[None]:
    """The context of the loop: repeatable bits if requested, the speed-ups, a paused garbage collector. Afterwards the
    process and the model's modules are as before, except for a GPU's kernels.

    Args:
        cls_only: the result of `uses_cls_only` for the model.
    """
    choose_kernels(config, device)  # again: another trainer may have chosen others in between
    inner = unwrapped(model)
    masks = config.effective_speedups.dropout_masks and device.type == "cpu" and not config.compile
    without = first_token.last_layer(inner) if cls_only else None
    with (
        repeating_exactly(config.deterministic),
        dropout.cheap_masks(model, masks),
        first_token.only_first_token(inner, cls_only),
        compiled.compiled_layers(inner, config.compile, without=without),
        frozen(),
    ):
        yield
