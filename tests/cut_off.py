"""Relays that are killed in the middle of their work, at a step that the test chooses.

Invariant: the process ends at once (`os._exit`, as by SIGKILL: no handler, no clean-up), between two steps; a step is a
request, a call of MLflow's client, or a change of a file. The relays are forked from a process that has imported
everything, so that each takes a fraction of a second.

    with relays() as relay:
        steps = relay(directory)                    # to its end: the names of its steps
        for cut in between(steps):
            relay(another_directory, cut)           # ended before step `cut`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KILLED = 137
CHANGES = {
    **dict.fromkeys(("os.mkdir", "os.link", "shutil.copyfile"), "write"),
    **dict.fromkeys(("os.remove", "os.rmdir", "shutil.rmtree"), "delete"),
    "os.rename": "rename",
}
"""{audit event: step} of changes to files; what a relay stages in the run directory is left out."""
CLIENT_CALLS = (
    "create_logged_model",
    "finalize_logged_model",
    "delete_logged_model",
    "log_outputs",
    "log_batch",
    "search_model_versions",
    "log_inputs",
)


@contextmanager
def relays() -> Iterator[Callable[..., list[str]]]:
    """A function that delivers a run directory in a process of its own, ended before step number `cut` if that is
    given; returns the steps that it began.
    """
    import commands

    extra = {
        name: value for name, value in os.environ.items() if name.startswith("AWS_") or name == "MLFLOW_S3_ENDPOINT_URL"
    }
    parent = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=commands.environment(**extra),
    )
    assert parent.stdin is not None
    assert parent.stdout is not None

    def deliver(directory: Any, cut: int | None = None) -> list[str]:
        with tempfile.NamedTemporaryFile(mode="r", suffix=".steps") as told:
            print(json.dumps([str(directory.path), cut, told.name]), file=parent.stdin, flush=True)
            exit_code = int(parent.stdout.readline())
            assert exit_code == (0 if cut is None else KILLED), (exit_code, cut)
            return [json.loads(line) for line in told.read().splitlines()]

    try:
        yield deliver
    finally:
        parent.stdin.close()
        parent.wait(30)


def between(steps: Sequence[str]) -> list[int]:
    """The cuts before each request, call and rename that differs from the step before it, and before every third other
    change.
    """
    changes = [number for number in range(len(steps)) if number == 0 or steps[number] != steps[number - 1]]
    plain = [number for number in changes if steps[number] in ("write", "delete", "http body")]
    return sorted({*changes} - {*plain} | {*plain[::3]})


class Steps:
    """Counts what this process does, and ends it."""

    def __init__(self, cut: int | None, told: str):
        self.cut, self.count = cut, 0
        self._told = os.open(told, os.O_WRONLY | os.O_APPEND)

    def step(self, name: str) -> None:
        if self.count == self.cut:
            os._exit(KILLED)
        self.count += 1
        os.write(self._told, json.dumps(name).encode() + b"\n")

    def audit(self, event: str, words: tuple[Any, ...]) -> None:
        if event in CHANGES:
            if not any(f"/{staging}" in str(word) for word in words for staging in (".relay", "mltrack-")):
                self.step(CHANGES[event])
        elif event == "http.client.send":
            first = (
                bytes(words[1]).split(b" ")[0] if isinstance(words[1], bytes) and words[1][:1].isupper() else b"body"
            )
            self.step(f"http {first.decode(errors='replace')}")

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted_call(*words: Any, **named: Any) -> Any:
            self.step(name)
            return call(*words, **named)

        return counted_call


def _deliver(path: str, cut: int | None, told: str) -> None:
    from mlflow.tracking import MlflowClient

    from mltrack.journal import RunDirectory
    from mltrack.relay import sync

    steps = Steps(cut, told)
    sys.addaudithook(steps.audit)
    for name in CLIENT_CALLS:
        setattr(MlflowClient, name, steps.counted(name, getattr(MlflowClient, name)))
    sync(RunDirectory(Path(path)))


def _serve() -> None:
    import traceback

    from mltrack.relay import sync  # noqa: F401  (all that a relay imports, once)
    from mltrack.store import artifacts, connect, create_run, finish_run, set_tags

    with tempfile.TemporaryDirectory() as folder:
        store = connect(f"sqlite:///{folder}/warm.db")
        run = create_run(store, experiment_name=None, run_name=None, tags={}, idempotency_key="warm", start_time_ms=1)
        set_tags(store, run.run_id, {"warm": "yes"})
        artifacts.list_names(store, run.run_id)
        finish_run(store, run.run_id, "FINISHED")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                _deliver(*json.loads(line))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
