"""How a run ended, from what its trainer left.

Invariant: FINISHED needs a word of the trainer: its `end`, an `outcome` before it was cut short, or the exit code 0 of
its process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mltrack.journal import RunDirectory, RunInfo, records
from mltrack.relay.delivery_state import Progress


@dataclass(frozen=True)
class Verdict:
    """The status of a run whose trainer is over."""

    status: str
    """FINISHED, FAILED or KILLED."""
    time_ms: int
    killed: bool = False
    """Neither the trainer nor the exit of its process said that it was over."""
    failure: str | None = None
    """For the tag, where the trainer did not write one."""

    def shown(self, info: RunInfo) -> str:
        """The status in MLflow. `mlflow run` and a user's own run judge by the end of the process; the former knows
        FINISHED and FAILED alone.
        """
        others = info.under_mlflow_run or not info.owns_status
        return (
            "FAILED" if (others and self.killed) or (info.under_mlflow_run and self.status == "KILLED") else self.status
        )


def verdict_on(progress: Progress, directory: RunDirectory) -> Verdict:
    """How the run ended whose journal is delivered up to its end, or whose trainer is gone."""
    if progress.end is not None:
        return Verdict(progress.end["status"], progress.end["time_ms"])
    exit_code = directory.read_exit_code()
    if exit_code is None and progress.outcome is not None:
        return Verdict(progress.outcome["status"], progress.outcome["time_ms"], killed=True)
    if exit_code is None:
        return Verdict("FAILED", records.now_ms(), killed=True, failure="the trainer ended without recording an end")
    if exit_code:
        return Verdict(
            "FAILED",
            records.now_ms(),
            failure=f"the process ended with exit code {exit_code}, and nothing had closed its tracker",
        )
    return Verdict("FINISHED", records.now_ms())


def closing_tags(progress: Progress, failure: str | None, damaged: Sequence[tuple[int, int]]) -> dict[str, str]:
    """What the run's tags say of its delivery once it is over.

    Args:
        failure: of the verdict, where this delivery ends the run.
        damaged: (first, last) bytes of the journal that hold no records.
    """
    ranges = ", ".join(f"bytes {start}-{stop}" for start, stop in damaged)
    return {
        **({"mltrack.failure": failure} if failure is not None else {}),
        **({"mltrack.infinite_values": "; ".join(progress.infinite)} if progress.infinite else {}),
        **({"mltrack.renamed": progress.renamed_json()} if progress.renamed else {}),
        **({"mltrack.journal_damage": ranges} if damaged else {}),
    }
