"""Mixed precision: autocast, loss scaling, and the optimizer step.

Invariant: master weights and optimizer state are fp32; gradients are unscaled before they are read; a gradient or loss
that is not finite changes neither weights nor optimizer state."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

SMALLEST_SCALE = 2.0**-14
"""Below this loss scale an overflow is not due to the scale."""


class Precision:
    """One of fp16, bf16, off.

    Args:
        mode: the result of `mltrack.hardware.choose_precision`.
        device: that of the model.
    """

    def __init__(self, mode: str, device: torch.device):
        self.mode, self.device = mode, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=mode == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass; no context for off."""
        if self.mode == "off":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16 if self.mode == "bf16" else torch.float16)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss, scaled in fp16."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer, losses: torch.Tensor) -> None:
        """Make the gradients those of the loss itself.

        Args:
            losses: those that were added up, float32 [N]. GradScaler checks only gradients, so a loss that is not
                finite makes one of them NaN.
        """
        if self.mode != "fp16":
            return
        first = next(
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        )
        first[(0,) * first.ndim].add_(torch.where(torch.isfinite(losses).all(), 0.0, torch.nan))
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, not_finite: torch.Tensor) -> None:
        """Step the optimizer unless `not_finite` (float32, 0-dim, on the device) is 1, without waiting for a GPU."""
        if steps_on_condition(optimizer):
            held: Any = optimizer
            held.grad_scale, held.found_inf = None, not_finite
            try:
                optimizer.step()
            finally:
                del held.grad_scale, held.found_inf
            self.scaler.update()
        elif self.mode == "fp16":
            self.scaler.step(optimizer)
            self.scaler.update()
        elif not not_finite.item():
            optimizer.step()

    def skips(self) -> bool:
        """True if fp16's own overflow handling explains a skipped step: no error while a lower scale can help."""
        return self.mode == "fp16" and self.scaler.get_scale() > SMALLEST_SCALE

    def state_dict(self) -> dict[str, Any]:
        """Scale and growth counter in fp16, empty otherwise."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        if state:
            self.scaler.load_state_dict(state)


def steps_on_condition(optimizer: torch.optim.Optimizer) -> bool:
    """True for torch's fused optimizers: their kernel takes the condition from the device."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
