"""Ends a training that no longer improves."""

from __future__ import annotations

import math
from typing import Any


class EarlyStopping:
    """Counts evaluations without improvement.

    Args:
        patience: how many in a row end the training; None: never.
        min_delta: smallest change that counts as an improvement.
        mode: "min" or "max".
    """

    def __init__(self, patience: int | None, min_delta: float = 0.0, mode: str = "min"):
        self.patience, self.min_delta, self.mode = patience, min_delta, mode
        self.reference: float | None = None
        """The value that an improvement must beat."""
        self.waited = 0

    @property
    def should_stop(self) -> bool:
        """True once patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    def update(self, value: float) -> None:
        """Take the metric of one evaluation; a NaN is no improvement."""
        gain = (
            math.inf
            if self.reference is None
            else (self.reference - value if self.mode == "min" else value - self.reference)
        )
        if math.isfinite(value) and gain > self.min_delta:
            self.reference, self.waited = value, 0
        else:
            self.waited += 1

    def reset(self) -> None:
        """Forget all earlier evaluations."""
        self.reference, self.waited = None, 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; patience and min_delta are the configuration's."""
        return {"reference": self.reference, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.reference, self.waited = state["reference"], state["waited"]
