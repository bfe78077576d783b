"""Security levels of source files by Bandit's findings, scanned on all cores that this process may use.

The level is the cell of the OWASP Risk Rating Methodology's matrix (step 4, "Determining the Severity of the Risk"):
impact is Bandit's severity, likelihood its confidence. The matrix calls its lowest cell "note"; here it is low, since
a finding is not safe. Bandit gives opinions, not truth: a label says what Bandit would say.

Invariant: the findings depend on the files and on Bandit's version, not on the number of cores or who finished first.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from mltrack.errors import DatasetError
from mltrack.hardware.cpu import usable_cores
from mltrack.records.builtin import bandit_scan

_RANKS = {"LOW": 0, "MEDIUM": 1, "HIGH": 2}
_MATRIX = (  # rows: impact low, medium, high; columns: likelihood low, medium, high
    ("low", "low", "medium"),
    ("low", "medium", "high"),
    ("medium", "high", "critical"),
)


class Finding(NamedTuple):
    """One finding of Bandit."""

    line: int
    severity: str
    """LOW, MEDIUM, HIGH; an UNDEFINED one counts as LOW."""
    confidence: str
    """As `severity`."""
    test_id: str
    """Such as B602."""

    @property
    def level(self) -> str:
        """low, medium, high or critical, by the risk matrix."""
        return _MATRIX[_RANKS.get(self.severity, 0)][_RANKS.get(self.confidence, 0)]


def scan(files: Sequence[Path], progress: Callable[[int], None]) -> dict[Path, list[Finding]]:
    """Bandit's findings per file.

    Args:
        files: Python files; about 20 ms of CPU each.
        progress: called with the number of files done, in the caller's thread.

    Raises:
        DatasetError: a worker failed; the message is the last line that it said.
    """
    results: queue.Queue[tuple[str, list[Any]] | None] = queue.Queue()
    workers = [_Worker(share, results) for share in _shares(files, usable_cores())]
    found: dict[Path, list[Finding]] = {}
    try:
        running = len(workers)
        while running:
            item = results.get()
            if item is None:
                running -= 1
                continue
            found[Path(item[0])] = [Finding(*finding) for finding in item[1]]
            progress(len(found))
        for worker in workers:
            worker.check()
    finally:
        for worker in workers:
            worker.stop()
    return {path: found[path] for path in files}


class _Worker:
    """A process that scans its share, and the thread that reads its answers."""

    def __init__(self, share: list[Path], results: queue.Queue[tuple[str, list[Any]] | None]):
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  a pipe could fill up
        self._process = subprocess.Popen(
            [sys.executable, "-P", bandit_scan.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
        )
        self._thread = threading.Thread(target=self._exchange, args=(share, results), daemon=True)
        self._thread.start()

    def _exchange(self, share: list[Path], results: queue.Queue[tuple[str, list[Any]] | None]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with self._process.stdin as stdin:
                json.dump([str(path) for path in share], stdin)
            for line in self._process.stdout:
                results.put(tuple(json.loads(line)))
        except (OSError, ValueError):
            pass  # the worker is gone: its exit code tells
        finally:
            self._process.wait()
            results.put(None)

    def check(self) -> None:
        """Raise where the worker did not end well."""
        code = self._process.wait()
        if code:
            self._complaints.seek(0)
            said = self._complaints.read().decode(errors="replace").strip().splitlines()
            raise DatasetError(
                f"the scan by Bandit ended with exit code {code} ({said[-1] if said else 'no message'}); is bandit"
                f" installed in {sys.executable}?"
            )

    def stop(self) -> None:
        """End the worker if it still runs, and let go of its pipes."""
        self._process.kill()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._complaints.close()


def _shares(files: Sequence[Path], num_shares: int) -> list[list[Path]]:
    """Files dealt out by size, the largest first to the smallest share."""
    shares: list[tuple[int, list[Path]]] = [(0, []) for _ in range(min(num_shares, len(files)))]
    for path in sorted(files, key=lambda path: (-path.stat().st_size, path)):
        at = min(range(len(shares)), key=lambda index: shares[index][0])
        shares[at] = (shares[at][0] + path.stat().st_size, [*shares[at][1], path])
    return [share for _, share in shares]
