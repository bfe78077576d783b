"""How a run ended, from its trainer's records.

Invariant: FINISHED needs evidence of the trainer: its `end`, an `outcome` before it was killed, or its process's exit
code 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mltrack.journal import RunDirectory, RunInfo, records
from mltrack.relay.delivery_state import Progress


@dataclass(frozen=True)
class Verdict:
    """The status of a run whose trainer has ended."""

    status: str
    """FINISHED, FAILED or KILLED."""
    time_ms: int
    killed: bool = False
    """Neither the trainer nor its process's exit code gave the end."""
    failure: str | None = None
    """For the tag, if the trainer did not write one."""

    def shown(self, info: RunInfo) -> str:
        """The status in MLflow. `mlflow run` and a user's own run go by the end of the process; the former only knows
        FINISHED and FAILED.
        """
        others = info.under_mlflow_run or not info.owns_status
        return (
            "FAILED" if (others and self.killed) or (info.under_mlflow_run and self.status == "KILLED") else self.status
        )


def verdict_on(progress: Progress, directory: RunDirectory) -> Verdict:
    """How the run ended, if its journal is delivered to its end or its trainer is gone."""
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
            failure=f"the process ended with exit code {exit_code} without closing its tracker",
        )
    return Verdict("FINISHED", records.now_ms())


def closing_tags(progress: Progress, failure: str | None, damaged: Sequence[tuple[int, int]]) -> dict[str, str]:
    """Tags about the delivery at the run's end.

    Args:
        failure: of the verdict, if this delivery ends the run.
        damaged: (first, last) bytes of the journal that hold no records.
    """
    ranges = ", ".join(f"bytes {start}-{stop}" for start, stop in damaged)
    return {
        **({"mltrack.failure": failure} if failure is not None else {}),
        **({"mltrack.infinite_values": "; ".join(progress.infinite)} if progress.infinite else {}),
        **({"mltrack.renamed": progress.renamed_json()} if progress.renamed else {}),
        **({"mltrack.journal_damage": ranges} if damaged else {}),
    }
