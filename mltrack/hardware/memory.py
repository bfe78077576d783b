"""Frees memory after it ran out; `mltrack.shortage` recognizes such errors."""

from __future__ import annotations

import torch

from mltrack.collector import collect_all


def free_memory(device: torch.device) -> None:
    """Free unused memory. Do not call it in the exception handler: the traceback keeps the tensors alive."""
    collect_all()
    if device.type == "cuda":
        torch.cuda.empty_cache()
