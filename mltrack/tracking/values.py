"""Converts the values of a user's loop to what the journal can hold: numbers, whole numbers, text.

Invariant: any value gives a plain Python value or a TrackingError that names the argument and the value."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from mltrack.errors import MltrackError, TrackingError
from mltrack.journal import records, shown
from mltrack.journal.shape import LARGEST

_NO_NUMBER = (TypeError, ValueError, ArithmeticError, RuntimeError)
"""What Python, numpy and torch raise when a value is not a number."""


def as_number(name: str, value: Any, error: type[MltrackError] = TrackingError) -> float:
    """A Python number, a Decimal, a numpy scalar or a tensor of one element as a float.

    Raises:
        TrackingError, or `error`: anything else; the message names the metric.
    """
    try:
        return float(_plain(value))
    except _NO_NUMBER:
        raise error(f"metric '{name}' must be one number, not {shown(value)}") from None


def whole_number(name: str, value: Any, error: type[MltrackError] = TrackingError) -> int:
    """A whole number of any kind that `as_number` takes, 2.0 included, as an int.

    Raises:
        TrackingError, or `error`: a fraction, a NaN, a boolean, anything else, or more than 64 bits; the message names
            the argument.
    """
    try:
        plain = _plain(value)
        number = int(plain)
        if number != plain:
            raise ValueError
    except _NO_NUMBER:
        raise error(f"{name} must be a whole number, not {shown(value)}") from None
    if not -LARGEST <= number <= LARGEST:
        raise error(
            f"{name} must be a whole number of 64 bits, which is what MLflow can hold, not"
            f" {shown(number).partition(' (')[0]}"
        )
    return number


def as_text(what: str, value: Any) -> str:
    """`str(value)`.

    Raises:
        TrackingError: it cannot be converted, such as a number with too many digits for Python; the message begins with
            `what`.
    """
    try:
        return str(value)
    except Exception as error:  # a user's own class may raise anything
        raise TrackingError(
            f"{what} must be convertible to text, which {shown(value)} is not: {type(error).__name__}"
        ) from None


def texts(kind: str, values: Any) -> dict[str, str]:
    """{name: text} of params or tags.

    Raises:
        TrackingError: it is not a mapping, a name is not text, or a value cannot be converted.
    """
    return {
        checked_name(kind, name): as_text(f"{kind} '{name}'", value)
        for name, value in checked_mapping(kind, values).items()
    }


def checked_mapping(kind: str, values: Any) -> Mapping[str, Any]:
    """`values`. Raises TrackingError if it is not a mapping."""
    if not isinstance(values, Mapping):
        raise TrackingError(f"{kind}s must be a dictionary of names and values, not {shown(values)}")
    return values


def checked_list(kind: str, values: Any) -> list[Any]:
    """`values` as a list. Raises TrackingError if they are not a list or similar."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        raise TrackingError(f"{kind}s must be a list, not {shown(values)}")
    return list(values)


def checked_name(kind: str, name: Any, error: type[MltrackError] = TrackingError) -> str:
    """`name`. Raises TrackingError, or `error`, if it is not text."""
    if not isinstance(name, str):
        raise error(f"{kind} name must be text, not {shown(name)}")
    return name


def folder_name(argument: str, path: Any) -> str:
    """A relative path of an artifact folder in the stores' form: without `.` and empty parts, the root as "".

    Raises:
        TrackingError: it is not text, begins with `/`, or contains `..` or a null character.
    """
    if not isinstance(path, str) or path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise TrackingError(f"{argument} must be a relative path without '..', not {shown(path)}")
    return PurePosixPath(path).as_posix() if PurePosixPath(path).parts else ""


def checked(record: records.Record) -> records.Record:
    """A record that can be written and read back: scalars of numpy and torch as Python's, paths as text.

    Raises:
        TrackingError: JSON cannot hold a value, or it is not of the type that readers of the record rely on; the
            message says where it is.
    """
    try:
        held: records.Record = _as_json(record, record["type"])
    except RecursionError:
        raise TrackingError(
            f"{record['type']} holds objects that are nested too deeply, or in themselves, which JSON cannot hold"
        ) from None
    if wrong := records.problem(held):
        raise TrackingError(wrong)
    return held


def _as_json(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {checked_name(where, name): _as_json(one, f"{where}.{name}") for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one, f"{where}[{place}]") for place, one in enumerate(value)]
    try:
        held = (
            os.fsdecode(value) if isinstance(value, os.PathLike) else value.item() if hasattr(value, "item") else value
        )
        json.dumps(held)
    except _NO_NUMBER:
        raise TrackingError(f"{where} must be what JSON can hold, not {shown(value)}") from None
    return held


def _plain(value: Any) -> Any:
    """The Python number in a scalar of numpy or torch. Raises TypeError if it is not a number."""
    held = value.item() if hasattr(value, "item") else value
    if held is None or isinstance(held, str | bytes | bool):
        raise TypeError
    return held
