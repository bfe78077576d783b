"""Security levels of source files by Bandit's findings, scanned on all cores that this process may use.

The level is the cell of the OWASP Risk Rating Methodology's matrix (step 4, "Determining the Severity of the Risk"):
impact is Bandit's severity, likelihood its confidence. The matrix calls its lowest cell "note"; here it is low, since
a finding is not safe. Labels are Bandit's opinions, not the truth.

Invariant: the findings depend on the files and on Bandit's version, not on the number of cores or the order of work.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from mltrack.errors import DatasetError
from mltrack.hardware.cpu import usable_cores
from mltrack.records.builtin import bandit_scan

_SHARES_OF_A_CORE = 8
"""More processes report progress more often; each takes a moment to start."""

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

    Each share of the files is scanned by its own process, which needs neither fork nor an importable __main__.

    Args:
        files: Python files.
        progress: called with the number of files done, in the caller's thread.

    Raises:
        DatasetError: a process failed; the message is the last line of its output.
    """
    found: dict[Path, list[Finding]] = {}
    processes: list[subprocess.Popen[str]] = []
    cores = usable_cores()
    largest_first = sorted(files, key=lambda path: (-path.stat().st_size, path))
    num_shares = min(len(files), cores * _SHARES_OF_A_CORE)
    with ThreadPoolExecutor(cores) as pool:
        try:
            shares = [pool.submit(_scanned, largest_first[first::num_shares], processes) for first in range(num_shares)]
            for share in as_completed(shares):
                found.update(share.result())
                progress(len(found))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()  # after an error or a signal; no effect on ended ones
    return {path: found[path] for path in files}


def _scanned(files: Sequence[Path], processes: list[subprocess.Popen[str]]) -> dict[Path, list[Finding]]:
    """The findings in some files; adds the scanning process to `processes`."""
    command, pipe = [sys.executable, "-P", bandit_scan.__file__], subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace")
    processes.append(process)
    answer, complaints = process.communicate(json.dumps([str(path) for path in files]))
    if process.returncode:
        last = (complaints.strip().splitlines() or ["no message"])[-1]
        raise DatasetError(
            f"the scan by Bandit ended with exit code {process.returncode} ({last}); is bandit installed in"
            f" {sys.executable}?"
        )
    return {Path(path): [Finding(*one) for one in findings] for path, findings in json.loads(answer).items()}
