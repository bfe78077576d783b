"""The MLflow run of a training is opened, and then followed, by a process beside it.

The trainer needs one answer of MLflow before its first step. Importing mlflow for that takes two seconds and a hundred megabytes; so another process
does it while this one imports torch. When it has answered it becomes the relay, which needs the same imports.

Invariant: nothing is asked, made or written before `open` is called, and a trainer that ends before that leaves nothing behind; one that ends before
anybody follows its run leaves the run FAILED, not RUNNING for ever. Where the process cannot help, `open` does the same here (a run is found again by its idempotency key), and the relay is started as `mltrack sync --follow`.

    opener = RunOpener(uri)
    ...                                                 # tokenizer, records, model
    info = opener.open(info)
    tracker.follow(info, opener.become_relay)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mltrack import relay
from mltrack.collector import collect_rarely, frozen
from mltrack.errors import TrackingError
from mltrack.journal import RunDirectory, RunInfo
from mltrack.processes import start
from mltrack.relay.trainers import VERSION_TAG
from mltrack.store import Store, StoreRejected, StoreUnavailable, artifacts, connect, database_file, import_client, runs
from mltrack.store.connection import shown

_ERRORS = {error.__name__: error for error in (StoreUnavailable, StoreRejected)}


class RunOpener:
    """Opens one run.

    Args:
        tracking_uri: where it will be.
    """

    def __init__(self, tracking_uri: str):
        self.tracking_uri = tracking_uri
        self.warnings: list[str] = []
        """Lines for the user about the run that was opened."""
        self._unfollowed: RunInfo | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if "mlflow" not in sys.modules:  # else it is imported already, and a run may be active here
            self._process = start("mltrack.run_opening", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self._say(tracking_uri)  # not an argument: it may hold a password, and everybody sees the arguments of a process

    def open(self, info: RunInfo) -> RunInfo:
        """The run that `info` describes: made, or reopened where it has an id.

        Raises:
            StoreUnavailable: the server does not answer.
            StoreRejected: it has no such run, or the experiment is deleted.
        """
        answer = self._answer(info)
        if answer is not None and answer["error"] is not None:
            raise _ERRORS[answer["error"]](answer["message"])
        self._unfollowed, self.warnings = opened(info) if answer is None else (RunInfo(**answer["run"]), answer["warnings"])
        return self._unfollowed

    def become_relay(self, directory: RunDirectory) -> subprocess.Popen[bytes] | None:
        """The process, which from now on follows the directory's journal; None where it cannot, and another must."""
        self._unfollowed = None
        if self._process is None or not self._say(str(directory.path)):
            return None
        process, self._process = self._process, None
        _close_pipes(process)
        return process

    def close(self) -> None:
        """End the process, whatever it was doing, and the run that nobody follows; not the relay that it has become."""
        (process, self._process), (run, self._unfollowed) = (self._process, None), (self._unfollowed, None)
        if process is None:
            if run is not None:
                with suppress(TrackingError):
                    _end_unfollowed(run)
            return
        if run is None:
            process.kill()
        _close_pipes(process)  # where it has opened a run, it ends that and then itself
        if run is None:
            process.wait()

    def _answer(self, info: RunInfo) -> dict[str, Any] | None:
        """What the process says; None where there is none, or it died."""
        if self._process is None or not self._say(json.dumps(asdict(info))):
            return None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            self.close()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _say(self, line: str) -> bool:
        """Tell the process; False where it is gone, and then forgotten."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self.close()
            return False
        return True


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with suppress(OSError):  # what could not be written is of no use any more
            stream.close()


def opened(info: RunInfo) -> tuple[RunInfo, list[str]]:
    """`info` with the ids of its MLflow run, which is made, or reopened where it has an id; and what the user should know of it, a line each.

    Raises:
        StoreUnavailable, StoreRejected: as `RunOpener.open`.
    """
    named = info.run_id is not None and not info.directory  # by somebody else, so that a database which is not there cannot come back
    if named and (file := database_file(info.tracking_uri)) is not None and not file.exists():
        raise StoreRejected(f"{shown(info.tracking_uri)}: reading run {info.run_id}: there is no such database")
    store = connect(info.tracking_uri, create=info.run_id is None)
    if info.run_id is None:
        found = runs.create_run(
            store,
            experiment_name=info.experiment_name,
            run_name=info.run_name,
            tags=info.tags,
            idempotency_key=info.local_id,
            start_time_ms=info.created_ms,
        )
    else:
        found = runs.get_active_run(store, info.run_id)
        runs.reopen_run(store, info.run_id)
    info.run_id, info.experiment_id = found.run_id, found.experiment_id
    info.under_mlflow_run = found.tags.get("mlflow.source.type") == "PROJECT"
    return info, _warnings(store, found)


def _warnings(store: Store, run: runs.RunInfo) -> list[str]:
    lines = []
    is_empty_project_run = run.tags.get("mlflow.source.type") == "PROJECT" and not run.metrics
    if os.environ.get("MLFLOW_RUN_ID") == run.run_id and VERSION_TAG not in run.tags and not is_empty_project_run:
        what = f"'{run.run_name}' of {run.tags.get('mlflow.source.name') or 'an unnamed program'}, {run.status}, {len(run.metrics or {})} metrics"
        lines.append(f"MLFLOW_RUN_ID names run {run.run_id} ({what}), which mltrack did not make; this training is added to it")
    try:
        artifacts.check_root(store, run.run_id)
    except StoreUnavailable as error:
        lines.append(f"{error}; training goes on, and models and files wait for it in the run directory")
    return lines


def main() -> None:
    """Lines of standard input: the tracking URI, at which mlflow is imported; a run, which is opened and answered; its directory, which is followed."""
    uri = sys.stdin.readline().rstrip("\n")
    collect_rarely()
    with suppress(TrackingError):
        import_client(uri)  # what fails now, fails again when the run is opened, and is said then
    with frozen():  # else the first look at all of mlflow, 0.15 s, comes while the trainer waits for its run
        _open_and_follow()


def _open_and_follow() -> None:
    if not (line := sys.stdin.readline()):
        return
    run = None
    try:
        run, warnings = opened(RunInfo(**json.loads(line)))
        answer: dict[str, Any] = {"error": None, "run": asdict(run), "warnings": warnings}
    except (StoreUnavailable, StoreRejected) as error:
        kind = StoreUnavailable if isinstance(error, StoreUnavailable) else StoreRejected
        answer = {"error": kind.__name__, "message": str(error)}
    with suppress(BrokenPipeError):
        print(json.dumps(answer), flush=True)
    if line := sys.stdin.readline():
        directory = RunDirectory(Path(line.rstrip("\n")))
        _use_streams_of_a_relay(directory)
        relay.run(directory)
    elif run is not None:
        with suppress(TrackingError):
            _end_unfollowed(run)


def _end_unfollowed(run: RunInfo) -> None:
    """Its trainer is gone before there was anything to deliver; a run of `mlflow run`, or one that the user has begun, is ended by whoever began it."""
    if run.owns_status and not run.under_mlflow_run and run.run_id is not None:
        runs.finish_run(connect(run.tracking_uri), run.run_id, "FAILED")


def _use_streams_of_a_relay(directory: RunDirectory) -> None:
    """As if it had been started as one: nothing of the trainer open, what it says in relay.log."""
    log = os.open(directory.relay_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, stream in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, stream)


if __name__ == "__main__":
    main()
