"""Trainings that are killed with SIGKILL at random instants and resumed until they are done, and what is left of them.

Invariant: whatever is counted is read from disk and from MLflow's own store, against one run of the same job that was
never killed.

    with WarmProcess() as warm:
        storm = Storm(small_job(folder), folder, warm, seed=0)
        tally = storm.run(kills=10)
        assert tally.points_lost == 0 and tally.identical == tally.runs
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from small_job import SmallJob
from warm_process import Forked, WarmProcess

TIMING = ("seconds", "per_second", "_ms", "_bytes", "system/")
"""A metric with one of these in its name depends on the machine's speed; the bytes of a checkpoint do too, as there are
times in it.
"""
ANYWHERE = 0.15
"""Share of the kills that may also fall before the loop."""
RELAY_TOO = 0.3
"""Share of the kills that take the relay with them, as the end of a container does."""
DELIVERED_WITHIN_S = 120.0
"""How long after the end of its trainer a run may be incomplete in MLflow before that is a finding."""
WATCH = """
import os
from torch.nn.modules.module import register_module_forward_pre_hook
from mltrack.training.trainer import AdvancedTrainer
_watch = os.open("phase", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
_unwatched = AdvancedTrainer.train
def _watched(self):
    register_module_forward_pre_hook(lambda module, given: os.pwrite(_watch, b"T" if module.training else b"E", 0) and None)
    return _unwatched(self)
AdvancedTrainer.train = _watched
"""
"""Says in the file `phase` whether the last module that ran in the loop was training or evaluating; before it a model
may be probed.
"""

Points = dict[str, list[tuple[int, float]]]
"""{metric: (step, value) as MLflow's history has them}"""


@dataclass
class Outcome:
    """Of a run that has ended."""

    state: Mapping[str, Any]
    """The latest checkpoint, without what the clock decides."""
    kept: list[tuple[int, float | None]]
    """Step and metric of the checkpoints that stayed."""
    best: Mapping[str, Any]
    """Weights of the model folder."""
    points: Points
    status: str
    tags: Mapping[str, str]


@dataclass
class Tally:
    """What the storm did and found."""

    kills: dict[str, int] = field(default_factory=dict)
    """{what the process was doing: kills}"""
    relay_kills: int = 0
    resumes: int = 0
    from_nothing: int = 0
    """Starts again before the first checkpoint."""
    runs: int = 0
    identical: int = 0
    """Runs whose last checkpoint equals the reference's: weights, optimizer, schedule, scaler, generators, early
    stopping; the best model too.
    """
    same_best: int = 0
    """Runs that kept the same checkpoints."""
    points: int = 0
    """Deterministic points that the reference has, times the runs."""
    points_lost: int = 0
    points_doubled: int = 0
    points_different: int = 0
    torn: int = 0
    """Checkpoint folders under their final name that are incomplete or whose bytes differ from their hashes, over all
    kills.
    """
    unloadable: int = 0
    """Kills after which the newest checkpoint did not load."""
    leftovers: list[str] = field(default_factory=list)
    """Temporary names that were still there after the next start."""
    problems: list[str] = field(default_factory=list)

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())


class Storm:
    """Args:
    job: what is trained.
    folder: gets the database, the run directories and the processes' streams.
    warm: forks the processes.
    seed: decides the instants.
    offline: no MLflow and no relay; points and statuses are read from the journals.
    """

    def __init__(self, job: SmallJob, folder: Path, warm: WarmProcess, seed: int, *, offline: bool = False):
        self.job, self.folder, self.warm, self._offline = job, folder, warm, offline
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.tally = Tally()
        self._random = random.Random(seed)
        started = time.monotonic()
        process, directory = self.start(self.new_run())
        process.until(self.has_begun, "the first step of the run that is never killed")
        self._startup_s = time.monotonic() - started
        self._finish(process)
        self.reference = self._outcome(directory)
        self._loop_s = _seconds_in_the_loop(directory)

    def run(self, kills: int, *, window: float = 0.5, on_progress: Any = None) -> Tally:
        """Kill so many times.

        Args:
            window: longest life in the loop, as a share of the whole loop's time.
            on_progress: called with the tally after each kill.
        """
        tally = self.tally
        while tally.num_kills < kills:
            try:
                self._one_run(kills, window, on_progress)
            except KeyboardInterrupt:
                break  # what was found so far is worth a table
        return tally

    def _one_run(self, kills: int, window: float, on_progress: Any) -> None:
        """A run that is killed again and again, and then left alone until it is done."""
        tally = self.tally
        run_id = self.new_run()
        directory = self.directory(run_id)
        while True:
            killed = tally.num_kills
            resumed = _has_checkpoint(directory)
            process, _ = self.start(run_id)
            if killed < kills and not self._has_all_steps(directory):
                self._kill_at_random(process, directory, window)
            else:
                self._finish(process)
            if tally.num_kills == killed:
                break
            tally.resumes += resumed
            tally.from_nothing += not resumed
            self.inspect(directory)
            if on_progress is not None:
                on_progress(tally)
        tally.resumes += resumed
        if process.wait() != 0:
            raise RuntimeError(f"exit code {process.exit_code}: {process.errors[-2000:]}")
        self.compare(directory)

    def has_begun(self) -> bool:
        """True once the process that was started last computes its first step."""
        watched = self.folder / "phase"
        return watched.exists() and watched.stat().st_size > 0

    # -- one life

    def new_run(self) -> str:
        """An MLflow run that nobody has trained yet."""
        if self._offline:
            return f"{self._random.getrandbits(128):032x}"
        from mlflow import MlflowClient

        return str(MlflowClient(self.uri).create_run("0").info.run_id)

    def directory(self, run_id: str) -> Path:
        """Where the run is kept."""
        return self.folder / "mltrack-runs" / run_id

    def start(self, run_id: str, prelude: str = "") -> tuple[Forked, Path]:
        """A process that trains the run from where it stands."""
        words = self.job.words(output="json", offline=str(self._offline).lower())
        (self.folder / "phase").unlink(missing_ok=True)
        process = self.warm.start(
            *words, cwd=self.folder, prelude=WATCH + prelude, MLFLOW_RUN_ID=run_id, MLFLOW_TRACKING_URI=self.uri
        )
        return process, self.directory(run_id)

    def _finish(self, process: Forked) -> None:
        if process.wait(180) != 0:
            raise RuntimeError(f"exit code {process.exit_code}: {process.errors[-2000:]}")

    def _kill_at_random(self, process: Forked, directory: Path, window: float) -> None:
        if self._random.random() < ANYWHERE:
            delay_s = self._random.uniform(0, self._startup_s + window * self._loop_s)
        else:
            process.until(self.has_begun, "the first step")
            self.look_for_leftovers(process.pid, directory)
            delay_s = self._random.uniform(0, window * self._loop_s)
        takes_relay = self._random.random() < RELAY_TOO
        if process.ended.wait(delay_s):
            return
        process.send(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            return  # it ended by itself in the meantime
        phase = self._phase(directory)
        self.tally.kills[phase] = self.tally.kills.get(phase, 0) + 1
        if takes_relay and (relay := _relay_of(directory)):
            with suppress(ProcessLookupError):
                os.kill(relay, signal.SIGKILL)
                self.tally.relay_kills += 1

    def _has_all_steps(self, directory: Path) -> bool:
        return (directory / "checkpoints" / f"step-{self.reference.state['step']:08d}" / "metadata.json").exists()

    def _phase(self, directory: Path) -> str:
        if self._has_all_steps(directory):
            return "after the last step"
        if list((directory / "checkpoints").glob(".writing-*")):
            return "saving"
        watched = self.folder / "phase"
        return {"T": "training", "E": "evaluation"}.get(
            watched.read_text() if watched.exists() else "", "before the first step"
        )

    # -- what is found

    def inspect(self, directory: Path) -> None:
        """After a kill, before the next start."""
        from mltrack.checkpoints import CheckpointManager
        from mltrack.checkpoints import directory as checkpoint_directory

        folders = [path for path in (directory / "checkpoints").glob("step-*") if path.is_dir()]
        for path in folders:
            metadata = checkpoint_directory.read_metadata(path)
            self.tally.torn += metadata is None or bool(checkpoint_directory.verify(metadata))
        if folders:
            manager = CheckpointManager(
                directory / "checkpoints", run_id=directory.name, on_change=lambda *_: None, read_only=True
            )
            loaded, newest = manager.load_latest_checkpoint(), max(int(path.name.split("-")[1]) for path in folders)
            self.tally.unloadable += loaded is None or loaded["step"] != newest

    def look_for_leftovers(self, living: int, directory: Path) -> None:
        """What dead processes left under temporary names, once the next one trains; what the relay left is the next
        relay's to clean, at the end.
        """
        dead = [
            path
            for path in _hidden(directory)
            if not path.name.startswith((".relay", ".delivery.json."))
            and not _belongs_to_a_living_process(path, living)
        ]
        self.tally.leftovers += [str(path.relative_to(directory)) for path in dead if ".relay" not in path.parts]

    def _outcome(self, directory: Path) -> Outcome:
        from safetensors.torch import load_file

        from mltrack.checkpoints import CheckpointManager

        manager = CheckpointManager(
            directory / "checkpoints", run_id=directory.name, on_change=lambda *_: None, read_only=True
        )
        checkpoint = manager.load_latest_checkpoint()
        assert checkpoint is not None, directory
        if not self._offline:
            _await_delivery(directory)
        points, status, tags = _recorded(directory) if self._offline else _held_by_mlflow(self.uri, directory.name)
        return Outcome(
            state=_without_clock(checkpoint),
            kept=[(one.step, one.metric_value) for one in manager.list_checkpoints()],
            best=load_file(directory / "model" / "model.safetensors"),
            points={name: held for name, held in points.items() if not name.startswith("system/")},
            status=status,
            tags=tags,
        )

    def compare(self, directory: Path) -> None:
        """A finished run with the reference."""
        tally, reference, found = self.tally, self.reference, self._outcome(directory)
        tally.runs += 1
        tally.identical += equal(found.state, reference.state) and equal(found.best, reference.best)
        tally.same_best += found.kept == reference.kept
        if found.kept != reference.kept:
            tally.problems.append(f"{directory.name}: kept {found.kept}, the reference {reference.kept}")
        for held in found.points.values():
            tally.points_doubled += len(held) - len({step for step, _ in held})
        for name, wanted in reference.points.items():
            if any(word in name for word in TIMING):
                continue
            held_values = dict(found.points.get(name, []))
            tally.points += len(wanted)
            tally.points_lost += sum(step not in held_values for step, _ in wanted)
            tally.points_different += sum(held_values.get(step, value) != value for step, value in wanted)
        if found.status != "FINISHED" or found.tags.get("mltrack.delivery") != "complete":
            tally.problems.append(f"{directory.name}: {found.status}, delivery {found.tags.get('mltrack.delivery')}")
        if not self._offline and (versions := _versions(self.uri, directory.name)) != 1:
            tally.problems.append(f"{directory.name}: {versions} versions in the registry")
        for tag in (
            "mltrack.resume_drift",
            "mltrack.inexact_resume",
            "mltrack.refused",
            "mltrack.journal_damage",
            "mltrack.failure",
        ):
            if tag in found.tags:
                tally.problems.append(f"{directory.name}: {tag} = {found.tags[tag]}")
        tally.leftovers += [
            str(path.relative_to(directory))
            for path in directory.rglob(".*")
            if not _belongs_to_a_living_process(path, 0)
        ]


def _await_delivery(directory: Path) -> None:
    """Return when MLflow has everything of a run that has ended, which a busy machine leaves to the relay; in the end
    without it.
    """
    from mltrack.journal import RunDirectory

    held, deadline = RunDirectory(directory), time.monotonic() + DELIVERED_WITHIN_S
    while time.monotonic() < deadline:
        delivery = held.read_delivery()
        if delivery.get("complete") and delivery["offset"] >= held.journal.stat().st_size:
            return
        time.sleep(0.1)


def _held_by_mlflow(uri: str, run_id: str) -> tuple[Points, str, Mapping[str, str]]:
    from mlflow import MlflowClient

    api = MlflowClient(uri)
    run = api.get_run(run_id)
    points = {
        name: [(point.step, point.value) for point in api.get_metric_history(run_id, name)] for name in run.data.metrics
    }
    return points, run.info.status, run.data.tags


def _recorded(directory: Path) -> tuple[Points, str, Mapping[str, str]]:
    """The same from a journal; what a resumed run left behind of its failures is not a tag any more."""
    from mltrack.journal import read_journal

    points: Points = {}
    status, tags = "RUNNING", {"mltrack.delivery": "complete"}
    for record in read_journal(directory / "journal"):
        if record["type"] == "metrics":
            for name, value in {**record["values"], **record["timing"]}.items():
                points.setdefault(name, []).append((record["step"], value))
        elif record["type"] == "tags":
            tags.update(record["values"])
        elif record["type"] == "resumed":
            tags.pop("mltrack.failure", None)
        elif record["type"] == "end":
            status = record["status"]
    return points, status, tags


def _versions(uri: str, run_id: str) -> int:
    from mlflow import MlflowClient

    return len(MlflowClient(uri).search_model_versions(f"run_id='{run_id}'"))


def equal(one: Any, other: Any) -> bool:
    """`torch.equal` for tensors, `==` for the rest, through lists and dictionaries."""
    import torch

    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return (
            isinstance(one, torch.Tensor)
            and isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and torch.equal(one, other)
        )
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def _without_clock(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    extra = dict(checkpoint["extra_state"])
    extra["training"] = {name: value for name, value in extra["training"].items() if "seconds" not in name}
    names = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "step", "epoch")
    return {**{name: checkpoint[name] for name in names}, "extra_state": extra}


def _has_checkpoint(directory: Path) -> bool:
    return any(directory.glob("checkpoints/step-*/metadata.json"))


def _seconds_in_the_loop(directory: Path) -> float:
    from mltrack.journal import read_journal

    times = [
        record["time_ms"]
        for record in read_journal(directory / "journal")
        if record["type"] == "metrics" and record["step"] > 0
    ]
    return (max(times) - min(times)) / 1000


def _relay_of(directory: Path) -> int | None:
    """The process that delivers this directory; the lock file's number may be a dead one's."""
    with suppress(OSError, ValueError):
        pid = int((directory / "relay.lock").read_text())
        if str(directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def _hidden(directory: Path) -> list[Path]:
    """Everything below whose name starts with a dot; what a living process removes meanwhile is no error."""
    return [
        Path(parent, name)
        for parent, folders, files in os.walk(directory)
        for name in (*folders, *files)
        if name.startswith(".")
    ]


def _belongs_to_a_living_process(path: Path, living: int) -> bool:
    """True for a temporary name that ends in the number of a process that may be at it right now."""
    number = path.name.replace(".", "-").rpartition("-")[2]
    if not number.isdigit():
        return not path.exists()
    if int(number) == living:
        return True
    with suppress(OSError):
        return b"mltrack" in Path(f"/proc/{number}/cmdline").read_bytes()
    return not path.exists()
