"""Dropout for the CPU with cheaper masks: one 64-bit random number decides four elements.

Invariant: an element is dropped with the module's own probability, to 1/65536 (in bf16, whose comparison is coarser, to
1/1000), and kept elements are scaled by exactly the inverse of the share that is kept on average. The bits come from
torch's global generator, so a checkpoint's random state continues them.

    with cheap_masks(model):
        ...                                             # its nn.Dropout modules draw cheap masks
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from mltrack.config.speedups import Speedups

_VALUES = 1 << 16


def fingerprint(on: Speedups) -> dict[str, Any]:
    """Which random numbers are drawn."""
    return {"dropout masks": "cheap" if on.dropout_masks else "torch's"}


class _Masked(torch.autograd.Function):
    """Zero where the bits are not above the threshold; the bits are kept for the backward pass, 2 bytes per element."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, threshold: int) -> torch.Tensor:
        draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: values.numel()].view(values.shape)
        context.save_for_backward(bits)
        context.threshold = threshold
        return _kept(values, bits, threshold)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (bits,) = context.saved_tensors
        return _kept(gradient, bits, context.threshold), None


def _kept(values: torch.Tensor, bits: torch.Tensor, threshold: int) -> torch.Tensor:
    return _selected(values, bits, threshold).mul_(_scale(threshold, values.dtype))


@lru_cache
def _scale(threshold: int, dtype: torch.dtype) -> float:
    """The inverse of the share of all 65,536 draws that a comparison in that type keeps; 0 if it keeps none."""
    draws = torch.arange(-_VALUES // 2, _VALUES // 2, dtype=torch.int32).to(torch.int16)
    kept = int(_selected(torch.ones(_VALUES, dtype=dtype), draws, threshold).count_nonzero())
    return _VALUES / kept if kept else 0.0


def _selected(values: torch.Tensor, bits: torch.Tensor, threshold: int) -> torch.Tensor:
    # threshold_backward is the only kernel of torch that selects by a comparison without writing a mask first
    selected: torch.Tensor = torch.ops.aten.threshold_backward(values, bits, threshold)
    return selected


class CheapDropout(nn.Module):
    """`nn.Dropout` on the CPU, with other draws of the same distribution.

    Args:
        p: share of the elements that become 0.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self._threshold = round(p * _VALUES) - _VALUES // 2 - 1

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values of any shape and floating type; unchanged in evaluation."""
        if not self.training or self.p == 0.0:
            return values
        masked: torch.Tensor = _Masked.apply(values, self._threshold)
        return masked


@contextmanager
def cheap_masks(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, the model's `nn.Dropout` modules (except in-place ones) are `CheapDropout`; then they are restored."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if wanted and type(child) is nn.Dropout and not child.inplace
    ]
    try:
        for parent, name, child in places:
            setattr(parent, name, CheapDropout(child.p).train(child.training))
        yield
    finally:
        for parent, name, child in places:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)
