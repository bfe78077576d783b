"""One record: what a line of a data file means for a task.

Invariant: a `Record` that exists is good: its text is not blank and can be encoded, its label (or its description) is there.

    record = check_record({"code": "eval(x)", "label": "high"}, "security_classification", "data.jsonl", 1)
    record.place        # "data.jsonl: record 1"
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mltrack.config import TaskType
from mltrack.errors import ConfigurationError, DatasetError, did_you_mean

SECURITY_LEVELS = ("safe", "low", "medium", "high", "critical")
"""The classes of security_classification, in the order of their indices."""

PROMPT_TEMPLATE = '"""{description}"""\n'
"""What stands before the completion in code_generation."""

_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Record:
    """One example, as its file has it."""

    text: str
    """The code: what is classified, or the completion that is learned."""
    label: str | None
    """The class; None for code_generation."""
    description: str | None
    """What the code does; None for the classifications."""
    file: str
    """The file as the user named it, or `stdlib`."""
    number: int
    """Number of the record in its file; the first is 1. In JSON Lines it is the line's number."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The record's other columns, such as `tests`."""

    @property
    def place(self) -> str:
        """Where the record stands, for messages: "file: record N"."""
        return f"{self.file}: record {self.number}"

    @property
    def content_key(self) -> str:
        """sha256 (hex) of description and text: two records with the same key are duplicates."""
        return hashlib.sha256(f"{self.description or ''}\0{self.text}".encode()).hexdigest()


def content_digest(records: Iterable[Record]) -> str:
    """sha256 (hex) of the contents and labels of all records, whatever their order."""
    parts = sorted(f"{record.content_key}\0{record.label or ''}" for record in records)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def as_task(task: str) -> TaskType:
    """The task of that name.

    Raises:
        ConfigurationError: there is none; the message lists those that are.
    """
    try:
        return TaskType(task)
    except ValueError:
        raise ConfigurationError(f"task: seen {task!r}; {did_you_mean(str(task), [t.value for t in TaskType])}") from None


def check_record(raw: object, task: str, file: str, number: int) -> Record:
    """The record that one object of a data file means.

    Args:
        raw: a mapping of column names to values.
        task: a `TaskType` or its name; it decides which fields are read.
        file: the file's name, for messages.
        number: the record's number in it; the first is 1.

    Raises:
        DatasetError: a field is missing, blank or of a wrong type, or the label is none of the task's.
    """
    kind = as_task(task)
    wanted = ("code", "label") if kind.is_classification else ("description", "code")
    if not isinstance(raw, Mapping):
        raise DatasetError(f"seen {_shown(raw)}; accepted: an object with the fields {' and '.join(wanted)}", path=file, record=number)
    for name in wanted:
        if raw.get(name) is None:
            seen = "seen null" if name in raw else f"missing; seen the fields {', '.join(map(str, raw)) or '(none)'}"
            accepted = "text, a whole number, true or false" if name == "label" else "text that is not blank"
            raise DatasetError(f"{seen}; accepted: {accepted}", path=file, record=number, field=name)
    text = _checked_text(raw["code"], "code", file, number)
    label = _checked_label(raw["label"], kind, file, number) if kind.is_classification else None
    description = None if kind.is_classification else _checked_text(raw["description"], "description", file, number)
    return Record(text, label, description, file, number, {str(key): value for key, value in raw.items() if key not in wanted})


def label_outside(record: Record, accepted: Iterable[str]) -> DatasetError:
    """The error for a record whose label is none of the accepted ones."""
    return _label_refused(str(record.label), accepted, record.file, record.number)


def _label_refused(label: str, accepted: Iterable[str], file: str, number: int) -> DatasetError:
    words = list(accepted)
    close = label.lower() if label.lower() in words else label
    return DatasetError(f"seen {_shown(label)}; {did_you_mean(close, words)}", path=file, record=number, field="label")


def _checked_text(value: object, name: str, file: str, number: int) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"seen {_shown(value)}; accepted: text", path=file, record=number, field=name)
    if not value.strip():
        raise DatasetError(f"seen {_shown(value)}; accepted: text that is not blank", path=file, record=number, field=name)
    if "\0" in value:
        raise DatasetError(f"seen a NUL character at offset {value.index(chr(0))}; accepted: text without NUL", path=file, record=number, field=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(value[error.start]):04x}"
        raise DatasetError(
            f"seen half a surrogate pair ({code}) at offset {error.start}; accepted: Unicode text", path=file, record=number, field=name
        ) from None
    return value


def _checked_label(value: object, kind: TaskType, file: str, number: int) -> str:
    if not isinstance(value, (str, int)):
        raise DatasetError(f"seen {_shown(value)}; accepted: text, a whole number, true or false", path=file, record=number, field="label")
    label = _checked_text(str(value), "label", file, number).strip()
    if kind is TaskType.SECURITY_CLASSIFICATION and label not in SECURITY_LEVELS:
        raise _label_refused(label, SECURITY_LEVELS, file, number)
    return label


_NAMES = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object", type(None): "null", bytes: "bytes"}


def _shown(value: object) -> str:
    """A value in a message: its kind and its beginning, on one line."""
    if value is None:
        return "null"
    text = repr(value)
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    name = _NAMES.get(type(value), type(value).__name__)
    return text if isinstance(value, (str, bool)) else f"{text} ({name})"
