"""What decides the bits of a result besides weights, position and plan; must not change on resume."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mltrack.checkpoints.state import unwrapped
from mltrack.config import OPTIONS, TrainingConfig
from mltrack.data import CodeDataset
from mltrack.data.batches import order_of
from mltrack.data.collate import PADDED_TO
from mltrack.data.encoding import tokenizer_digest
from mltrack.errors import ConfigurationError
from mltrack.hardware import visible_gpus
from mltrack.training import speed


def fingerprint_of(
    config: TrainingConfig,
    dataset: CodeDataset,
    model: nn.Module,
    device: torch.device,
    precision: str,
    *,
    world: int = 1,
    replicated: bool = False,
    cls_only: bool = False,
) -> dict[str, Any]:
    """The values by name, as a checkpoint keeps them, collected from the parts.

    Args:
        cls_only: the result of `speed.uses_cls_only` for the model.
    """
    return {
        **{name: getattr(config, name) for name, option in OPTIONS.items() if option.fixes_result},
        **({"warmup_ratio": config.warmup_ratio} if config.warmup_steps is None else {}),
        **_of_data(config, dataset),
        **dataset.task.fingerprint(config),
        **speed.fingerprint(config, model, device, cls_only=cls_only),
        "model": shape_of(unwrapped(model)),
        "base model": _origin_of(unwrapped(model)),
        **_of_machine(device, precision, world, replicated),
    }


def _of_data(config: TrainingConfig, dataset: CodeDataset) -> dict[str, Any]:
    return {
        "training data": dataset.digest[:12],
        "tokenizer": tokenizer_digest(dataset.tokenizer)[:12],
        "max_length": dataset.max_length,
        "truncation": dataset.truncation,
        "sampler": order_of(config),
        "padding": f"to multiples of {PADDED_TO}",
        "packing": "rows filled, or one each" if config.packing else False,
    }


def _of_machine(device: torch.device, precision: str, world: int, replicated: bool) -> dict[str, Any]:
    on_cpu = device.type == "cpu"
    return {
        "world size": world,
        "device": _device(device, replicated=replicated),
        "precision": precision,
        **({"threads": torch.get_num_threads()} if on_cpu else {}),
        "instructions": torch.backends.cpu.get_cpu_capability() if on_cpu else "the GPU's",
        "torch": str(torch.__version__),
    }


def _device(device: torch.device, *, replicated: bool) -> str:
    """Its type; for a GPU also its name and how many compute together."""
    if device.type != "cuda":
        return device.type
    return f"{visible_gpus() if replicated else 1} x {torch.cuda.get_device_name(device)}"


def _origin_of(model: nn.Module) -> str | None:
    """The commit or digest of the source of the weights, if the model records it."""
    said = getattr(getattr(model, "config", None), "mltrack", None) or {}
    return said.get("model_commit") or said.get("model_digest")


def shape_of(model: nn.Module) -> str:
    """The model's class, its number of parameters, and a digest of their names and shapes."""
    shapes = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in sorted(model.state_dict().items())]
    digest = hashlib.sha256("\n".join(shapes).encode()).hexdigest()
    return (
        f"{type(model).__name__} of {sum(parameter.numel() for parameter in model.parameters()):,} parameters"
        f" ({digest[:8]})"
    )


def compare_fingerprints(then: Mapping[str, Any], now: Mapping[str, Any], *, strict: bool) -> list[str]:
    """The differences, one clause each: "batch_size changed from 4 to 8".

    Raises:
        ConfigurationError: there are differences, and `strict` is on.
    """
    changed = [
        f"{name} changed from {then[name]} to {now[name]}" for name in now if name in then and now[name] != then[name]
    ]
    if changed and strict:
        raise ConfigurationError(f"cannot resume: {'; '.join(changed)}; use the old value, or --strict-resume false")
    return changed
