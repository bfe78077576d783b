"""What a resumed run has recorded already: it is compared, not recorded again.

Invariant: of a step that is computed again the first value stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from mltrack.journal import JournalReader, records
from mltrack.tracking.export import entries_of
from mltrack.tracking.statistics import MetricSeries

RARE = 1000
"""A metric with no more points than this is kept whole in memory after a resume."""
SUPERSEDED_TAG = "mltrack.superseded_steps"
"""Tag of a run that finished after fewer steps than an earlier trainer of it had recorded: MLflow keeps those points,
which are not this training's.
"""
Points = list[tuple[MetricSeries, float]]


class Recorded:
    """The values from a checkpoint on, and every rare metric; empty where nothing was resumed."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], float] = {}
        """By metric and step; each is taken out when it is computed again."""
        self._newest_step = 0
        """The last step since the resume."""
        self._drifted: set[str] = set()

    @classmethod
    def behind(cls, journal: Path, series: Mapping[str, MetricSeries], step: int, epoch: int) -> Recorded:
        """What the journal holds behind a checkpoint of so many steps and finished epochs."""
        found = cls()
        found._newest_step = step
        for record in JournalReader(journal).read_new():
            for entry in entries_of(record):
                behind = entry.step >= (epoch if entry.name.startswith(records.EPOCH_PREFIX) else step)
                if behind or series[entry.name].count <= RARE:
                    found.values.setdefault((entry.name, entry.step), entry.value)
        return found

    def leave_out(self, step: int, points: Points) -> tuple[Points, dict[str, tuple[float, float]]]:
        """(the points that are new, {name: (first, later)} of deterministic values that came out otherwise)."""
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
        """What MLflow is told at the end: metrics that came out otherwise, and steps that a finished training never
        took.
        """
        superseded = [
            step for name, step in self.values if step > self._newest_step and not name.startswith(records.EPOCH_PREFIX)
        ]
        return {
            **({"mltrack.resume_drift": ", ".join(sorted(self._drifted))} if self._drifted else {}),
            **({SUPERSEDED_TAG: f"{self._newest_step + 1}-{max(superseded)}"} if superseded and finished else {}),
        }
