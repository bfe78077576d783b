"""One record: the meaning of one line of a data file for a task.

Invariant: every `Record` is valid: its text is not blank and can be encoded, and its label (or description) exists.

    record = check_record({"code": "eval(x)", "label": "high"}, task, "data.jsonl", 1)
    record.location        # "data.jsonl: record 1"
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from mltrack.errors import DatasetError, did_you_mean, one_of

SECURITY_LEVELS = ("safe", "low", "medium", "high", "critical")
"""Levels of danger, in ascending order."""

PROMPT_TEMPLATE = '"""{description}"""\n'
"""The text before a completion."""

MAX_TEXT_BYTES = 8 << 20
"""Limit of a code or a description in UTF-8. A record is a function or a file; anything longer is a mistake, and its
tokens would not fit into memory.
"""

MAX_LABEL_CHARACTERS = 200
"""Limit of a class name."""

_FLOAT = re.compile(r"-?[0-9]+(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)")
"""A number as pandas writes it in a float column; whole numbers too, if another value is missing."""

_SHOWN = 40
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Record:
    """One example of a file."""

    text: str
    """The code: the text to classify, or the completion to learn."""
    label: str | None
    """The class or other target as text; None if the code is the target."""
    description: str | None
    """What the code does; None if the task does not use it."""
    file: str
    """The file as the user named it, or `stdlib`."""
    number: int
    """Number of the record in its file; the first is 1. In JSON Lines it is the line's number."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The record's other columns, such as `tests`."""

    @property
    def location(self) -> str:
        """The record's place, for messages: "file: record N"."""
        return f"{self.file}: record {self.number}"

    @property
    def content_key(self) -> str:
        """sha256 (hex) of description and text: records with the same key are duplicates."""
        return hashlib.sha256(f"{self.description or ''}\0{self.text}".encode()).hexdigest()


def content_digest(records: Iterable[Record]) -> str:
    """sha256 (hex) of the contents and labels of all records, in any order."""
    parts = sorted(f"{record.content_key}\0{record.label or ''}" for record in records)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Parser(Protocol):
    """The part of a task that says what the columns of a record mean."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns that a record must have."""

    def parse(self, raw: RawRecord) -> Record:
        """The record."""


class RawRecord:
    """One object of a data file that has all fields; a task reads them through checks.

    Args:
        values: column names to values.
        names: the column of each field.
        labels: the class of each label. If given, a label must be one of its keys or classes.
    """

    def __init__(
        self, values: Mapping[Any, Any], names: Mapping[str, str], labels: Mapping[str, str], file: str, number: int
    ):
        self._values, self._names, self._labels, self._file, self._number = values, names, labels, file, number

    def value(self, field: str) -> Any:
        """The field's value in the file."""
        return self._values[self._names[field]]

    def text(self, field: str) -> str:
        """A field that must be text and not blank.

        Raises:
            DatasetError: it is not.
        """
        return _checked_text(self.value(field), self._names[field], self._file, self._number)

    def label(self, field: str, classes: tuple[str, ...] = ()) -> str:
        """A field that names a class: text, a whole number, true or false.

        Args:
            classes: the allowed ones; empty: any.

        Raises:
            DatasetError: it is not a class.
        """
        name = self._names[field]
        label = _checked_label(self.value(field), name, classes, self._file, self._number, self._labels)
        if classes and label not in classes:
            raise _label_refused(label, classes, self._file, self._number, name)
        return label

    def refused(self, field: str, problem: str) -> DatasetError:
        """The error for a field that cannot be used; `problem` says what it must be and what it is."""
        return DatasetError(problem, path=self._file, record=self._number, field=self._names[field])

    def record(self, text: str, *, label: str | None = None, description: str | None = None) -> Record:
        """The record, with all other columns as its `extra`."""
        used = set(self._names.values())
        extra = {
            str(key): _kept(value, str(key), self._file, self._number)
            for key, value in self._values.items()
            if key not in used
        }
        return Record(text, label, description, self._file, self._number, extra)


