"""Pairs of names and values as one word of a command line: `code=func,label=target`, or a JSON object if a name holds a
comma.

Invariant: `parse_pairs(format_pairs(pairs))` gives the same pairs in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping


def parse_pairs(word: str) -> dict[str, str]:
    """The pairs of a word; blanks around names are ignored.

    Raises:
        ValueError: the word is not a list of pairs, a name is empty, or a name occurs twice; the message says which.
    """
    text = word.strip()
    if text.startswith("{"):
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not all(isinstance(value, (str, int)) for _, value in pairs):
            raise ValueError("a value is neither text nor a whole number")
        parts = [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in pairs]
    else:
        parts = []
        for part in text.split(","):
            name, sign, value = part.partition("=")
            if not sign:
                raise ValueError(f"{part.strip()!r} has no '='")
            parts.append((name.strip(), value.strip()))
    found: dict[str, str] = {}
    for name, value in parts:
        if not name or not value:
            raise ValueError(f"an empty name in {f'{name}={value}'!r}")
        if name in found:
            raise ValueError(f"{name!r} stands twice")
        found[name] = value
    if not found:
        raise ValueError("nothing in it")
    return found


def format_pairs(pairs: Mapping[str, str]) -> str:
    """The word that means these pairs."""
    plain = all(
        part == part.strip() and not set(part) & set(",=") for pair in pairs.items() for part in pair
    ) and not next(iter(pairs), "").startswith("{")
    return ",".join(f"{name}={value}" for name, value in pairs.items()) if plain else json.dumps(dict(pairs))
