"""`mltrack ui`: MLflow's pages on the database that trainings here write to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import webbrowser
from contextlib import suppress
from typing import TextIO

from mltrack.addresses import is_same, without_secrets
from mltrack.config import Option
from mltrack.errors import ConfigurationError, TrackingError
from mltrack.journal import find_run_directory, known_runs
from mltrack.store import database_file, default_tracking_uri

STARTS_WITHIN_S = 120.0


def ui(run: str | None, tracking_uri: str | None, output_dir: str, port: str | None, *, opens: bool) -> int:
    """Print the address of the newest run's page, or of the one that is named, and serve it until Ctrl-C if no server
    does.

    Args:
        opens: in a browser, if there is a desktop.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: there is no such database or run.
        TrackingError: the server does not start.
    """
    uri = default_tracking_uri(tracking_uri)
    page = _page(run, uri, output_dir)
    if uri.startswith(("http://", "https://")):
        _tell(f"{without_secrets(uri).rstrip('/')}/{page}", opens)
        return 0
    file = database_file(uri)
    if file is not None and not file.exists():
        raise ConfigurationError(
            f"there is no {file}; train first, go to the folder of a training, or name the database with --tracking-uri"
        )
    number = Option(name="port", kind="int", minimum=1, maximum=65535, help="").parse(port or "") or _free_port()
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: it may hold a password
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(number), "--workers", "1"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(words, env=environment, start_new_session=True, stdout=log, stderr=log)
        for ending in (signal.SIGTERM, signal.SIGHUP):  # the server ends with this process, however that is ended
            signal.signal(ending, signal.default_int_handler)
        try:
            _wait_for(server, number, log)
            _tell(f"http://127.0.0.1:{number}/{page}", opens)
            print("Ctrl-C ends it", flush=True)
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def _page(run: str | None, uri: str, output_dir: str) -> str:
    if run is not None:
        directory = find_run_directory(output_dir, run)
        if directory is None:
            raise ConfigurationError(f"there is no run '{run}' in {output_dir}; `mltrack runs` lists them")
        info = directory.read_run()
        return f"#/experiments/{info.experiment_id}/runs/{info.run_id}" if info.run_id else "#/experiments"
    for known in reversed(known_runs(output_dir)):
        if known.run_id and is_same(known.tracking_uri, uri):
            return _page(known.run_id, uri, output_dir)
    return "#/experiments"


def _tell(address: str, opens: bool) -> None:
    print(address, flush=True)
    has_desktop = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if opens and has_desktop:
        webbrowser.open(address)


def _wait_for(server: subprocess.Popen[bytes], port: int, log: TextIO) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            log.seek(0)
            said = log.read().strip().splitlines()
            raise TrackingError(f"MLflow's server ended with exit code {server.returncode}: {said[-1] if said else ''}")
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise TrackingError(f"MLflow's server does not answer after {STARTS_WITHIN_S:.0f} s")


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])
