"""Opening the MLflow run of a training in a process beside it.

The trainer needs one answer of MLflow before its first step. Importing mlflow for that takes two seconds and a hundred megabytes; so another process
does it while this one imports torch, and ends when it has answered.

Invariant: nothing is made before `open` is called, and a trainer that ends before that leaves nothing behind. Where the process cannot help, `open`
does the same here: a run is found again by its idempotency key.

    opener = RunOpener(uri)
    ...                                                 # tokenizer, records, model
    info = opener.open(info)
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from mltrack.journal import RunInfo
from mltrack.processes import start
from mltrack.store import StoreRejected, StoreUnavailable, connect, runs

_ERRORS = {error.__name__: error for error in (StoreUnavailable, StoreRejected)}


class RunOpener:
    """Opens one run.

    Args:
        tracking_uri: where it will be.
    """

    def __init__(self, tracking_uri: str):
        self._process: subprocess.Popen[bytes] | None = None
        if "mlflow" not in sys.modules:  # else it is imported already, and a run may be active here
            self._process = start("mltrack.run_opening", [tracking_uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def open(self, info: RunInfo) -> RunInfo:
        """The run that `info` describes: made, or reopened where it has an id.

        Raises:
            StoreUnavailable: the server does not answer.
            StoreRejected: it has no such run, or the experiment is deleted.
        """
        answer = self._answer(info)
        if answer is None:
            return opened(info)
        if answer["error"] is not None:
            raise _ERRORS[answer["error"]](answer["message"])
        return RunInfo(**answer["run"])

    def close(self) -> None:
        """End the process, whatever it was doing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with suppress(OSError):
                    stream.close()
            process.wait()

    def _answer(self, info: RunInfo) -> dict[str, Any] | None:
        """What the process says; None where there is none, or it died."""
        if self._process is None:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asdict(info)).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        self.close()
        return json.loads(line) if line.endswith(b"\n") else None


def opened(info: RunInfo) -> RunInfo:
    """`info` with the ids of its MLflow run, which is made, or reopened where it has an id.

    Raises:
        StoreUnavailable, StoreRejected: as `RunOpener.open`.
    """
    store = connect(info.tracking_uri)
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
        runs.reopen_run(store, info.run_id)
        found = runs.get_run(store, info.run_id)
    info.run_id, info.experiment_id = found.run_id, found.experiment_id
    info.under_mlflow_run = found.tags.get("mlflow.source.type") == "PROJECT"
    return info


def main() -> None:
    """Import mlflow and connect, wait for the description of a run on standard input, open it, and answer in one line."""
    with suppress(StoreUnavailable, StoreRejected):
        connect(sys.argv[1])  # what it says now, it says again
    line = sys.stdin.readline()
    if not line:
        return
    try:
        answer: dict[str, Any] = {"error": None, "run": asdict(opened(RunInfo(**json.loads(line))))}
    except (StoreUnavailable, StoreRejected) as error:
        kind = StoreUnavailable if isinstance(error, StoreUnavailable) else StoreRejected
        answer = {"error": kind.__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
