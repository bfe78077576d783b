"""The records that were skipped: how many, why, and their raw text.

Invariant: each one is a line of the file (JSON: file, record, field, problem, raw), written as soon as it is met; only
the first few are kept in memory."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from mltrack.errors import DatasetError

TOLD = 20
"""Number of records that are kept as lines for the user."""


class BadRecords:
    """Collects the records that are skipped.

    Args:
        path: the JSON Lines file, created with the first bad record. None: a temporary file, which `keep` can copy.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path is not None else None
        self.count = 0
        self.lines: list[str] = []
        """One line for each of the first `TOLD` records."""
        self._file: IO[str] | None = None

    def add(self, error: DatasetError, raw: object) -> None:
        """Add a record.

        Raises:
            DatasetError: the file cannot be written.
        """
        self.count += 1
        if len(self.lines) < TOLD:
            self.lines.append(str(error))
        where = {"file": str(error.path), "record": error.record, "field": error.field, "problem": error.problem}
        try:
            if self._file is None:
                if self.path is not None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self.path.open("w", encoding="utf-8")
                else:
                    self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
            self._file.write(_as_json({**where, "raw": raw}, where) + "\n")
            self._file.flush()
        except OSError as problem:
            place = self.path or tempfile.gettempdir()
            raise DatasetError(f"cannot be written: {problem.strerror}", path=place) from None

    def told(self, source: str) -> list[str]:
        """One line for each of the first records skipped in `source`, and one for the rest."""
        rest = self.count - len(self.lines)
        return [f"skipped: {line}" for line in self.lines] + (
            [f"skipped: {rest:,} further records of {source}"] if rest else []
        )

    def report(self, source: str, side: str, notice: Callable[[str], None], folder: str | Path = ".") -> None:
        """Write the records skipped in `source` to bad_records-<side>.jsonl in the folder, and report them.

        Raises:
            DatasetError: the file cannot be written.
        """
        for line in self.told(source):
            notice(line)
        if (path := self.keep(Path(folder) / f"bad_records-{side}.jsonl")) is not None:
            notice(f"skipped {self.count:,} of the {side} records; their reasons are in {path}")

    def keep(self, path: str | Path) -> Path | None:
        """Copy the lines to a file; None if there is no bad record.

        Raises:
            DatasetError: the file cannot be written.
        """
        if self._file is None:
            return None
        target = Path(path)
        try:
            if self.path is not None:
                shutil.copyfile(self.path, target)
                return target
            self._file.seek(0)
            with target.open("w", encoding="utf-8") as copy:
                shutil.copyfileobj(self._file, copy)
        except OSError as problem:
            raise DatasetError(f"cannot be written: {problem.strerror}", path=target) from None
        return target


def _as_json(line: Mapping[str, object], without: Mapping[str, object]) -> str:
    try:
        return json.dumps(line, default=str)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(without)
