"""Makes the pictures of this folder: four small trainings, MLflow's pages in chromium, and the terminal.

python docs/images/pictures.py [--python .venv/bin/python] [--prefix before-] [--only run,overview]

It needs chromium, and for the pictures of the terminal `pip install pyte`. Another checkout's `--python` makes pictures
of that one.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS, ROWS = 110, 30
TRAIN = tuple("train --task text_classification --model-name scratch:tiny --max-length 128 --epochs 3".split())  # noqa: SIM905
VARIANTS = (("--learning-rate", "5e-4"), ("--learning-rate", "2e-3"), ("--batch-size", "16"), ("--seed", "7"))
SETTLES_S = 14
"""MLflow's pages fetch their charts one after the other."""


class Pictures:
    """Trainings in a folder of their own, an MLflow server on them, and pictures of both.

    Args:
        python: of the environment whose mltrack is shown.
        folder: for the trainings.
        prefix: of the pictures' names.
    """

    def __init__(self, python: str, folder: Path, prefix: str):
        self._python, self._folder, self._prefix = python, folder, prefix
        self._environment = {**os.environ, "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}

    def mltrack(self, *words: str) -> str:
        """What the command printed."""
        finished = subprocess.run(
            [self._python, "-m", "mltrack", *words],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return finished.stdout

    def page(self, name: str, address: str, *, height: int = 1000) -> None:
        """A page of MLflow."""
        target = HERE / f"{self._prefix}{name}.png"
        words = ["chromium", "--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size=1440,{height}"]
        words += [
            f"--user-data-dir={self._folder}/browser",
            f"--screenshot={target}",
            f"--virtual-time-budget={SETTLES_S * 1000}",
        ]
        subprocess.run([*words, address], check=True, capture_output=True, timeout=120)
        print(target, target.stat().st_size)

    def terminal(self, name: str, *words: str, until: Callable[[str], bool] = lambda text: False) -> None:
        """The terminal after a command, or as it is when `until` says so of what it shows."""
        import pyte

        screen = pyte.Screen(COLUMNS, ROWS)
        stream = pyte.ByteStream(screen)
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        process = subprocess.Popen(
            [self._python, "-m", "mltrack", *words],
            cwd=self._folder,
            env=self._environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        shown: list[str] = []
        with suppress(OSError):
            while chunk := os.read(ours, 4096):
                stream.feed(chunk)
                if not shown and until("\n".join(screen.display)):
                    shown = list(screen.display)
        process.wait()
        self._drawn(name, f"$ mltrack {' '.join(words)}", shown or list(screen.display))

    def _drawn(self, name: str, command: str, lines: list[str]) -> None:
        from rich.console import Console

        text = "\n".join([command, *lines]).rstrip()
        with open(os.devnull, "w") as nowhere:
            console = Console(record=True, width=COLUMNS, file=nowhere, highlight=False)
            console.print(text, markup=False)
        picture = self._folder / f"{name}.svg"
        console.save_svg(str(picture), title="mltrack")
        height = 120 + 25 * (text.count("\n") + 1)
        target = HERE / f"{self._prefix}{name}.png"
        words = ["chromium", "--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size=1380,{height}"]
        subprocess.run(
            [*words, f"--screenshot={target}", picture.as_uri()], check=True, capture_output=True, timeout=60
        )
        print(target, target.stat().st_size)

    def serve(self) -> tuple[subprocess.Popen[bytes], str]:
        """MLflow's server, and its address."""
        with socket.socket() as made:
            made.bind(("127.0.0.1", 0))
            port = made.getsockname()[1]
        server = subprocess.Popen(
            [self._python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            cwd=self._folder,
            env={**os.environ, "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{self._folder}/mlflow.db"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server, f"http://127.0.0.1:{port}/#"
            time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--only", default="", help="names, with commas")
    asked = parser.parse_args()
    only = set(filter(None, asked.only.split(",")))
    with tempfile.TemporaryDirectory(prefix="mltrack-") as folder:
        pictures = Pictures(asked.python, Path(folder), asked.prefix)
        wanted = lambda name: not only or name in only  # noqa: E731
        for number, variant in enumerate(VARIANTS):
            if number or not wanted("training"):
                pictures.mltrack(*TRAIN, *variant)
            else:
                pictures.terminal(
                    "training", *TRAIN, *variant, until=lambda text: "best eval_loss" in text and "ETA" in text
                )
        if wanted("runs"):
            pictures.terminal("runs", "runs")
        run = json.loads(pictures.mltrack("runs", "--output", "json"))[1]["run"]
        if wanted("runs-show"):
            pictures.terminal("runs-show", "runs", "show", run[:8])
        server, address = pictures.serve()
        pages = {
            "overview": f"/experiments/0/runs/{run}",
            "run": f"/experiments/0/runs/{run}/model-metrics",
            "compare": "/experiments/0/runs?viewStateShareKey=mltrack-text_classification&compareRunsMode=CHART",
            "registry": "/models/mltrack-text_classification/versions/1",
        }
        try:
            for name, path in pages.items():
                if wanted(name):
                    pictures.page(name, address + path, height=1300)
        finally:
            os.killpg(server.pid, signal.SIGTERM)


if __name__ == "__main__":
    main()
