"""What decides the bits of a result besides weights, position and plan: it must be the same where a training is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mltrack.config import TrainingConfig
from mltrack.data import CodeDataset
from mltrack.errors import ConfigurationError


def decisive(config: TrainingConfig, dataset: CodeDataset, device: torch.device, precision: str, world: int = 1) -> dict[str, Any]:
    """The values by name, as a checkpoint keeps them."""
    return {
        "batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "training data": dataset.digest[:12],
        "max_length": dataset.max_length,
        "world size": world,
        "device": device.type,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def compare_decisive(then: Mapping[str, Any], now: Mapping[str, Any], *, exact: bool) -> list[str]:
    """What is not as it was, one clause each: "batch_size is 8, was 4".

    Raises:
        ConfigurationError: something is not, and `exact` is on.
    """
    changed = [f"{name} is {now[name]}, was {then[name]}" for name in now if name in then and now[name] != then[name]]
    if changed and exact:
        raise ConfigurationError(f"resume: {'; '.join(changed)}; accepted: what the checkpoint was made with, or exact=false")
    return changed
