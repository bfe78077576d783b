"""Bandit's findings in a list of files, as a separate program.

    python -P bandit_scan.py < list_of_files > findings

Invariant: standard input is one JSON array of paths; standard output is one JSON object {path: [[line, severity,
confidence, test id], ...]}. It imports Bandit and the standard library only, never mltrack, so it starts quickly.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings

SKIPPED_TESTS = ("B101",)
"""assert is not a vulnerability in library code."""


def findings(paths: list[str]) -> dict[str, list[tuple[int, str, str, str]]]:
    """(line, severity, confidence, test id) of each finding per file; an unreadable file has none."""
    from bandit.core.config import BanditConfig
    from bandit.core.manager import BanditManager

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    manager = BanditManager(
        BanditConfig(), "file", quiet=True, profile={"include": set(), "exclude": set(SKIPPED_TESTS)}, ignore_nosec=True
    )
    manager.files_list = list(paths)  # from which Bandit removes those that it cannot read
    manager.run_tests()
    found: dict[str, list[tuple[int, str, str, str]]] = {path: [] for path in paths}
    for issue in manager.results:
        found[issue.fname].append((issue.lineno, issue.severity, issue.confidence, issue.test_id))
    return {path: sorted(issues) for path, issues in found.items()}


if __name__ == "__main__":
    json.dump(findings(json.load(sys.stdin)), sys.stdout)
