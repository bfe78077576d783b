"""Class names in a file's schema, as the library `datasets` writes those of a ClassLabel column into Parquet.

Invariant: a class has one name in all files of a data path: a Parquet file without names takes those of the other
files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mltrack.errors import DatasetError
from mltrack.records.readers.raw import Raw

Names = dict[str, list[str]]
"""Class names by column, in the order of their numbers."""


def names_of(metadata: Mapping[bytes, bytes] | None) -> Names:
    """The class names in the metadata of an Arrow schema; empty if there are none or they cannot be read."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        described = {
            str(column): feature["names"]
            for column, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {
        column: names
        for column, names in described.items()
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }


def shared_names(found: Mapping[str, tuple[Names, list[str]]]) -> Names:
    """The names for files without any.

    Args:
        found: names and columns by file.

    Raises:
        DatasetError: files have different class names, and one has none.
    """
    shared: Names = {}
    for column in dict.fromkeys(column for names, _ in found.values() for column in names):
        named = {file: names[column] for file, (names, _) in found.items() if column in names}
        without = [file for file, (names, columns) in found.items() if column in columns and column not in names]
        first = next(iter(named.values()))
        if without and any(names != first for names in named.values()):
            raise DatasetError(
                f"has no class names, and those of {', '.join(list(named)[:2])} differ; add the names",
                path=without[0],
                field=column,
            )
        shared[column] = first
    return shared


def named(raw: Raw, names: Names) -> Raw:
    """A row with class names instead of numbers; an unknown number becomes null."""
    row: Any = raw.value
    if isinstance(row, dict):
        for column, of_column in names.items():
            value = row.get(column)
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool):
                row[column] = of_column[value] if 0 <= value < len(of_column) else None
    return raw
