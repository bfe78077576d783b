"""A journal's metrics as JSON and CSV files, written straight from the journal in constant memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mltrack.journal import JournalReader
from mltrack.tracking.statistics import MetricEntry

COLUMNS = ("name", "value", "step", "epoch", "time_ms")


def entries_of(record: dict[str, Any]) -> Iterator[MetricEntry]:
    """The points of one journal record; none if it holds no metrics."""
    if record.get("type") != "metrics":
        return
    for values in (record["values"], record["timing"]):
        for name, value in values.items():
            yield MetricEntry(name, value, record["step"], record["epoch"], record["time_ms"])


def read_entries(journal: Path) -> Iterator[MetricEntry]:
    """Every point of a journal in the order of logging."""
    for record in JournalReader(journal).read_new():
        yield from entries_of(record)


def write_json_export(journal: Path, summary: dict[str, Any], path: Path) -> None:
    """`{"summary": ..., "entries": [...]}`; a NaN or an infinity is written as Python's json does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"summary": ' + json.dumps(summary) + ',\n"entries": [')
        separator = "\n"
        for entry in read_entries(journal):
            file.write(separator + json.dumps(asdict(entry)))
            separator = ",\n"
        file.write("\n]}\n")


def write_csv_export(journal: Path, path: Path) -> None:
    """One line per point; columns name, value, step, epoch, time_ms."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for entry in read_entries(journal):
            writer.writerow([getattr(entry, column) for column in COLUMNS])
