"""Real servers for tests: started on a free port, stopped with their whole process group."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ready_store import ready_store


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def mlflow_server(
    folder: Path,
    *,
    port: int | None = None,
    start_within_s: float = 180.0,
    backend: str | None = None,
    destination: str | None = None,
    options: Sequence[str] = (),
    python: str = sys.executable,
    **variables: str,
) -> Iterator[str]:
    """The URI of an `mlflow server` that keeps its database and its proxied artifacts in `folder`, or where `backend`
    and `destination` say.

    Args:
        python: the interpreter whose MLflow it is.
    """
    port = port or free_port()
    uri = f"http://127.0.0.1:{port}"
    folder.mkdir(parents=True, exist_ok=True)
    backend = backend or ready_store(folder, "server.db", artifacts="mlflow-artifacts:/0")
    command = [
        python,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--serve-artifacts",
    ]
    command += [
        "--backend-store-uri",
        backend,
        "--artifacts-destination",
        destination or str(folder / "artifacts"),
        *options,
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **variables,
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + start_within_s
        while not _answers(uri):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"mlflow server did not start: {(folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(uri: str) -> bool:
    """True once it has read its database for somebody; its first request imports a good deal, which no test is
    about.
    """
    asked = urllib.request.Request(
        f"{uri}/api/2.0/mlflow/experiments/search", b'{"max_results": 1}', {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except (urllib.error.URLError, OSError):
        return False
