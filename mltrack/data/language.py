"""Whether a record is Python: what it says itself, else what its code cannot be without being Python.

Invariant: the answer is a pure function of the record. Of code that no parser of Python takes, only what is written as
a Python block counts; a line of another language among it settles the question."""

from __future__ import annotations

import re

from mltrack.data.normalize import without_comments_and_strings
from mltrack.data.records import Record

_LANGUAGE_FIELDS = ("language", "lang", "programming_language")
_FILE_FIELDS = ("path", "file", "filename", "file_name", "file_path", "filepath")
_PYTHON = re.compile(r"\A(?:i?python|c?python|py)[ ]?[0-9.]*\Z", re.IGNORECASE)
_PYTHON_FILE = re.compile(r"\.(?:py|pyi|pyw)\Z", re.IGNORECASE)
_OTHER_FILE = re.compile(r"\.[a-z][a-z0-9+]{0,9}\Z", re.IGNORECASE)

_WORDS = r"(?!(?:not[ ])?(?!not\b)\w+(?:[ ](?!(?:and|or|in|is|not|as)[ ])\w+)+[ ]*:)"  # prose: `if you want to:`
_HEADER = rf"""
    ^([ \t]*)(?:
        (?:async[ ]+)?def[ ]+\w+[ ]*\([^\n]*:
        | def[ ]+\w+[ ]*\([^\n()]*\)                          # its colon is missing, and no `end` follows
        | class[ ]+\w+[ ]*(?:\([^\n]*\))?:
        | (?:async[ ]+)?for[ ]+[\w,.*() ]+[ ]in[ ]+{_WORDS}[^\n]*:
        | (?:if|elif|while|with)[ (]+{_WORDS}[^\n]*:
        | except(?:[ ]+[\w., ()]+)?:
        | (?:else|try|finally)[ ]*:
    )[ \t]*\r?\n(?:[ \t]*\r?\n)*\1[ \t]+\S
"""
_PYTHON_LINE = re.compile(
    rf"{_HEADER}"
    r"|^[ \t]*(?:def[ ]+\w+[ ]*\([^\n]*\)[ ]*:[ ]*(?:pass|return|raise|yield|\.\.\.)"
    r"|from[ ]+[\w.]+[ ]+import[ ]+[\w(*])",
    re.MULTILINE | re.VERBOSE,
)
_OTHER_LINE = re.compile(
    r"""
    ^[ \t]*(?:
        (?:end|fi|done|esac|endif|endwhile|endforeach|endfunction)[ \t]*[;)]?[ \t]*\r?$
        | (?:local|function|fn|fun|func|proc|let|val|var|my|sub|pub|impl
            |struct|object|package|namespace|public|private|use|trait|module|data)[ ]+[\w({&$@"'<]
        | (?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|WITH|BEGIN)\b
        | \#!.*\b(?:sh|bash|zsh|perl|ruby|node|lua|php)\b
        | \w+[ ]*::[ ]
    )
    | (?:[)\w][ ]?\{|\b(?:then|do|where|begin)|;)[ \t]*\r?$
    | <\?php | \$[A-Za-z_{(] | (?<![\w.])@[a-z]\w*[ ]*=
    """,
    re.MULTILINE | re.VERBOSE,
)


def said_language(record: Record) -> bool | None:
    """Whether the record's own columns say that it is Python (a `language`, or a file's name); None where they say
    nothing.
    """
    columns = {
        name.lower(): value.strip() for name, value in record.extra.items() if isinstance(value, str) and value.strip()
    }
    for name in _LANGUAGE_FIELDS:
        if name in columns:
            return _PYTHON.match(columns[name]) is not None
    for name in _FILE_FIELDS:
        if name in columns and _OTHER_FILE.search(columns[name]):
            return _PYTHON_FILE.search(columns[name]) is not None
    return None


def must_be_python(code: str) -> bool:
    """Whether code that does not parse is Python all the same: it has a block of Python, and no line of another
    language.
    """
    outside = without_comments_and_strings(code)
    return _PYTHON_LINE.search(outside) is not None and _OTHER_LINE.search(outside) is None
