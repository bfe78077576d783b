"""The built-in source `stdlib`: records from the running interpreter's own standard library.

Invariant: for one interpreter and one Bandit the records, their order and their numbers are always the same; no two
have the same code. The labels are Bandit's opinions: a model that learns them imitates Bandit.

    described_functions()[0].description
    rated_functions()[0].label                  # safe, low, medium, high or critical
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from mltrack.records.builtin.stdlib_functions import SourceFunction, functions_of, library_files, library_folder
from mltrack.records.record import SECURITY_LEVELS, Record
from mltrack.records.row_cache import cached_rows

STDLIB = "stdlib"
"""The data path that names this source."""

SAFE_PER_FINDING = 2
"""Safe functions kept per function with a finding; most functions have none."""

MIN_DESCRIPTION_WORDS = 3
"""Shorter first paragraphs ("See above.") describe nothing."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def described_functions(progress: Progress | None = None) -> list[Record]:
    """Functions without their docstring, each with its docstring's first paragraph as the description.

    The first call for an interpreter reads its library, which takes seconds, and caches the result.

    Args:
        progress: called if the result is not cached.

    Raises:
        DatasetError: the interpreter has no source files.
    """
    pairs = cached_rows(f"stdlib-pairs-{_interpreter()}", lambda: _pairs(progress or _silent))
    return [
        Record(code, None, description, STDLIB, number, {"module": module, "function": name})
        for number, (description, code, module, name) in enumerate(pairs, start=1)
    ]


def rated_functions(progress: Progress | None = None, *, unsafe: str | None = None) -> list[Record]:
    """Functions with or without docstring, each labelled with the highest level of Bandit's findings in its lines, or
    safe.

    The first call for an interpreter scans its library on all cores, and caches the result.

    Args:
        progress: called if the result is not cached.
        unsafe: one label for all levels but safe.

    Raises:
        DatasetError: the interpreter has no source files, or Bandit fails.
    """
    rows = cached_rows(
        f"stdlib-levels-{_interpreter()}-bandit-{version('bandit')}", lambda: _leveled(progress or _silent)
    )
    return [
        Record(
            code,
            unsafe if unsafe is not None and level != "safe" else level,
            None,
            STDLIB,
            number,
            {"module": module, "function": name, "bandit": tests},
        )
        for number, (level, code, module, name, tests) in enumerate(rows, start=1)
    ]


def _silent(done: int, total: int) -> None:
    """No progress is reported."""


def _pairs(report: Progress) -> list[Any]:
    """Rows [description, code, module, function]."""
    rows: dict[str, list[str]] = {}
    files = library_files()
    for done, path in enumerate(files, start=1):
        for function in functions_of(path, library_folder()):
            if (
                len(function.summary.split()) >= MIN_DESCRIPTION_WORDS
                and '"""' not in function.summary
                and not function.summary.startswith(">>>")
            ):
                rows.setdefault(function.code, [function.summary, function.code, function.module, function.name])
        report(done, len(files))
    return list(rows.values())


def _leveled(report: Progress) -> list[Any]:
    """Rows [level, code, module, function, test ids]; safe ones sampled down."""
    from mltrack.records.builtin.bandit_labels import Finding, scan

    files = library_files()
    total = 2 * len(files)  # each is read and scanned
    functions: list[tuple[SourceFunction, int]] = []
    for index, path in enumerate(files):
        functions.extend((function, index) for function in functions_of(path, library_folder()))
        report(index + 1, total)
    findings = scan(files, lambda done: report(len(files) + done, total))
    rows: dict[str, list[Any]] = {}
    for function, index in functions:
        inside: list[Finding] = [
            finding for finding in findings[files[index]] if function.first_line <= finding.line <= function.last_line
        ]
        level = max((finding.level for finding in inside), key=SECURITY_LEVELS.index, default="safe")
        row = [level, function.code, function.module, function.name, sorted({finding.test_id for finding in inside})]
        # the same code in two places: the worse level counts
        before = rows.get(function.code)
        if before is None or SECURITY_LEVELS.index(before[0]) < SECURITY_LEVELS.index(level):
            rows[function.code] = row
    safe = sorted(
        (code for code, row in rows.items() if row[0] == "safe"),
        key=lambda code: hashlib.sha256(code.encode()).digest(),
    )
    left_out = set(safe[SAFE_PER_FINDING * (len(rows) - len(safe)) :])
    return [row for code, row in rows.items() if code not in left_out]


def _interpreter() -> str:
    """Name and version of the interpreter and, since distributions omit modules, the library's path."""
    place = hashlib.sha256(str(library_folder()).encode()).hexdigest()[:8]
    return f"{sys.implementation.name}-{platform.python_version()}-{place}"
