"""Mixed precision: autocast, loss scaling, and the optimizer step behind it.

Invariant: master weights and optimizer state are fp32; gradients are unscaled before anybody looks at them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from mltrack import hardware

SMALLEST_SCALE = 2.0**-14
"""A loss scale below it means that the overflow does not come from the scale."""


class Precision:
    """One of fp16, bf16, off.

    Args:
        mode: as `mltrack.hardware.choose_precision` gave it.
        device: where the model runs.
    """

    def __init__(self, mode: str, device: torch.device):
        self.mode, self.device = mode, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=mode == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return hardware.autocast(self.device, self.mode)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss, scaled in fp16."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradients those of the loss itself."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimizer; in fp16 not with a gradient that overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def skips(self, finite: bool) -> bool:
        """True where fp16's own overflow handling skips this step, which is no error while lowering the scale can help."""
        return self.mode == "fp16" and not finite and self.scaler.get_scale() > SMALLEST_SCALE

    def discard(self, optimizer: torch.optim.Optimizer) -> None:
        """Take back `unscale` for a step that is not taken."""
        if self.mode == "fp16":
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Scale and growth counter in fp16, empty otherwise."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        if state:
            self.scaler.load_state_dict(state)
