"""Dropout for the CPU whose masks cost a fifth: one 64-bit random number decides about four elements.

Invariant: an element is dropped with the module's own probability, to 1/65536, and what is kept is scaled by exactly the inverse of what is kept on
average. The bits come from torch's global generator, so a checkpoint's random state continues them.

    with cheap_masks(model):
        ...                                             # its nn.Dropout modules draw their masks so
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_VALUES = 1 << 16


class _Masked(torch.autograd.Function):
    """Zero where the bits are not above the threshold; the bits are kept for the way back, two bytes an element."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, threshold: int, scale: float) -> torch.Tensor:
        draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: values.numel()].view(values.shape)
        context.save_for_backward(bits)
        context.threshold, context.scale = threshold, scale
        return _kept(values, bits, threshold, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (bits,) = context.saved_tensors
        return _kept(gradient, bits, context.threshold, context.scale), None, None


def _kept(values: torch.Tensor, bits: torch.Tensor, threshold: int, scale: float) -> torch.Tensor:
    # threshold_backward is torch's one kernel that selects by a comparison without writing a mask first: 0.16 ms where gt and mul take 1.2 ms
    kept: torch.Tensor = torch.ops.aten.threshold_backward(values, bits, threshold)
    return kept.mul_(scale)


class CheapDropout(nn.Module):
    """`nn.Dropout` on the CPU, other draws of the same distribution.

    Args:
        p: share of the elements that become 0.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        dropped = round(p * _VALUES)
        self._threshold = dropped - _VALUES // 2 - 1
        self._scale = _VALUES / (_VALUES - dropped) if dropped < _VALUES else 0.0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Of any shape and floating type; itself in evaluation."""
        if not self.training or self.p == 0.0:
            return values
        masked: torch.Tensor = _Masked.apply(values, self._threshold, self._scale)
        return masked


@contextmanager
def cheap_masks(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, the `nn.Dropout` modules of the model are `CheapDropout`; afterwards they are what they were."""
    places = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children() if type(child) is nn.Dropout] if wanted else []
    try:
        for parent, name, child in places:
            setattr(parent, name, CheapDropout(child.p).train(child.training))
        yield
    finally:
        for parent, name, child in places:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)
