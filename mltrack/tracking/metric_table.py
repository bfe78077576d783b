"""The statistics of all metrics of a run, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from mltrack.errors import ConfigurationError, TrackingError, one_of
from mltrack.evaluation.metrics import metric_mode
from mltrack.journal.records import EPOCH_PREFIX
from mltrack.tracking.statistics import MetricSeries, MetricStatistics
from mltrack.tracking.values import checked_name

TIMING_WORDS = ("seconds", "per_second", "_ms", "_bytes", "system/", "stall", "utilization")
"""A metric whose name contains one of these depends on the machine's speed and is never compared after a resume."""


class MetricTable:
    """One series per metric, made when it is first logged.

    Args:
        directions: {metric name: "min" or "max"} if the name does not say.
        timing: names of further metrics that depend on speed.
    """

    def __init__(self, directions: Mapping[str, str], timing: Iterable[str]):
        self.by_name: dict[str, MetricSeries] = {}
        self._directions, self._timing = dict(directions), frozenset(timing)

    def series(self, name: str) -> MetricSeries:
        """The series of a metric.

        Raises:
            TrackingError: the name is not text.
        """
        return self.by_name.get(name) or self._new(name)

    def statistics(self, name: str) -> MetricStatistics:
        """The statistics of a metric; `epoch/` may be left out.

        Raises:
            TrackingError: no such metric was logged.
        """
        key = name if name in self.by_name else EPOCH_PREFIX + name
        if key not in self.by_name:
            known = sorted(self.by_name)
            raise TrackingError(
                f"unknown metric '{name}'; use {one_of(known)}"
                if known
                else f"unknown metric '{name}'; no metric was logged yet"
            )
        return self.by_name[key].snapshot()

    def summary(self) -> dict[str, Any]:
        """`best_metrics` {name: {value, step, epoch}}, `statistics` {name: {mean, ...}}, `totals`."""
        logged = {self._shown(name): series for name, series in self.by_name.items() if series.count}
        return {
            "best_metrics": {name: series.best.shown() for name, series in logged.items() if series.best is not None},
            "statistics": {name: asdict(series.snapshot()) for name, series in logged.items()},
            "totals": {"metrics": len(logged), "points": sum(series.count for series in logged.values())},
        }

    def _new(self, name: str) -> MetricSeries:
        checked_name("metric", name)
        timing = name in self._timing or any(word in name for word in TIMING_WORDS)
        series = self.by_name[name] = MetricSeries(
            name, timing=timing, mode=self._mode_of(name.removeprefix(EPOCH_PREFIX))
        )
        return series

    def _mode_of(self, name: str) -> str | None:
        if name in self._directions:
            return self._directions[name]
        try:
            return metric_mode(name)
        except ConfigurationError:
            return None

    def _shown(self, key: str) -> str:
        """`eval_loss` for `epoch/eval_loss`, unless there is an `eval_loss` by step too."""
        name = key.removeprefix(EPOCH_PREFIX)
        return key if name in self.by_name else name
