"""Statistics of one metric in constant memory.

Invariant: accurate for any number of values (Welford's update); a NaN or an infinity is counted, but never averaged or
best."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """One point of one metric."""

    name: str
    """As in MLflow, `epoch/` included."""
    value: float
    step: int
    """Optimizer steps so far, or epochs finished for a name under `epoch/`."""
    epoch: int | None
    """0-based; None if the caller gave none."""
    time_ms: int
    """When it was recorded, milliseconds since 1970."""

    def shown(self) -> dict[str, Any]:
        """The form in a summary."""
        return {"value": self.value, "step": self.step, "epoch": self.epoch}


@dataclass(frozen=True, slots=True)
class MetricStatistics:
    """A metric so far; `mean`, `std`, `min` and `max` are over the finite values, NaN if there are none."""

    mean: float
    std: float
    """Population standard deviation."""
    min: float
    max: float
    count: int
    """Values logged, including non-finite ones."""
    last: float
    non_finite: int = 0

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class MetricSeries:
    """The state of one metric in memory, updated value by value. Source of the update: B. P. Welford, Technometrics
    4(3), 1962.

    Args:
        name: as in MLflow, `epoch/` included.
        timing: True if it depends on the machine's speed.
        mode: min or max; None if no direction, and so no best, is known.
    """

    __slots__ = (
        "_m2",
        "at_max",
        "at_min",
        "count",
        "json_key",
        "last",
        "max",
        "mean",
        "min",
        "mode",
        "name",
        "non_finite",
        "timing",
    )

    def __init__(self, name: str, *, timing: bool = False, mode: str | None = None) -> None:
        self.name, self.timing, self.mode = name, timing, mode
        self.json_key = json.dumps(name) + ":"
        self.count = 0
        self.non_finite = 0
        self.mean = 0.0
        self._m2 = 0.0
        self.min = math.inf
        self.max = -math.inf
        self.at_min: MetricEntry | None = None
        self.at_max: MetricEntry | None = None
        self.last = math.nan

    def add(self, value: float, step: int, epoch: int | None, time_ms: int) -> None:
        """Count one value."""
        self.count += 1
        self.last = value
        if not math.isfinite(value):
            self.non_finite += 1
            return
        delta = value - self.mean
        self.mean += delta / (self.count - self.non_finite)
        self._m2 += delta * (value - self.mean)
        if value < self.min:
            self.min, self.at_min = value, MetricEntry(self.name, value, step, epoch, time_ms)
        if value > self.max:
            self.max, self.at_max = value, MetricEntry(self.name, value, step, epoch, time_ms)

    @property
    def best(self) -> MetricEntry | None:
        """The best finite value, the earlier of two equals; None if there is none."""
        return {"min": self.at_min, "max": self.at_max, None: None}[self.mode]

    def snapshot(self) -> MetricStatistics:
        """The statistics so far."""
        finite = self.count - self.non_finite
        if finite == 0:
            return MetricStatistics(math.nan, math.nan, math.nan, math.nan, self.count, self.last, self.non_finite)
        return MetricStatistics(
            self.mean, math.sqrt(self._m2 / finite), self.min, self.max, self.count, self.last, self.non_finite
        )
