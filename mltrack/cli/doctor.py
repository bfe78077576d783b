"""`mltrack doctor`: can this machine train and track? One line per check, with a remedy if it fails."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from mltrack import store
from mltrack.errors import MltrackError

PACKAGES = ("torch", "transformers", "mlflow", "tokenizers", "safetensors", "scikit-learn")
ENOUGH_BYTES = 5 << 30

Finding = tuple[bool, str, str]
"""(success, what was checked, the result and the remedy)."""


def doctor(tracking_uri: str | None) -> int:
    """Print the findings; returns 0 if all checks succeed, else 1."""
    well = True
    for fine, what, seen in _findings(tracking_uri):
        well = well and fine
        print(f"{'ok  ' if fine else 'BAD '} {what:<12} {seen}")
    return 0 if well else 1


def _findings(tracking_uri: str | None) -> Iterator[Finding]:
    version = sys.version_info
    fine = (3, 11) <= version[:2] < (3, 14)
    yield fine, "Python", platform.python_version() + ("" if fine else "; install Python 3.11, 3.12 or 3.13")
    for name in PACKAGES:
        try:
            yield True, name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield False, name, "not installed; install mltrack again (`pip install` of the wheel, or `make install`)"
    from mltrack import hardware

    for what, seen in hardware.describe().items():
        if what not in ("python", "torch"):
            yield True, what, seen
    uri = store.default_tracking_uri(tracking_uri)
    try:
        connected = store.connect(uri)
        store.ping(connected)
        store.connection.check_writable(connected)
        yield True, "tracking", f"{connected.shown_uri} answers and can be written"
    except MltrackError as error:
        yield False, "tracking", str(error)
    stray = sorted(Path("mlruns").glob("*/meta.yaml"))
    yield (
        not stray,
        "mlruns",
        "no old file store here"
        if not stray
        else f"{stray[0]} makes MLflow take the old file store; move ./mlruns away, or set MLFLOW_TRACKING_URI",
    )
    free = shutil.disk_usage(".").free
    yield (
        free >= ENOUGH_BYTES,
        "disk",
        f"{free / 2**30:.1f} GiB free" + ("" if free >= ENOUGH_BYTES else "; free 5 GiB for checkpoints"),
    )
