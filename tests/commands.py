"""Running mltrack and mlflow as a user does: real processes, an environment with nothing but what is needed."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


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
    """Run `mltrack ...`."""
    return run(sys.executable, "-m", "mltrack", *words, cwd=cwd, timeout_s=timeout_s, **extra)


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


def on_terminal(*words: object, cwd: Path, **extra: str) -> tuple[int, str]:
    """Run `mltrack ...` as in a terminal of its own; the exit code and all that it wrote there."""
    ours, theirs = pty.openpty()
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
