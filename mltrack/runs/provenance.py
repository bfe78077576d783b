"""The provenance of a run: the code's commit, and the earlier run that it continues."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mltrack.config import TrainModelRequest, checked_options, options_of
from mltrack.data.requested import EarlierLabels
from mltrack.data.special_tokens import was_read_as_text
from mltrack.errors import ConfigurationError, printable
from mltrack.journal import (
    JournalInUse,
    JournalLock,
    RunDirectory,
    find_run_directories,
    find_run_directory,
    known_runs,
    own_run_directories,
    read_json,
)
from mltrack.journal.run_index import only_own
from mltrack.records.readers import every_file
from mltrack.relay import Life, TrainedElsewhere, has_ended, refuse_trained_elsewhere, tracking_uri_of, trainer_of
from mltrack.runs.remote_run import UnknownRunError, fetch_run, fetch_started_run, set_aside_if_outdated

_NAMED = ("model_name", "model_revision", "dataset_path", "validation_path")
"""Inherited options that are reported before they are used."""

_TRAINED_HERE: set[str] = set()
"""MLflow runs that a training of this process has used."""


def git_facts() -> dict[str, str]:
    """MLflow's own tags for the program, the user and the working directory's commit, if it has one."""
    tags = {
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }
    found = (
        subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if _has_git()
        else None
    )
    if found is not None and found.returncode == 0:
        tags["mlflow.source.git.commit"] = found.stdout.strip()
    return tags


def is_taken(run_id: str, output_dir: str) -> bool:
    """True if the run belongs to an earlier training: of this process, or of another one if `mlflow.start_run` has
    reopened it.
    """
    reopened = "MLFLOW_RUN_ID" not in os.environ and RunDirectory(Path(output_dir).absolute() / run_id).journal.exists()
    return run_id in _TRAINED_HERE or reopened


def take(run_id: str | None) -> None:
    """Note that a training of this process uses the run."""
    if run_id is not None:
        _TRAINED_HERE.add(run_id)


class TakenOver(NamedTuple):
    """The run directory that a request continues or forks."""

    directory: RunDirectory
    lock: JournalLock | None
    """None for a fork, which does not change it."""


def find_resumed(request: TrainModelRequest, notice: Callable[[str], None] = lambda line: None) -> TakenOver | None:
    """The run directory that the request continues, or None; if it is missing or outdated, it is rebuilt from MLflow.

    A directory that is continued is locked before anything else.

    Raises:
        ConfigurationError: the named run does not exist, or is being trained.
        TrackingError: MLflow cannot be reached, and the run is not here.
    """
    wanted = request.resume
    if wanted in ("auto", "never"):
        run_id = os.environ.get("MLFLOW_RUN_ID")
        if run_id is None or is_taken(run_id, request.output_dir):
            return None
        found = find_run_directory(request.output_dir, run_id)
        if wanted == "never":
            if found is not None and found.journal.exists():
                raise ConfigurationError(
                    f"resume=never does not work for run {run_id}, which {found.path} already records; use resume=auto"
                    " or another run"
                )
            return None
        if found is None and not request.offline:
            found = fetch_started_run(run_id, request.tracking_uri, request.output_dir, notice=notice)
        resumed = None if found is None else _taken_over(found, request, notice)
        if resumed is None:
            return None
        if has_checkpoint(resumed.directory):
            notice(f"MLFLOW_RUN_ID names run {run_id}, which has a checkpoint here: it is resumed")
            return resumed
        if resumed.lock is not None:
            resumed.lock.release()
        return None
    if wanted == "latest":
        newest_first = reversed(own_run_directories(request.output_dir))
        newest = next((one for one in newest_first if has_checkpoint(one)), None)
        if newest is None:
            raise ConfigurationError(
                f"resume=latest: no run in {Path(request.output_dir).absolute()} has a checkpoint; train first,"
                " name the folder with --output-dir, or give a run id"
            )
        return _taken_over(newest, request, notice)
    found = find_run_directory(request.output_dir, wanted)
    if found is not None:
        return _taken_over(found, request, notice)
    try:
        if request.offline:
            raise UnknownRunError("offline=true does not look it up in MLflow")
        return _taken_over(
            fetch_run(wanted, request.tracking_uri, request.output_dir, fork=request.fork, notice=notice),
            request,
            notice,
        )
    except UnknownRunError as error:
        known = ", ".join(one.path.name for one in find_run_directories(request.output_dir)[-5:]) or "none"
        here = f"is no run in {Path(request.output_dir).absolute()} (runs there: {known})"
        raise ConfigurationError(f"resume: '{wanted}' {here}; {error}") from error


def _taken_over(found: RunDirectory, request: TrainModelRequest, notice: Callable[[str], None]) -> TakenOver:
    """`found`, locked; or the run as MLflow holds it if it was resumed elsewhere since."""
    found.refuse_foreign()
    if request.fork:
        return TakenOver(found, None)
    lock = take_over(found, force=request.force, notice=notice)
    run_id, uri = found.read_run().run_id, tracking_uri_of(found, request.tracking_uri)
    try:
        if run_id is None or request.offline or not set_aside_if_outdated(found, uri):
            return TakenOver(found, lock)
    except BaseException:
        lock.release()
        raise
    lock.release()
    notice(f"run {run_id} was resumed elsewhere since {found.path} was written")
    fetched = fetch_run(run_id, uri, found.path.parent, notice=notice)
    return TakenOver(fetched, take_over(fetched, force=request.force, notice=notice))


def take_over(
    directory: RunDirectory, *, force: bool = False, notice: Callable[[str], None] = lambda line: None
) -> JournalLock:
    """The lock of a run directory whose trainer has ended.

    Args:
        directory: created if it does not exist.
        force: continue although run.json names a process but no host.
        notice: called with a line for the user while a trainer on another machine is watched.

    Raises:
        ConfigurationError: its trainer is alive, or that cannot be known.
    """
    name, recorded = directory.path.name, directory.run_file.exists()
    try:
        lock = JournalLock(directory.journal)
    except JournalInUse:
        raise _being_trained(name, trainer_of(directory).place if recorded else "another process") from None
    try:
        if recorded:
            _refuse_living(directory, force, notice)
    except BaseException:
        lock.release()
        raise
    return lock


def _refuse_living(directory: RunDirectory, force: bool, notice: Callable[[str], None]) -> None:
    name, trainer = directory.path.name, trainer_of(directory)
    if trainer.life() is Life.ALIVE:
        if trainer.pid == os.getpid():  # only here: the same id in another container is another process
            return
        raise _being_trained(name, trainer.place)
    try:
        refuse_trained_elsewhere(directory, notice)
    except TrainedElsewhere:
        raise _being_trained(name, trainer.place) from None
    if trainer.pid is not None and trainer.machine is None and not force and not has_ended(directory):
        raise ConfigurationError(
            f"cannot resume {name}: its run.json names no host, so a trainer on another machine may be alive; if none"
            " is, use --force true"
        )


def _being_trained(name: str, trainer: str) -> ConfigurationError:
    return ConfigurationError(f"cannot resume {name}: {trainer} is training it; wait until it has ended, or use --fork")


def undelivered(output_dir: Path | str) -> list[RunDirectory]:
    """Runs of dead trainers in this folder whose delivery is not complete.

    Not those that are offline on purpose, or that a delivery found resumed elsewhere or deleted."""
    unsettled = [
        RunDirectory(Path(output_dir).absolute() / run.name) for run in known_runs(output_dir) if not run.settled
    ]
    return [directory for directory in only_own(unsettled) if trainer_of(directory).life() is not Life.ALIVE]


def has_checkpoint(directory: RunDirectory) -> bool:
    """True if at least one checkpoint is complete."""
    return any(
        not path.parent.name.startswith(".") for path in directory.checkpoints.glob("*/metadata.json")
    )  # .writing-* was left by a killed writer


def saved_options(
    resumed: RunDirectory, request: TrainModelRequest, notice: Callable[[str], None] = lambda line: None
) -> TrainModelRequest:
    """The resumed run's options, except those that this request sets to other values than the defaults.

    Args:
        resumed: its config.json may come from MLflow, where others can write.
        request: what was typed.
        notice: called with a line on the inherited model and data.

    Raises:
        ConfigurationError: the run has no config.json, or a value in it is invalid.
    """
    content, where = read_json(resumed.path / "config.json"), f"config.json of run {resumed.path.name}"
    if content is None:
        raise ConfigurationError(
            f"cannot resume: {where} is missing or not a JSON object; resume a run of `mltrack train`"
        )
    saved = checked_options(content, where)
    values = request.options() | {"tracking_uri": request.tracking_uri}
    options = options_of(saved.get("task", request.task))
    for name in (
        "dataset_path",
        "validation_path",
    ):  # 0.1 took every file of a folder; later versions record which they take
        if (path := saved.get(name)) is not None:
            saved[name] = every_file(path)
            values[name] = saved[name] if values[name] == path else values[name]
    inherited = {
        name
        for name in saved
        if options[name].inherited
        and name not in request.as_typed
        and values.get(name, options[name].default) == options[name].default
    }
    if "model_name" not in inherited and values["model_name"] != saved.get("model_name"):
        inherited.discard("model_revision")  # it belongs to another model
    values |= {name: saved[name] for name in inherited}
    if named := [f"{name}={values[name]}" for name in _NAMED if name in inherited and values[name] is not None]:
        notice(printable(f"from {where}: {', '.join(named)}"))
    if saved.get("trust_remote_code") and not request.trust_remote_code:
        notice(
            f"{where} says trust_remote_code=true, which is not inherited; if you trust the model's code, add"
            " --trust-remote-code true"
        )
    return TrainModelRequest.of(values, as_typed=request.as_typed)


def pinned_revision(request: TrainModelRequest, resumed: RunDirectory | None) -> str | None:
    """The revision to load: for a resumed run its original commit, unless the request names another one."""
    saved = (read_json(resumed.path / "config.json") or {}) if resumed is not None else {}
    commit = saved.get("model_commit")
    is_same = all(saved.get(name) == getattr(request, name) for name in ("model_name", "model_revision"))
    return commit if is_same and isinstance(commit, str) else request.model_revision


def earlier_labels(resumed: RunDirectory | None) -> EarlierLabels | None:
    """How the resumed run read its labels: 0.1 did not know the class names of a Parquet file."""
    if resumed is None:
        return None
    newest = sorted(resumed.checkpoints.glob("step-*/config.json"))[-1:]
    classes = [str(label) for file in newest for label in (read_json(file) or {}).get("label2id") or {}]
    return EarlierLabels(classes, bool((read_json(resumed.path / "config.json") or {}).get("class_names")))


def reads_as_tokens(resumed: RunDirectory | None, notice: Callable[[str], None]) -> bool:
    """Whether special tokens in a text are tokens in the resumed run, as in 0.1; a notice says so."""
    if resumed is None or was_read_as_text(resumed.checkpoints):
        return False
    notice("special tokens in a text are read as tokens, as this run began; a new run reads them as text")
    return True


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _has_git() -> bool:
    return any((Path(folder) / "git").exists() for folder in os.environ.get("PATH", "").split(os.pathsep))
