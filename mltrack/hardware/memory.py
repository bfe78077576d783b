"""Memory that ran out: how room is made. How it is told from other errors: `mltrack.shortage`."""

from __future__ import annotations

import torch

from mltrack.collector import collect_all


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more. Not to be called where the error is handled: its traceback keeps the
    tensors alive.
    """
    collect_all()
    if device.type == "cuda":
        torch.cuda.empty_cache()
