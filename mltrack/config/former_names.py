"""Names that options had in mltrack 0.1: still accepted as arguments and attributes, on the command line and in saved
configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from mltrack.config.options import OPTIONS

FORMER_NAMES = {one.formerly: name for name, one in OPTIONS.items() if one.formerly}
"""The current name by the one of 0.1."""
_T = TypeVar("_T")


def current_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same values under their current names; if both names are given, the former name's value counts."""
    former = {FORMER_NAMES[name]: value for name, value in given.items() if name in FORMER_NAMES}
    return {name: value for name, value in given.items() if name not in FORMER_NAMES} | former


def accepts_former_names(kind: type[_T]) -> type[_T]:
    """A class decorator: the dataclass also takes the former names of its options, as arguments and as attributes."""
    made: Any = kind.__init__

    @wraps(made)
    def init(self: Any, *arguments: Any, **given: Any) -> None:
        made(self, *arguments, **current_names(given))

    kind.__init__ = init  # type: ignore[method-assign]
    held = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for former, name in FORMER_NAMES.items():
        if name in held:
            setattr(kind, former, _alias(name))
    return kind


def _alias(name: str) -> property:
    return property(
        lambda self: getattr(self, name),
        lambda self, value: setattr(self, name, value),
        doc=f"`{name}`, under its name of mltrack 0.1.",
    )
