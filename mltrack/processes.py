"""A Python process of this mltrack, beside the one that trains.

Invariant: it runs the same interpreter and the same package, in a session of its own, so a terminal's Ctrl-C does not
reach it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def start(
    module: str, words: Sequence[str] = (), *, tracking_uri: str | None = None, **streams: Any
) -> subprocess.Popen[bytes]:
    """`python -m MODULE WORDS`.

    Args:
        tracking_uri: its MLFLOW_TRACKING_URI; not an argument, since every user can see a process's arguments and the
            URI may hold credentials.
        streams: stdin, stdout, stderr of `subprocess.Popen`.
    """
    package_parent = str(Path(__file__).resolve().parents[1])
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        **({"MLFLOW_TRACKING_URI": tracking_uri} if tracking_uri else {}),
    }
    environment.pop("PYTHONWARNINGS", None)  # mlflow cannot be imported if warnings are errors
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *words], start_new_session=True, env=environment, **streams
    )
