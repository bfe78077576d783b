"""Statistics of one metric in constant memory.

Invariant: right for any number of values (Welford's update); a NaN or an infinity is counted, never averaged in, never best.
"""

from __future__ import annotations

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
    """0-based; None where the caller did not say."""
    time_ms: int
    """Milliseconds since 1970, when it was recorded."""


@dataclass(frozen=True, slots=True)
class MetricStatistics:
    """What a metric was so far; `mean`, `std`, `min` and `max` are over the finite values, NaN where there is none."""

    mean: float
    std: float
    """Population standard deviation."""
    min: float
    max: float
    count: int
    """Values logged, the non-finite ones included."""
    last: float
    non_finite: int = 0

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class RunningStatistics:
    """Takes values one by one; source of the update: B. P. Welford, Technometrics 4(3), 1962."""

    __slots__ = ("_m2", "count", "last", "max", "mean", "min", "non_finite")

    def __init__(self) -> None:
        self.count = 0
        self.non_finite = 0
        self.mean = 0.0
        self._m2 = 0.0
        self.min = math.inf
        self.max = -math.inf
        self.last = math.nan

    def add(self, value: float) -> None:
        """Count one value."""
        self.count += 1
        self.last = value
        if not math.isfinite(value):
            self.non_finite += 1
            return
        delta = value - self.mean
        self.mean += delta / (self.count - self.non_finite)
        self._m2 += delta * (value - self.mean)
        self.min = min(self.min, value)
        self.max = max(self.max, value)

    def snapshot(self) -> MetricStatistics:
        """The statistics so far."""
        finite = self.count - self.non_finite
        if finite == 0:
            return MetricStatistics(math.nan, math.nan, math.nan, math.nan, self.count, self.last, self.non_finite)
        return MetricStatistics(self.mean, math.sqrt(self._m2 / finite), self.min, self.max, self.count, self.last, self.non_finite)


@dataclass(slots=True)
class BestValue:
    """The best finite value of a metric so far; the earlier one of two equals."""

    mode: str
    """min or max."""
    entry: MetricEntry | None = None

    def beaten_by(self, value: float) -> bool:
        """True where the value is better; a NaN or an infinity never is."""
        held = self.entry
        if held is None:
            return math.isfinite(value)
        better = value < held.value if self.mode == "min" else value > held.value
        return better and math.isfinite(value)
