"""Memory that ran out: how it is told from other errors, and how room is made."""

from __future__ import annotations

import torch

from mltrack.collector import collect_all

_ALLOCATION_FAILED = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What a RuntimeError says where torch has no class of its own for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """True where an allocation failed, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATION_FAILED)


def make_room(device: torch.device) -> None:
    """Give back what nobody holds any more. Not to be called where the error is handled: its traceback keeps the tensors alive."""
    collect_all()
    if device.type == "cuda":
        torch.cuda.empty_cache()
