"""mltrack's command line in processes that start in milliseconds: each is forked from one that has imported everything.

Invariant: what runs is a real process with its own pid, session, streams and exit code, and it enters where `python -m
mltrack` enters. Before the fork there are imports and nothing else, in a process of one thread.

    with WarmProcess() as warm:
        training = warm.start("train", "--task", "code_generation", cwd=folder)
        training.send(signal.SIGTERM)
        assert training.wait() == 143, training.errors
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    "torch",
    "mlflow.tracking.client",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.db.utils",
    "mltrack.cli.app",
    "mltrack.cli.train",
    "mltrack.cli.training_progress",
    "mltrack.cli.summary",
    "mltrack.runs.use_case",
    "sklearn.metrics",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "transformers.generation",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.roberta.modeling_roberta",
)
"""What a training imports sooner or later."""
FORKED_WITHIN_S = 240.0
"""The first fork waits for all of these imports."""


class Forked:
    """One process. `output` and `errors` are what it has written so far."""

    def __init__(self, pid: int, out: Path, err: Path):
        self.pid = pid
        self.ended = threading.Event()
        self.exit_code: int | None = None
        """As `subprocess` has it: minus the signal's number where a signal ended it; None while it runs."""
        self._out, self._err = out, err

    @property
    def output(self) -> str:
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> str:
        return self._err.read_text(encoding="utf-8", errors="replace")

    def send(self, number: int) -> None:
        """A signal to this one process; none where it has ended."""
        if not self.ended.is_set():
            with suppress(ProcessLookupError):  # collected, and not yet told of
                os.kill(self.pid, number)

    def wait(self, timeout_s: float = 240.0) -> int:
        """Its exit code, once it has ended."""
        if not self.ended.wait(timeout_s):
            raise TimeoutError(f"process {self.pid} runs after {timeout_s:.0f} s; its last lines: {self.errors[-500:]}")
        assert self.exit_code is not None
        return self.exit_code

    def until(self, happened: Callable[[], Any], what: str, within_s: float = 240.0) -> bool:
        """Wait for something that the process does; False where it ended before."""
        deadline = time.monotonic() + within_s
        while not happened():
            if self.ended.is_set():
                return bool(happened())
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {within_s:.0f} s for {what}; the last lines of process {self.pid}: {self.errors[-500:]}"
                )
            time.sleep(0.002)
        return True


class WarmProcess:
    """The process that forks.

    Args:
        environment: of it and, with what `start` adds, of all that it forks. Thread counts are read at import: they
            belong here.
    """

    def __init__(self, environment: Mapping[str, str] | None = None):
        kept = {
            name: os.environ[name]
            for name in ("HOME", "LANG", "LC_ALL", "TMPDIR", "MLTRACK_CACHE_DIR")
            if name in os.environ
        }
        fixed = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        self.environment = {
            **kept,
            **fixed,
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            **(environment or {}),
        }
        self._parent = subprocess.Popen(
            [sys.executable, str(Path(__file__)), "serve"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._running: dict[int, Forked] = {}
        self._lock = threading.Lock()
        self._last: Forked | None = None
        self._forked = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, *words: object, cwd: Path, prelude: str = "", **environment: str) -> Forked:
        """Run `mltrack WORDS`.

        Args:
            cwd: working directory; its streams go to files `process-N.out` and `process-N.err` there.
            prelude: Python that the process runs before the command, such as a hook that counts.
            environment: added to the warm process's own.
        """
        number = 1
        while (out := cwd / f"process-{number}.out").exists():
            number += 1
        err = out.with_suffix(".err")
        out.touch()
        err.touch()
        request = {
            "words": [str(word) for word in words],
            "cwd": str(cwd),
            "out": str(out),
            "err": str(err),
            "prelude": prelude,
        }
        self._forked.clear()
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps({**request, "environment": {**self.environment, **environment}}) + "\n")
        self._parent.stdin.flush()
        if not self._forked.wait(FORKED_WITHIN_S):
            raise TimeoutError(f"the warm process did not fork within {FORKED_WITHIN_S:.0f} s")
        assert self._last is not None, "the warm process is gone"
        return self._last

    def run(self, *words: object, cwd: Path, timeout_s: float = 120.0, prelude: str = "", **environment: str) -> Forked:
        """Run `mltrack WORDS` to its end."""
        forked = self.start(*words, cwd=cwd, prelude=prelude, **environment)
        try:
            forked.wait(timeout_s)
        finally:
            forked.send(signal.SIGKILL)
        return forked

    def close(self) -> None:
        """End it and whatever it forked that still runs."""
        with self._lock:
            left = list(self._running.values())
        for forked in left:
            forked.send(signal.SIGKILL)
        self._parent.kill()
        self._parent.wait()

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        assert self._parent.stdout is not None
        for line in self._parent.stdout:
            event = json.loads(line)
            with self._lock:
                if "started" in event:
                    self._last = self._running[event["started"]] = Forked(
                        event["started"], Path(event["out"]), Path(event["err"])
                    )
                    self._forked.set()
                else:
                    forked = self._running.pop(event["ended"])
                    forked.exit_code = event["exit_code"]
                    forked.ended.set()
        self._last = None
        self._forked.set()


# -- inside the warm process


def serve() -> int:
    """Fork for each line of stdin and tell of starts and ends on stdout; in a forked process, run its command and
    return its exit code.
    """
    for name in IMPORTED:
        importlib.import_module(name)
    from mltrack.cli import run

    threads = [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")]
    assert len([name for name in threads if name != "jemalloc_bg_thd"]) == 1, (
        f"a fork would lose threads: {threads}"
    )  # jemalloc starts its own anew
    pending = b""
    children = 0
    while True:
        readable, _, _ = select.select([0], [], [], 0.002 if children else None)
        if readable:
            read = os.read(0, 1 << 20)
            if not read:
                return 0
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _become(request)
                    return run(request["words"])
                children += 1
                _say(started=pid, out=request["out"], err=request["err"])
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            children -= 1
            _say(ended=pid, exit_code=os.waitstatus_to_exitcode(status))


def _become(request: Mapping[str, Any]) -> None:
    """Take on the session, directory, environment and streams of the command."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, descriptor in (
        (0, os.open(os.devnull, os.O_RDONLY)),
        (1, os.open(request["out"], flags)),
        (2, os.open(request["err"], flags)),
    ):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = ["mltrack", *request["words"]]
    if request["prelude"]:
        exec(compile(request["prelude"], "<prelude>", "exec"), {"__name__": "prelude"})


def _say(**event: Any) -> None:
    os.write(1, (json.dumps(event) + "\n").encode())


if __name__ == "__main__":
    sys.exit(serve())
