"""Finds the Python records that this interpreter cannot parse. Other languages are ignored.

Invariant: the answer is a pure function of the examined records and of the interpreter's version; for many records it
is cached.

    python, unparsable = parsed(records, keys_of(records))        # 1_987, [(41, "line 3: invalid syntax")]
"""

from __future__ import annotations

import ast
import platform
import textwrap
import warnings
from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from mltrack.records.builtin.stdlib_source import STDLIB
from mltrack.records.record import Record
from mltrack.records.row_cache import cached_rows
from mltrack.records.similar.language import must_be_python, said_language
from mltrack.records.similar.normalize import looks_like_python
from mltrack.records.table import files_of

FORMAT_VERSION = 3
"""Part of the cache's name; raise it with any change of the answer."""

MOST_PARSED = 5000
"""Of more records, this many are examined, evenly spread."""

_LONGEST = 100_000  # characters; longer code is not parsed
_CACHED_FROM = 1000


def parsed(records: Sequence[Record], keys: np.ndarray) -> tuple[int, list[tuple[int, str]]]:
    """(number of Python records, those that do not parse: index and reason).

    Args:
        keys: the records' content keys, V16 [N].
    """
    chosen = np.unique(np.linspace(0, len(records) - 1, min(len(records), MOST_PARSED)).astype(int))
    parse = files_of(records) != [STDLIB]  # it comes from this interpreter

    def look() -> list[list[int | str]]:
        return _looked_at(records, chosen.tolist(), parse=parse)

    if len(chosen) < _CACHED_FROM:
        rows = look()
    else:
        said = repr([said_language(records[index]) for index in chosen.tolist()])
        state = sha256(keys[chosen].tobytes() + said.encode()).hexdigest()[:32]
        rows = cached_rows(
            f"syntax-{state}-{'parsed' if parse else STDLIB}-python{platform.python_version()}-v{FORMAT_VERSION}", look
        )
    (python,), *unparsable = rows
    return int(python), [(int(chosen[position]), str(why)) for position, why in unparsable]


def _looked_at(records: Sequence[Record], chosen: Sequence[int], *, parse: bool) -> list[list[int | str]]:
    """[number of Python records], then [position among the chosen, reason] for each that does not parse."""
    python = 0
    unparsable: list[list[int | str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about literals do not matter here
        for position, index in enumerate(chosen):
            record = records[index]
            said = said_language(record)
            if len(record.text) > _LONGEST or said is False or not (said or looks_like_python(record.text)):
                continue
            why = _syntax_error(record.text) if parse else None
            if why is not None and not (said or must_be_python(record.text)):
                continue
            python += 1
            if why is not None:
                unparsable.append([position, why])
    return [[python], *unparsable]


def _syntax_error(code: str) -> str | None:
    """Why Python cannot parse it, or None; an indented method is no error."""
    try:
        ast.parse(code if not code[:1].isspace() else textwrap.dedent(code.lstrip("\r\n")))
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return type(error).__name__
    return None
