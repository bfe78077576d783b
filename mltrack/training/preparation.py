"""Prepares a model for training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mltrack.checkpoints.state import unwrapped
from mltrack.config import TrainingConfig
from mltrack.errors import ConfigurationError
from mltrack.tasks.token_loss import supports_packing
from mltrack.training.speed import choose_kernels
from mltrack.training.speed.compiled import check_compiler


def prepared(model: nn.Module, config: TrainingConfig, device: torch.device) -> nn.Module:
    """The model on its device, with recomputed activations if the configuration says so.

    Raises:
        ConfigurationError: the model does not support packing, or the machine cannot compile.
    """
    choose_kernels(config, device)
    model = model.to(device)
    inner: Any = unwrapped(model)
    if config.packing and getattr(getattr(inner, "config", None), "_attn_implementation", None) == "flash_attention_2":
        raise ConfigurationError(
            "packing=true does not work with attention=flash_attention_2, which separates the examples of one row but"
            " not those of several; use attention=sdpa"
        )
    if config.packing and not supports_packing(inner):
        raise ConfigurationError(
            f"packing must be false, not true, for {type(inner).__name__}: it would let the examples of a row attend to"
            " each other"
        )
    if config.gradient_checkpointing:  # Hugging Face's switch, by its new name if it has one
        (getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable)()
    if config.compile:
        check_compiler(device)
    return model
