"""What is done to a model before it is trained."""

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
    if config.packing and not supports_packing(inner):
        raise ConfigurationError(
            f"packing: seen true, but {type(inner).__name__} lets the examples of a row see each other; accepted for"
            " it: false"
        )
    if config.gradient_checkpointing:  # Hugging Face's switch, under its new name where it has one
        (getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable)()
    if config.compile:
        check_compiler(device)
    return model
