"""Bandit's findings in a list of files, as a program of its own: one worker of the built-in source's scan.

    python -P bandit_scan.py < list_of_files > findings

Invariant: standard input is one JSON array of paths; standard output is, per file and in that order, one JSON line
[path, [[line, severity, confidence, test id], ...]]. It imports Bandit and the standard library only, never mltrack, so
a worker starts in a moment and needs neither fork nor an importable __main__."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator

SKIPPED_TESTS = ("B101",)
"""assert is no vulnerability of library code."""


def findings(paths: list[str]) -> Iterator[tuple[str, list[tuple[int, str, str, str]]]]:
    """Per file its path and (line, severity, confidence, test id) of each finding; an unreadable file has none."""
    from bandit.core.config import BanditConfig
    from bandit.core.manager import BanditManager

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    manager = BanditManager(
        BanditConfig(), "file", quiet=True, profile={"include": set(), "exclude": set(SKIPPED_TESTS)}, ignore_nosec=True
    )
    for path in paths:
        manager.results.clear()
        manager.files_list = [path]
        manager.run_tests()
        yield path, sorted((issue.lineno, issue.severity, issue.confidence, issue.test_id) for issue in manager.results)


def main() -> None:
    """Read paths from standard input, write findings to standard output, a line as soon as its file is done."""
    for line in findings(json.load(sys.stdin)):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
