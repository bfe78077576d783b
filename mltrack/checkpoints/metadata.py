"""What is known of a checkpoint without opening its tensors, and which checkpoints stay.

Invariant: best and latest are decided from what `metadata.json` recorded, never from a folder's name or time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """One complete checkpoint."""

    epoch: int
    """0-based epoch in which it was taken."""
    step: int
    """Optimizer steps behind it."""
    metric_value: float | None
    """None where nothing was evaluated since the last checkpoint."""
    metric_name: str
    path: Path
    """Its folder."""
    run_id: str | None = None
    created_ms: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """All evaluation metrics of that moment."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{file name: {bytes, sha256}}."""
    aliases: dict[str, str] = field(default_factory=dict)
    """{name: name that holds its weights} of tied weights."""
    format_version: int = FORMAT_VERSION

    @property
    def is_ranked(self) -> bool:
        """False for a NaN, an infinity or no metric at all: such a checkpoint is never the best."""
        return self.metric_value is not None and math.isfinite(self.metric_value)

    @property
    def num_bytes(self) -> int:
        """Size of its files."""
        return sum(held["bytes"] for held in self.files.values())


def best_first(checkpoints: Sequence[CheckpointMetadata], mode: str) -> list[CheckpointMetadata]:
    """The ranked checkpoints, the best first; of equals the earlier step."""
    sign = 1.0 if mode == "min" else -1.0
    ranked = [one for one in checkpoints if one.is_ranked]
    return sorted(ranked, key=lambda one: (sign * (one.metric_value or 0.0), one.step))


def latest(checkpoints: Sequence[CheckpointMetadata]) -> CheckpointMetadata | None:
    """The checkpoint with the most steps."""
    return max(checkpoints, key=lambda one: (one.step, one.created_ms), default=None)


def reasons_to_keep(checkpoints: Sequence[CheckpointMetadata], *, mode: str, max_checkpoints: int, keep_every: int | None) -> dict[int, list[str]]:
    """{step: reasons} of the checkpoints that stay: the k best, the latest, the milestones."""
    reasons: dict[int, list[str]] = {}
    for one in best_first(checkpoints, mode)[:max_checkpoints]:
        reasons.setdefault(one.step, []).append("best")
    newest = latest(checkpoints)
    if newest is not None:
        reasons.setdefault(newest.step, []).append("latest")
    for one in checkpoints:
        if keep_every is not None and one.step % keep_every == 0:
            reasons.setdefault(one.step, []).append("milestone")
    return reasons