def check_record(
    raw: object,
    task: Parser,
    file: str,
    number: int,
    *,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Record:
    """The record of one object of a data file.

    Args:
        raw: a mapping of column names to values.
        task: names the fields and parses them.
        file: the file's name, for messages.
        number: the record's number in it; the first is 1.
        columns: the columns of fields with another name; messages name the column.
        labels: the class of each label.

    Raises:
        DatasetError: a field is missing, blank, too long or of a wrong type, or the label is not one of the task's.
    """
    names = {field: (columns or {}).get(field, field) for field in task.fields}
    if not isinstance(raw, Mapping):
        raise DatasetError(
            f"must be an object with the fields {' and '.join(names.values())}, not {_shown(raw)}",
            path=file,
            record=number,
        )
    for wanted_field, name in names.items():
        if raw.get(name) is None:
            kind = "text, a whole number, true or false" if wanted_field == "label" else "text that is not blank"
            if name in raw:
                problem = f"must be {kind}, not null"
            else:
                problem = f"is missing and must be {kind}; the record has the fields {listed(raw)}"
                if len(raw) > 1 and name == wanted_field:
                    problem += f"; name another column with columns={wanted_field}=COLUMN"
            raise DatasetError(problem, path=file, record=number, field=name)
    return task.parse(RawRecord(raw, names, labels or {}, file, number))


def _kept(value: object, name: str, file: str, number: int) -> Any:
    """Another column's value as JSON has it, so that it is the same in a list and in a table."""
    if type(value) in _PLAIN:
        return value
    try:
        return json.loads(json.dumps(value, default=str))
    except (ValueError, TypeError, RecursionError):
        raise DatasetError(
            f"must be a value that JSON can hold, not {_shown(value)}, which is too deeply nested or contains itself",
            path=file,
            record=number,
            field=name,
        ) from None


def listed(raw: Mapping[Any, Any]) -> str:
    """The names of a record's fields, for messages."""
    names = [str(name) if len(str(name)) <= _SHOWN else str(name)[: _SHOWN - 3] + "..." for name in list(raw)[:10]]
    return " ".join((", ".join(names) + (", ..." if len(raw) > 10 else "") or "(none)").split())


def label_value(label: str) -> str:
    """The same text for labels of equal value: true and TRUE, 1 and 1.0."""
    return label.lower() if label.lower() in ("true", "false") else _as_whole(label)


def _as_whole(label: str) -> str:
    """Whole floats as whole numbers, as in JSON Lines and Parquet, so that a class is the same in every format."""
    return str(int(float(label))) if _FLOAT.fullmatch(label) and float(label).is_integer() else label


def label_outside(record: Record, accepted: Iterable[str], column: str = "label") -> DatasetError:
    """The error for a record whose label is not one of the accepted ones."""
    return _label_refused(str(record.label), accepted, record.file, record.number, column)


def num_bytes(text: str, file: str, number: int | None = None, name: str | None = None) -> int:
    """Length of a text in UTF-8.

    Raises:
        DatasetError: it cannot be encoded, so no tokenizer could read it.
    """
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        problem = f"must be Unicode text, but has half a surrogate pair ({code}) at offset {error.start}"
        raise DatasetError(problem, path=file, record=number, field=name) from None


def _label_refused(label: str, accepted: Iterable[str], file: str, number: int, name: str = "label") -> DatasetError:
    words = list(accepted)
    close = label.lower() if label.lower() in words else label
    few = words if len(words) <= 20 else [*words[:19], f"... ({len(words)} in all)"]
    return DatasetError(
        f"must be {one_of(few)}, not {_shown(label)}{did_you_mean(close, few)}", path=file, record=number, field=name
    )


def _checked_text(value: object, name: str, file: str, number: int) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"must be text, not {_shown(value)}", path=file, record=number, field=name)
    if not value.strip():
        raise DatasetError(f"must not be blank, but is {_shown(value)}", path=file, record=number, field=name)
    if "\0" in value:
        raise DatasetError(
            f"must be text without NUL characters, but has one at offset {value.index(chr(0))}",
            path=file,
            record=number,
            field=name,
        )
    length = num_bytes(value, file, number, name)
    if length > MAX_TEXT_BYTES:
        raise DatasetError(
            f"must be text of at most {MAX_TEXT_BYTES:,} bytes, not {length:,}",
            path=file,
            record=number,
            field=name,
        )
    return value


def _checked_label(
    value: object, name: str, classes: tuple[str, ...], file: str, number: int, labels: Mapping[str, str]
) -> str:
    if (
        isinstance(value, (float, Decimal)) and value == value // 1
    ):  # a column of whole numbers with a missing value is read as floats
        value = int(value)
    if isinstance(value, (float, Decimal)) and labels and str(value) in labels:
        value = str(value)
    if not isinstance(value, (str, int)):
        raise DatasetError(
            f"must be text, a whole number, true or false, not {_shown(value)}", path=file, record=number, field=name
        )
    written = _checked_text(str(value), name, file, number).strip()
    label = _as_whole(written)
    if not label.isprintable():
        raise DatasetError(
            f"must be a class name on one line, without control characters, not {_shown(label)}",
            path=file,
            record=number,
            field=name,
        )
    if len(label) > MAX_LABEL_CHARACTERS:
        problem = (
            f"must be a class name of at most {MAX_LABEL_CHARACTERS} characters, not {len(label):,}: {_shown(label)}"
        )
        raise DatasetError(problem, path=file, record=number, field=name)
    if labels:
        label = _meant(
            written if written in labels else label, isinstance(value, bool), labels, classes, name, file, number
        )
    return label


def _meant(
    label: str, is_bool: bool, labels: Mapping[str, str], classes: tuple[str, ...], name: str, file: str, number: int
) -> str:
    for spelling in (label, label.lower()) if is_bool else (label,):  # True as Python writes it, true as JSON does
        if spelling in labels:
            return labels[spelling]
    classes = classes or tuple(labels.values())
    if label in classes:
        return label
    raise _label_refused(label, dict.fromkeys([*labels, *classes]), file, number, name)


_NAMES = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    type(None): "null",
    bytes: "bytes",
}
_SHORT = reprlib.Repr()
"""Bounded in depth and length."""
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 3, 12, 8, _SHOWN


def _shown(value: object) -> str:
    """A value in a message: its kind and its beginning, on one line."""
    if value is None:
        return "null"
    text = (
        repr(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
        if isinstance(value, (str, bytes))
        else _SHORT.repr(value)
    )
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    name = _NAMES.get(type(value), type(value).__name__)
    return text if isinstance(value, (str, bool)) else f"{' '.join(text.split())} ({name})"
