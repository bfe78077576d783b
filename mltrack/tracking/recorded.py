"""The values that a resumed run had already recorded: they are compared, not recorded again.

Invariant: if a step is computed again, its first value is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from mltrack.journal import JournalReader, records
from mltrack.tracking.export import entries_of
from mltrack.tracking.statistics import MetricSeries

RARE = 1000
"""A metric with at most this many points is kept whole in memory after a resume."""
SUPERSEDED_TAG = "mltrack.superseded_steps"
"""Tag of a run that finished after fewer steps than an earlier trainer had recorded: MLflow keeps those points, which
are not this training's.
"""
Points = list[tuple[MetricSeries, float]]


class Recorded:
    """The values from a checkpoint on, and every rare metric; empty if nothing was resumed."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], float] = {}
        """By metric and step; each is removed when it is computed again."""
        self._newest_step = 0
        """The last step since the resume."""
        self._drifted: set[str] = set()

    @classmethod
    def behind(cls, journal: Path, series: Mapping[str, MetricSeries], step: int, epoch: int) -> Recorded:
        """The journal's values after a checkpoint of this many steps and finished epochs."""
        found = cls()
        found._newest_step = step
        for record in JournalReader(journal).read_new():
            for entry in entries_of(record):
                behind = entry.step >= (epoch if entry.name.startswith(records.EPOCH_PREFIX) else step)
                if behind or series[entry.name].count <= RARE:
                    found.values.setdefault((entry.name, entry.step), entry.value)
        return found

    def leave_out(self, step: int, points: Points) -> tuple[Points, dict[str, tuple[float, float]]]:
        """(the new points, {name: (first, later)} of deterministic values that differed)."""
        self._newest_step = max(self._newest_step, step)
        new: Points = []
        differing: dict[str, tuple[float, float]] = {}
        for series, later in points:
            first = self.values.pop((series.name, step), None)
            if first is None:
                new.append((series, later))
            elif not series.timing and first != later and not (math.isnan(first) and math.isnan(later)):
                differing[series.name] = (first, later)
        self._drifted.update(differing)
        return new, differing

    def tags(self, *, finished: bool) -> dict[str, str]:
        """Tags for the end: metrics that differed, and steps that a finished training never took."""
        superseded = [
            step for name, step in self.values if step > self._newest_step and not name.startswith(records.EPOCH_PREFIX)
        ]
        return {
            **({"mltrack.resume_drift": ", ".join(sorted(self._drifted))} if self._drifted else {}),
            **({SUPERSEDED_TAG: f"{self._newest_step + 1}-{max(superseded)}"} if superseded and finished else {}),
        }
