"""Whether the trainer of a run is alive: by its process if that can be looked up from here, else by its heartbeat.

Invariant: a trainer on another machine or in another container is never considered dead because of its process id; it
is dead if its heartbeat does not change for `STANDS_STILL_S` of this process's own clock, whatever two machines' clocks
say."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from mltrack.errors import TrackingError
from mltrack.journal import JournalReader, Machine, RunDirectory, RunInfo, heartbeat
from mltrack.relay.relay_process import WatchedProcess

HOST_TAG, PID_TAG, STARTED_TAG = "mltrack.host", "mltrack.trainer_pid", "mltrack.trainer_started"
BOOT_TAG, NAMESPACE_TAG = "mltrack.trainer_boot_id", "mltrack.trainer_pid_namespace"
HEARTBEAT_TAG = "mltrack.trainer_heartbeat"
LOOK_AGAIN_S = 1.0

Notice = Callable[[str], None]


class Life(Enum):
    """What is known about a trainer without waiting."""

    ALIVE = "alive"
    GONE = "gone"
    ELSEWHERE = "elsewhere"
    """Its process cannot be looked up from here: only its heartbeat shows."""


@dataclass(frozen=True)
class Trainer:
    """The process that trains a run, as recorded in run.json or the MLflow run's tags."""

    pid: int | None
    started: float | None
    """Creation time of the process, seconds since 1970."""
    machine: Machine | None
    """None if no host is recorded, as in run directories of mltrack 0.1."""

    @classmethod
    def of_run(cls, info: RunInfo) -> Trainer:
        """The trainer in run.json."""
        machine = (
            Machine(info.trainer_host, info.trainer_boot_id, info.trainer_pid_namespace) if info.trainer_host else None
        )
        return cls(info.trainer_pid, info.trainer_started, machine)

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> Trainer:
        """The trainer in the tags; without valid numbers it has no process."""
        host = tags.get(HOST_TAG)
        machine = Machine(host, tags.get(BOOT_TAG, ""), tags.get(NAMESPACE_TAG, "")) if host else None
        try:
            return cls(int(tags[PID_TAG]), float(tags[STARTED_TAG]), machine)
        except (KeyError, ValueError):
            return cls(None, None, machine)

    @property
    def tags(self) -> dict[str, str]:
        """Tags that record it."""
        assert self.machine is not None
        return {
            HOST_TAG: self.machine.host,
            BOOT_TAG: self.machine.boot_id,
            NAMESPACE_TAG: self.machine.pid_namespace,
            PID_TAG: str(self.pid),
            STARTED_TAG: str(self.started),
        }

    @property
    def place(self) -> str:
        """For messages: its process and host."""
        return f"process {self.pid}" + (f" on {self.machine.host}" if self.machine is not None else "")

    def process(self) -> WatchedProcess:
        """Its process if it can be looked up from here; else one that is gone."""
        here = self.machine is None or Machine.here().sees(self.machine)
        return WatchedProcess(self.pid if here else None, self.started)

    def life(self) -> Life:
        """Its state, without waiting."""
        here = Machine.here()
        if self.pid is None or (self.machine is not None and here.is_later_boot_of(self.machine)):
            return Life.GONE
        if self.machine is not None and not here.sees(self.machine):
            return Life.ELSEWHERE
        return Life.ALIVE if self.process().is_alive() else Life.GONE


class TrainedElsewhere(TrackingError):
    """A trainer that cannot be looked up from here has a changing heartbeat.

    Args:
        name: of the run, or its directory.
        trainer: of the run.
    """

    def __init__(self, name: object, trainer: Trainer):
        super().__init__(f"{name} is being trained by {trainer.place}; wait until it has ended, or end it there")


def trainer_of(directory: RunDirectory) -> Trainer:
    """The trainer that run.json names now; for mltrack 0.1, whose run.json has no host, the one in the journal."""
    trainer = Trainer.of_run(directory.read_run())
    if trainer.machine is None and trainer.pid is not None and directory.journal.exists():
        for record in JournalReader(directory.journal).read_new():
            if record["type"] == "tags" and record["values"].get(STARTED_TAG) == str(trainer.started):
                return Trainer.of_tags(record["values"])
    return trainer


def has_ended(directory: RunDirectory) -> bool:
    """True if the journal's newest trainer has recorded its end."""
    ended = False
    for record in JournalReader(directory.journal).read_new():
        if record["type"] == "end":
            ended = True
        elif record["type"] == "resumed" or (record["type"] == "tags" and STARTED_TAG in record["values"]):
            ended = False
    return ended


def refuse_trained_elsewhere(directory: RunDirectory, notice: Notice = lambda line: None) -> None:
    """Check that no trainer of another machine or container writes this directory; may take `STANDS_STILL_S`.

    Raises:
        TrainedElsewhere: one does.
    """
    trainer = trainer_of(directory)
    if trainer.life() is not Life.ELSEWHERE or has_ended(directory):
        return
    notice(
        f"{directory.path.name}: checking for {heartbeat.STANDS_STILL_S:.0f} s whether {trainer.place} still trains it"
    )
    if moves(lambda: _signs_in(directory)):
        raise TrainedElsewhere(directory.path, trainer)


def moves(signs: Callable[[], object], look_again_s: float = LOOK_AGAIN_S) -> bool:
    """True as soon as the result of `signs` changes; False if it does not within `STANDS_STILL_S`."""
    first, deadline = signs(), time.monotonic() + heartbeat.STANDS_STILL_S
    while time.monotonic() < deadline:
        time.sleep(min(look_again_s, max(0.0, deadline - time.monotonic())))
        if signs() != first:
            return True
    return False


def _signs_in(directory: RunDirectory) -> object:
    """Heartbeat and size of the journal: a trainer of mltrack 0.1 has no heartbeat."""
    try:
        beat = directory.heartbeat.read_text(encoding="ascii")
    except (OSError, ValueError):
        beat = ""
    return beat, directory.journal.stat().st_size if directory.journal.exists() else 0
