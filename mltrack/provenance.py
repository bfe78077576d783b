"""Where a run comes from: the code's commit, and the earlier run that it continues."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from mltrack.config import OPTIONS, TrainModelRequest
from mltrack.errors import ConfigurationError
from mltrack.journal import RunDirectory, find_run_directories, find_run_directory
from mltrack.relay import WatchedProcess, tracking_uri_of
from mltrack.remote_run import UnknownRunError, fetch_run, fetch_started_run, set_aside_if_outdated

NOT_INHERITED = {"resume", "exact", "new_run", "output_dir", "tracking_uri", "offline", "exit_wait", "debug", "output"}
"""Options that a resumed run takes from its own command line alone."""


def git_facts() -> dict[str, str]:
    """MLflow's own tags for the program, the user and the commit of the working directory, where it is one."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False) if _has_git() else None
    if found is not None and found.returncode == 0:
        tags["mlflow.source.git.commit"] = found.stdout.strip()
    return tags


def find_resumed(request: TrainModelRequest, notice: Callable[[str], None] = lambda line: None) -> RunDirectory | None:
    """The run directory that the request continues, or None; one that is not here, or is outdated, is made from what MLflow holds.

    Raises:
        ConfigurationError: the run that was named is not there.
        TrackingError: MLflow cannot be reached, and the run is not here.
    """
    wanted = request.resume
    if wanted == "never":
        run_id = os.environ.get("MLFLOW_RUN_ID")
        earlier = find_run_directory(request.output_dir, run_id) if run_id else None
        if earlier is not None and earlier.journal.exists():
            raise ConfigurationError(f"resume: seen 'never', but run {run_id} is recorded in {earlier.path} already; accepted: auto, or another run")
        return None
    if wanted == "auto":
        run_id = os.environ.get("MLFLOW_RUN_ID")
        found = find_run_directory(request.output_dir, run_id) if run_id else None
        if found is not None:
            found = _up_to_date(found, request, notice)
        elif run_id and not request.offline:
            found = fetch_started_run(run_id, request.tracking_uri, request.output_dir, notice=notice)
        return found if found is not None and has_checkpoint(found) else None
    if wanted == "latest":
        with_checkpoint = [one for one in find_run_directories(request.output_dir) if has_checkpoint(one)]
        if not with_checkpoint:
            raise ConfigurationError(f"resume: seen 'latest', but no run in {Path(request.output_dir).absolute()} has a checkpoint; accepted: never, a run id")
        return _up_to_date(with_checkpoint[-1], request, notice)
    found = find_run_directory(request.output_dir, wanted)
    if found is not None:
        return _up_to_date(found, request, notice)
    try:
        if request.offline:
            raise UnknownRunError("with offline=true MLflow is not asked")
        return fetch_run(wanted, request.tracking_uri, request.output_dir, fork=request.new_run, notice=notice)
    except UnknownRunError as error:
        known = ", ".join(one.path.name for one in find_run_directories(request.output_dir)[-5:]) or "none"
        here = f"is no run in {Path(request.output_dir).absolute()} (runs there: {known})"
        raise ConfigurationError(f"resume: seen '{wanted}', which {here}; {error}") from error


def _up_to_date(found: RunDirectory, request: TrainModelRequest, notice: Callable[[str], None]) -> RunDirectory:
    """`found`, or what MLflow holds of that run where it went on elsewhere since."""
    info, uri = found.read_run(), tracking_uri_of(found, request.tracking_uri)
    if request.new_run or request.offline or info.run_id is None or not set_aside_if_outdated(found, uri):
        return found
    notice(f"run {info.run_id} went on elsewhere since {found.path} was written")
    return fetch_run(info.run_id, uri, found.path.parent, notice=notice)


def refuse_live(resumed: RunDirectory) -> None:
    """A run that is being trained cannot be continued by somebody else.

    Raises:
        ConfigurationError: its trainer is alive.
    """
    info = resumed.read_run()
    if info.trainer_pid != os.getpid() and WatchedProcess(info.trainer_pid, info.trainer_started).is_alive():
        raise ConfigurationError(f"resume: {resumed.path.name} is being trained by process {info.trainer_pid}; accepted: a run that has ended, or new_run=true")


def undelivered(output_dir: Path | str) -> list[RunDirectory]:
    """Runs of dead trainers in this folder whose delivery is not complete.

    Those that are offline on purpose are not among them, nor those of which a delivery has found that the run went on elsewhere or is deleted.
    """
    found = []
    for directory in find_run_directories(output_dir):
        info = directory.read_run()
        delivery = directory.read_delivery()
        recorded = directory.journal.stat().st_size if directory.journal.exists() else 0
        complete = delivery.get("complete", False) and delivery.get("offset", 0) >= recorded  # a trainer may have been killed before its relay looked
        settled = complete or delivery.get("elsewhere") is not None or delivery.get("deleted") is not None
        if not settled and not info.offline and not WatchedProcess(info.trainer_pid, info.trainer_started).is_alive():
            found.append(directory)
    return found


def has_checkpoint(directory: RunDirectory) -> bool:
    """True where at least one checkpoint is complete."""
    return any(not path.parent.name.startswith(".") for path in directory.checkpoints.glob("*/metadata.json"))  # .writing-*: of a writer that was killed


def saved_options(resumed: RunDirectory, request: TrainModelRequest) -> TrainModelRequest:
    """The resumed run's options; what this request says otherwise than the defaults wins."""
    saved = json.loads((resumed.path / "config.json").read_text(encoding="utf-8"))
    values = {f.name: getattr(request, f.name) for f in fields(request)}
    for name, option in OPTIONS.items():
        untouched = name not in request.as_typed and values[name] == option.default
        if untouched and name in saved and name not in NOT_INHERITED:
            values[name] = saved[name]
    return TrainModelRequest(**values)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _has_git() -> bool:
    return any((Path(folder) / "git").exists() for folder in os.environ.get("PATH", "").split(os.pathsep))
