"""What is done to a model before it is trained, and what surrounds the loop while it is.

Invariant: after `sped_up` the process and the model's modules are as before, but for which kernels a GPU may use.
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
from mltrack.errors import ConfigurationError
from mltrack.hardware import allow_planned_attention, allow_tf32, choose_precision, repeating_exactly
from mltrack.tasks.token_loss import keeps_apart
from mltrack.training.speed.compiled import check_compiler, compiled_layers
from mltrack.training.speed.dropout import cheap_masks
from mltrack.training.speed.first_token import last_layer, only_first_token, reads_first_token


def prepared(model: nn.Module, config: TrainingConfig, device: torch.device) -> nn.Module:
    """The model on its device, with recomputed activations where the configuration says so.

    Raises:
        ConfigurationError: a model that packing would mix up, or a machine that cannot compile.
    """
    choose_kernels(config, device)
    model = model.to(device)
    inner: Any = unwrapped(model)
    if config.packing and getattr(getattr(inner, "config", None), "_attn_implementation", None) == "flash_attention_2":
        raise ConfigurationError(
            "packing: seen true with attention flash_attention_2, which tells the examples of one row apart and not"
            " those of several; accepted: attention=sdpa"
        )
    if config.packing and not keeps_apart(inner):
        raise ConfigurationError(
            f"packing: seen true, but {type(inner).__name__} lets the examples of a row see each other; accepted for"
            " it: false"
        )
    if config.gradient_checkpointing:  # Hugging Face's switch, under its new name where it has one
        (getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable)()
    if config.compile:
        check_compiler(device)
    return model


def choose_kernels(config: TrainingConfig, device: torch.device) -> None:
    """What a GPU multiplies and attends with, for the whole process: what comes after a training, such as the
    evaluation of its best weights, computes as it did.
    """
    on = config.effective_speedups
    allow_tf32(device, choose_precision(config.use_mixed_precision, device), on.tf32)
    allow_planned_attention(device, not on.any_shape_attention)


def narrows(model: nn.Module, config: TrainingConfig, *, replicated: bool) -> bool:
    """Whether the model's last layer is computed for its first token alone; a replicated model must stay what its
    classes say.
    """
    return config.effective_speedups.first_token and not replicated and reads_first_token(unwrapped(model))


@contextmanager
def sped_up(model: nn.Module, config: TrainingConfig, device: torch.device, *, narrow: bool = False) -> Iterator[None]:
    """What surrounds the loop: the same bits each time where asked for, work that nobody would look at left out, a
    collector that rests.

    Args:
        narrow: what `narrows` says of the model.
    """
    choose_kernels(config, device)  # again: another trainer may have been made in between
    inner = unwrapped(model)
    masks = config.effective_speedups.dropout_masks and device.type == "cpu" and not config.compile
    layers = compiled_layers(inner, config.compile, without=last_layer(inner) if narrow else None)
    with (
        repeating_exactly(config.deterministic),
        cheap_masks(model, masks),
        only_first_token(inner, narrow),
        layers,
        frozen(),
    ):
        yield
