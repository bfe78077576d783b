"""The checkpoints that a run keeps, from the records of its journal: a whole set, or the changes since.

Invariant: the records of one journal, applied in order, give the set that the trainer had. If one was damaged,
`has_gap` is true until the next whole set, and a checkpoint that is missing from the set may still be kept.

    kept = RetainedCheckpoints()
    record = kept.record_of(staying, best_step)       # its size does not grow with the number of checkpoints
    kept = kept.after(record)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mltrack.journal import records

SMALL = 20
"""A set of at most this many checkpoints is always written whole."""

Checkpoint = Mapping[str, Any]


@dataclass(frozen=True)
class RetainedCheckpoints:
    """The set after some record."""

    kept: dict[int, Checkpoint] = field(default_factory=dict)
    """By step, in its order."""
    best_step: int | None = None
    whole_ms: int | None = None
    """`time_ms` of the last whole set; None before the first."""
    whole_size: int = 0
    """Checkpoints in it."""
    num_changes: int = 0
    """Records of changes since then."""
    has_gap: bool = False

    def record_of(self, staying: Sequence[Checkpoint], best_step: int | None) -> records.Record:
        """The record that turns this set into another one. It is a whole set if that is small, after as many changes as
        the last whole set had checkpoints, or if nothing differs.
        """
        steps = {one["step"] for one in staying}
        changed = [one for one in staying if _identity(self.kept.get(one["step"])) != _identity(one)]
        gone = [step for step in self.kept if step not in steps]
        is_repeated = not (changed or gone) and best_step == self.best_step
        if self.whole_ms is None or len(staying) <= SMALL or self.num_changes >= self.whole_size or is_repeated:
            return records.checkpoints(staying, best_step)
        return records.checkpoints_changed(
            changed, gone, best_step, whole_ms=self.whole_ms, number=self.num_changes + 1
        )

    def after(self, record: records.Record) -> RetainedCheckpoints:
        """The set after the next record of the journal, of any type."""
        if record["type"] == "checkpoints":
            return RetainedCheckpoints(
                _by_step(record["kept"]), record["best_step"], record["time_ms"], len(record["kept"])
            )
        if record["type"] != "checkpoints_changed":
            return self
        gone = set(record["gone"])
        staying = [one for step, one in self.kept.items() if step not in gone]
        follows = (record["whole_ms"], record["number"]) == (self.whole_ms, self.num_changes + 1)
        return replace(
            self,
            kept=_by_step([*staying, *record["kept"]]),
            best_step=record["best_step"],
            whole_ms=record["whole_ms"],
            num_changes=record["number"],
            has_gap=self.has_gap or not follows,
        )


def _by_step(checkpoints: Sequence[Checkpoint]) -> dict[int, Checkpoint]:
    return dict(sorted({one["step"]: one for one in checkpoints}.items()))


def _identity(checkpoint: Checkpoint | None) -> tuple[Any, ...] | None:
    """What may change in a kept checkpoint: when it was saved, why it is kept, and the metric that ranks it."""
    if checkpoint is None:
        return None
    return checkpoint.get("created_ms"), list(checkpoint["reasons"]), checkpoint.get("metric_name")
