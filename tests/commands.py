"""Running mltrack and mlflow as a user does: real processes, an environment with nothing but what is needed."""

from __future__ import annotations

import atexit
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from warm_process import Forked, WarmProcess

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

READ_BY_COMMANDS = {"MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLTRACK_CACHE_DIR", "PGPASSWORD"}
"""Variables that nothing reads while it is imported: a process may get them after its imports."""


def environment(**extra: str) -> dict[str, str]:
    """The environment's own bin in front of the system's, and nothing that names MLflow's run or server."""
    kept = {
        name: os.environ[name]
        for name in (
            "HOME",
            "LANG",
            "LC_ALL",
            "TMPDIR",
            "MLTRACK_CACHE_DIR",
            "SSL_CERT_FILE",
            "LD_LIBRARY_PATH",
            "CUDA_VISIBLE_DEVICES",
        )
        if name in os.environ
    }
    return {
        **kept,
        "PATH": f"{BIN}:/usr/bin:/bin",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        **extra,
    }


def with_tests(**extra: str) -> dict[str, str]:
    """The same, for a program that imports what lies beside the tests."""
    return environment(PYTHONPATH=os.pathsep.join((str(ROOT), str(ROOT / "tests"))), **extra)


def run(*words: object, cwd: Path, timeout_s: float = 240, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; output is captured."""
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def mltrack(*words: object, cwd: Path, timeout_s: float = 240, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `mltrack ...`: forked from a process that has imported everything, which saves seconds; from nothing where a
    variable matters to the imports, and where there is a GPU.
    """
    wanted, warm, given = environment(**extra), warm_process(), [str(word) for word in words]
    different = {name for name, _ in wanted.items() ^ warm.environment.items()}
    if different - READ_BY_COMMANDS or os.environ.get("MLTRACK_TEST_DEVICE", "cpu") != "cpu":
        return cold_mltrack(*words, cwd=cwd, timeout_s=timeout_s, **extra)
    with tempfile.TemporaryDirectory(prefix="streams-") as streams:
        with _one_at_a_time:
            forked = warm.start(*given, cwd=Path(streams), prelude=ENTER.format(cwd=str(cwd)), **wanted)
        try:
            code = forked.wait(timeout_s)
        finally:
            forked.send(signal.SIGKILL)
        return subprocess.CompletedProcess(given, code, forked.output, forked.errors)


def cold_mltrack(*words: object, cwd: Path, timeout_s: float = 240, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `mltrack ...` from nothing, where its start is what is tested."""
    return run(sys.executable, "-m", "mltrack", *words, cwd=cwd, timeout_s=timeout_s, **extra)


class Frozen(WarmProcess):
    """Of its processes, the collector leaves alone what was imported: to look at it in the end, where each page is
    shared until it is written to, takes longer than a small training.
    """

    def start(self, *words: object, cwd: Path, prelude: str = "", **variables: str) -> Forked:
        """As `WarmProcess.start`."""
        return super().start(*words, cwd=cwd, prelude=f"import gc; gc.freeze()\n{prelude}", **variables)


@cache
def warm_process() -> WarmProcess:
    """The one that forks the commands of all tests."""
    process = Frozen(environment())
    atexit.register(process.close)
    return process


_one_at_a_time = threading.Lock()

ENTER = """
import atexit, os, sys, threading
from mltrack.cli import main
os.chdir({cwd!r})
try:
    main()
except SystemExit as ended:
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(ended.code)
"""
"""Enters as `python -m mltrack` does, and ends as it does but for taking apart what was imported."""


def start(*words: object, cwd: Path, **extra: str) -> subprocess.Popen[str]:
    """Start `mltrack ...` and go on."""
    return subprocess.Popen(
        [sys.executable, "-m", "mltrack", *(str(word) for word in words)],
        cwd=cwd,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def on_terminal(*words: object, cwd: Path, columns: int = 200, **extra: str) -> tuple[int, str]:
    """Run `mltrack ...` as in a terminal of its own; the exit code and all that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "mltrack", *(str(word) for word in words)],
        cwd=cwd,
        env=environment(**extra),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(ours)
    return process.wait(timeout=60), seen.decode()


TINY = ("--model-name", "scratch:tiny", "--max-length", "64", "--batch-size", "8", "--learning-rate", "2e-3")
"""Options of a training that takes seconds."""


def training(records: Path, *more: object, task: str = "text_classification") -> tuple[object, ...]:
    """The words of one."""
    return ("train", "--task", task, "--dataset-path", records, *TINY, *more)
