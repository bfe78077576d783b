"""Which implementation of attention a model uses.

Invariant: `auto` is a rule, never a measurement: the same request gives the same bits on the same machine.
"""

from __future__ import annotations

from typing import Any

import torch

from mltrack.checkpoints.state import unwrapped
from mltrack.config.speedups import Speedups
from mltrack.errors import ConfigurationError

_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
"""Names of the dropout of attention's weights in configurations of transformers."""


def fingerprint(model: Any, on: Speedups, device: torch.device) -> dict[str, Any]:
    """The implementation and kernels, which round differently."""
    config = getattr(unwrapped(model), "config", None)
    return {
        "attention implementation": str(getattr(config, "_attn_implementation", None)),
        "attention kernels": (
            "for any shape" if on.any_shape_attention and device.type == "cuda" else "as torch chooses"
        ),
    }


def use_attention(model: Any, word: str, device: torch.device, precision: str) -> None:
    """Make the model compute attention as `word` says.

    Args:
        model: of transformers.
        word: eager, sdpa, flash_attention_2, or auto: eager on a CPU in bf16 with dropout on attention's weights (SDPA
            then leaves its fast path and costs more than the plain products; docs/performance.md), else the model's
            own.

    Raises:
        ConfigurationError: the model or the machine does not have it.
    """
    if word == "auto":
        dropout = max((float(getattr(model.config, name, 0.0) or 0.0) for name in _DROPOUTS), default=0.0)
        if not (device.type == "cpu" and precision == "bf16" and dropout > 0):
            return
        word = "eager"
    if word == "flash_attention_2" and device.type != "cuda":
        raise ConfigurationError(
            f"attention=flash_attention_2 does not work with device={device.type}; use auto, eager or sdpa"
        )
    if word == "flash_attention_2" and precision == "off":
        raise ConfigurationError(
            "attention=flash_attention_2 does not support fp32; use precision=bf16 or fp16, or attention=sdpa"
        )
    try:
        model.set_attn_implementation(word)
    except (ImportError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(
            f"attention={word} is not available for {type(model).__name__} here ({reason}); use attention=auto"
        ) from error
