"""The records of a data path, checked one by one.

Invariant: a record is either yielded or reported to `on_skip`; none is lost silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from mltrack.config import OPTIONS
from mltrack.config.pairs import parse_pairs
from mltrack.errors import ConfigurationError, DatasetError
from mltrack.records.readers.class_names import Names, shared_names
from mltrack.records.readers.paths import Source, find_sources
from mltrack.records.readers.raw import Raw
from mltrack.records.record import Record, check_record
from mltrack.tasks.names import task_named

if TYPE_CHECKING:
    from mltrack.tasks.contract import Task

OnSkip = Callable[[DatasetError, object], None]
"""Called for a skipped record with the error and the raw record (the object, or the beginning of its text)."""

Pairs = Mapping[str, str] | str | None


def read_records(
    path: str | Path,
    task: str | Task,
    *,
    columns: Pairs = None,
    labels: Pairs = None,
    on_bad_record: str = "stop",
    on_skip: OnSkip | None = None,
) -> list[Record]:
    """All records of a data path, in order; see `iterate_records`."""
    return list(
        iterate_records(path, task, columns=columns, labels=labels, on_bad_record=on_bad_record, on_skip=on_skip)
    )


def iterate_records(
    path: str | Path,
    task: str | Task,
    *,
    columns: Pairs = None,
    labels: Pairs = None,
    on_bad_record: str = "stop",
    on_skip: OnSkip | None = None,
    class_names: bool = True,
) -> Iterator[Record]:
    """The records of a data path, in order and lazily.

    Args:
        path: as `find_sources` accepts it; the extensions give the formats.
        task: a task or its name.
        columns: the columns of fields with another name, {"code": "func"} or "code=func".
        labels: the classes of the data's labels, {"0": "safe"} or "0=safe"; see `check_record`.
        on_bad_record: "stop" raises at the first bad record, "skip" skips it.
        on_skip: called for each skipped record.
        class_names: use the class names of a Parquet file's schema, unless `labels` maps the numbers; False: use the
            numbers.

    Raises:
        DatasetError: a file cannot be read or parsed, has no records, or has a bad one.
        ConfigurationError: an unknown task or `on_bad_record`, or invalid pairs.
    """
    kind = task_named(task)
    on_bad_record = OPTIONS["on_bad_record"].check(on_bad_record)
    names, classes = as_pairs("columns", columns), as_pairs("labels", labels)
    num_good, num_bad = 0, 0
    first_bad: DatasetError | None = None
    sources = find_sources(path)
    shared = (
        _shared_names(sources, names.get("label", "label"), classes) if class_names and "label" in kind.fields else None
    )
    for source in sources:
        with closing(
            source.raw_records(shared)
        ) as raws:  # close at once: a file is open, and the csv module's limit is changed
            for raw in raws:
                try:
                    if isinstance(raw.value, DatasetError):
                        raise raw.value
                    record = check_record(raw.value, kind, source.name, raw.number, columns=names, labels=classes)
                except DatasetError as error:
                    if on_bad_record == "stop":
                        raise
                    num_bad += 1
                    first_bad = first_bad or error
                    if on_skip is not None:
                        on_skip(error, _what_stood(raw))
                    continue
                num_good += 1
                yield record
    if first_bad is not None and not num_good:
        raise DatasetError(f"none of the {num_bad} records is good; the first: {first_bad}", path=path)
    if not num_good:
        raise DatasetError("has no records; at least one is needed", path=path)


def _shared_names(sources: list[Source], column: str, labels: Mapping[str, str]) -> Names | None:
    """The class names for Parquet files without any; None if no names are wanted."""
    found = {source.name: source.class_names() for source in sources if source.format == ".parquet"}
    of_label = {name for names, _ in found.values() for name in names.get(column, ())}
    if labels and of_label and of_label.isdisjoint((*labels, *labels.values())):
        return None
    return shared_names(found)


def as_pairs(name: str, value: Pairs) -> dict[str, str]:
    """The pairs of an option given as text or as a mapping.

    Raises:
        ConfigurationError: the text is not a list of pairs.
    """
    try:
        return (
            parse_pairs(value)
            if isinstance(value, str)
            else {str(key): str(meant) for key, meant in (value or {}).items()}
        )
    except (ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"{name} must be NAME=VALUE,NAME=VALUE or a mapping, not {value!r} ({error})"
        ) from None


def _what_stood(raw: Raw) -> object:
    return raw.text if raw.text is not None else raw.value
