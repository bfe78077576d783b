"""Ends runs that MLflow calls RUNNING although their trainers are dead.

Invariant: only runs of mltrack are changed, and only if their trainer is known to be dead (by this machine's run
directory, or by the host and process in the run's tags) and no process is delivering them. If a run was resumed
elsewhere, this directory does not decide its status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mltrack.errors import MltrackError
from mltrack.journal import RunDirectory, known_runs
from mltrack.journal.run_index import only_own
from mltrack.relay.delivery_state import Progress
from mltrack.relay.liveness import HEARTBEAT_TAG, Life, TrainedElsewhere, Trainer, has_ended, moves, trainer_of
from mltrack.relay.sync import DeliveredElsewhere, delivering_process, sync
from mltrack.relay.trainers import OwnTrainers, Settled
from mltrack.store import Store, StoreUnavailable, runs

ASK_AGAIN_S = 5.0
"""Between two reads of the runs' heartbeats."""


@dataclass(frozen=True)
class Orphan:
    """A run that MLflow calls RUNNING without a trainer, or with one that cannot be looked up from here."""

    run_id: str
    directory: RunDirectory | None
    """None if it is not here."""
    trainer: Trainer
    is_certain: bool
    """False if only the heartbeat can show: the trainer is on another machine or in another container."""


def orphans(store: Store, output_dir: Path | str) -> list[Orphan]:
    """The runs without a trainer, and those that only their heartbeat can decide."""
    root = Path(output_dir).absolute()
    directories = {run.run_id: RunDirectory(root / run.name) for run in known_runs(root)}
    found = []
    for run in runs.search_running_runs(store):
        directory = directories.get(run.run_id)
        if directory is not None and not only_own([directory]):
            continue
        if directory is not None and OwnTrainers(directory).fell_behind(
            run, Progress.read(directory, store.tracking_uri).offset
        ):
            directory = None
        trainer = Trainer.of_tags(run.tags) if directory is None else trainer_of(directory)
        life = Life.GONE if directory is not None and has_ended(directory) else trainer.life()
        if life is Life.ALIVE or (directory is not None and delivering_process(directory) is not None):
            continue
        if directory is None and (trainer.pid is None or (life is Life.ELSEWHERE and HEARTBEAT_TAG not in run.tags)):
            continue  # cannot be known
        found.append(Orphan(run.run_id, directory, trainer, life is Life.GONE))
    return found


def stand_still(store: Store, found: Sequence[Orphan]) -> list[Orphan]:
    """`found` without those whose heartbeat changes in MLflow, all watched together; `reap` watches the run directories
    that are here.
    """
    uncertain = [one for one in found if not one.is_certain and one.directory is None]
    moved: set[str] = set()

    def beats() -> dict[str, str | None]:
        return {one.run_id: runs.get_run(store, one.run_id).tags.get(HEARTBEAT_TAG) for one in uncertain}

    first = beats() if uncertain else {}

    def all_move() -> bool:
        moved.update(run_id for run_id, beat in beats().items() if beat != first[run_id])
        return len(moved) == len(uncertain)

    if uncertain:
        moves(all_move, ASK_AGAIN_S)
    return [one for one in found if one.run_id not in moved]


def reap(store: Store, run_id: str, directory: RunDirectory | None) -> str:
    """Complete the delivery and set the run's status from its journal, FAILED without one. Returns that status.

    Raises:
        StoreUnavailable: the server does not answer.
        DeliveredElsewhere: another process has begun to deliver it, and will set the status.
        TrainedElsewhere: another machine or container trains it.
        Settled: it was resumed elsewhere or deleted.
    """
    if directory is not None:
        try:
            status = sync(directory, store.tracking_uri).status
            if status is not None:
                return status
            held = runs.get_run(store, run_id).status
            if held != "RUNNING":
                return held
        except (StoreUnavailable, DeliveredElsewhere, TrainedElsewhere, Settled):
            raise
        except MltrackError:
            pass  # the journal cannot be read: still set the status
    runs.set_tags(
        store, run_id, {"mltrack.status": "FAILED", "mltrack.failure": "the trainer ended without recording an end"}
    )
    runs.finish_run(store, run_id, "FAILED")
    return "FAILED"
