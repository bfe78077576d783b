"""Checks values that were read from a file against type hints.

Invariant: a value without a misfit satisfies the hint; no value makes the check itself fail.

    misfit({"step": "2"}, {"step": int}, "metrics")     # "metrics.step is '2' (str), not a whole number"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

LARGEST = 2**63 - 1
"""The largest whole number of either sign: MLflow and every database behind it hold 64 bits."""
_SAID = {int: "a whole number of 64 bits", float: "a number", str: "text", bool: "true or false", type(None): "nothing"}
_SHOWN = 80


def misfit(value: Any, hint: Any, where: str) -> str | None:
    """The first part of `value` that does not satisfy `hint`, in one line with its place; None if all does.

    Args:
        hint: a type, a union, `dict[K, V]`, `list[V]`, `Literal`, `Any`; {name: hint} for an object that has these
            names and maybe more; [hint] for a list.
        where: the name of the value.
    """
    if hint is Any or (hint is float and type(value) is float):
        return None
    if isinstance(hint, dict):
        if not isinstance(value, dict):
            return _line(where, value, "an object")
        for name, inner in hint.items():
            if name not in value and not _fits(None, inner):
                return f"{where} has no {name}"
            if problem := misfit(value.get(name), inner, f"{where}.{name}"):
                return problem
        return None
    if isinstance(hint, list) or get_origin(hint) is list:
        (inner,) = hint if isinstance(hint, list) else get_args(hint)
        if not isinstance(value, list):
            return _line(where, value, "a list")
        return next(
            (problem for place, one in enumerate(value) if (problem := misfit(one, inner, f"{where}[{place}]"))), None
        )
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            return _line(where, value, "an object")
        of_key, of_value = get_args(hint)
        for key, one in value.items():
            if type(key) is not of_key and (problem := misfit(key, of_key, f"a name in {where}")):
                return problem
            if problem := misfit(one, of_value, f"{where}[{key!r}]"):
                return problem
        return None
    return None if _fits(value, hint) else _line(where, value, said(hint))


def said(hint: Any) -> str:
    """A type hint in words."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return _SAID.get(hint) or " or ".join(_SAID.get(one, str(one)) for one in get_args(hint)) or str(hint)


def shown(value: Any) -> str:
    """A value of any kind for a line of text, with its type: "2.5 (float)"."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number with too many digits for Python, or an object whose repr fails
        text = "?"
    return f"{text if len(text) <= _SHOWN else text[:_SHOWN] + '...'} ({type(value).__name__})"


def without_misfits(
    content: Mapping[str, Any], hints: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], str | None]:
    """The part of `content` that `hints` names, and the first misfit in it."""
    known = {name: value for name, value in content.items() if name in hints}
    problems = (misfit(value, hints[name], f"{where}.{name}") for name, value in known.items())
    return known, next(filter(None, problems), None)


def _fits(value: Any, hint: Any) -> bool:
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
    if hint is float:
        return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and _is_small(value))
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if isinstance(hint, type) and not get_args(hint):
        return isinstance(value, hint)
    return not isinstance(hint, dict | list) and any(misfit(value, one, "") is None for one in get_args(hint))


def _is_small(value: int) -> bool:
    try:
        return float(value) == float(value)
    except OverflowError:
        return False


def _line(where: str, value: Any, wanted: str) -> str:
    return f"{where} is {shown(value)}, not {wanted}"
