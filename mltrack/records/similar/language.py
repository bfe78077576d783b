"""Whether a record is Python: by its own columns, else by code that can only be Python.

Invariant: the answer is a pure function of the record and of the interpreter's version. Code that does not parse is
Python if a few changed lines make it parse and no line is of another language; in doubt it is not Python."""

from __future__ import annotations

import ast
import keyword
import re

from mltrack.records.record import Record
from mltrack.records.similar.normalize import without_comments_and_strings

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
_KEYWORD = rf"(?:{'|'.join((*keyword.kwlist, *keyword.softkwlist[1:], 'print', 'exec'))})\b"
_OTHER_LINE = re.compile(
    rf"""
    ^[ \t]*(?!{_KEYWORD})[A-Za-z_]\w*[ \t]+(?!{_KEYWORD})[A-Za-z_"']          # `echo i`, `mov eax, 1`, `cdef int x`
    | ^(?![^\n]*\b(?:with|import|except|case)\b)[^\n]*\w[ ]as[ ]
    | ^[ \t]*def\b[^\n]*[ ]=[ \t]*\r?$ | ->[ \t]*\r?$ | &&|\|\||!(?![=\w]*[}}"':]|=) | [\w)]\.\.[<.]?[\w(]
    """
    r"""
    | ^[ \t]*(?:@\w+[ ]+)?(?:
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
    """Whether the record's columns (a `language`, or a file name) say that it is Python; None if they do not say."""
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
    """Whether code that does not parse is still Python: it has a Python block, no line of another language, and parses
    after a few lines are repaired.
    """
    outside = without_comments_and_strings(code)
    if _PYTHON_LINE.search(outside) is None or _OTHER_LINE.search(outside) is not None:
        return False
    for pattern, now in _PYTHON_2:
        code = pattern.sub(now, code)
    lines = code.replace("\t", " " * 8).splitlines()
    allowed = max(1, min(sum(map(bool, map(str.strip, lines))) // 4, _MOST_REPLACED))
    replaced = 0
    for _ in range(2 * _MOST_REPLACED):
        found = _parsed(lines)
        if not isinstance(found, SyntaxError):
            return found is not None and (
                replaced == 0 or any(isinstance(node, _ONLY_PYTHON) for node in ast.walk(found))
            )
        mended = _mended(lines, found)
        if mended is None:
            replaced += 1
            if replaced > allowed:
                return False
            mended = _replaced(lines, found)
        lines = mended
    return False


_MOST_REPLACED = 8
_PYTHON_2 = (
    (re.compile(r"^([ \t]*|[^\n\"'#]*:[ ]*)(print|exec)\b[ ]*(?:>>|(?=[\"']|[ ]\w))", re.MULTILINE), r"\1\2 = "),
    (re.compile(r"^([ \t]*except\b[^\n]+?),[ ]*(\w+)[ ]*:", re.MULTILINE), r"\1 as \2:"),
    (re.compile(r"^([ \t]*raise[ ]+[\w.]+),", re.MULTILINE), r"\1 or "),
)
_ONLY_PYTHON = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ImportFrom, ast.ExceptHandler, ast.Pass, ast.Yield, ast.Assert),
    *(ast.comprehension, ast.Lambda, ast.Raise),
)
"""Nodes that are rare in other languages with colon blocks."""


def _parsed(lines: list[str]) -> ast.Module | SyntaxError | None:
    try:
        return ast.parse("\n".join(lines) + "\n")
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError):
        return None


def _mended(lines: list[str], error: SyntaxError) -> list[str] | None:
    """The lines with the one missing colon, bracket or quote added; None if something else is wrong."""
    at = min(max(error.lineno or 1, 1), len(lines)) - 1
    line = lines[at]
    if error.msg == "expected ':'":
        column = (error.offset or 1) - 1
        return [*lines[:at], f"{line[:column].rstrip()}: {line[column:]}", *lines[at + 1 :]]
    if never_closed := re.match(r"'([(\[{])' was never closed", error.msg):
        closing = ")]}"["([{".index(never_closed[1])]
        is_header = line.rstrip().endswith(":") or re.match(r"[ ]*(?:async[ ]+def|def|class)\b", line)
        colon = ":" if is_header else ""
        here = [*lines[:at], line.rstrip().removesuffix(":") + closing + colon, *lines[at + 1 :]]
        there = [*lines, closing]
        return max(here, there, key=_error_line)
    if error.msg.startswith("unterminated triple-quoted"):
        return [*lines, "'''" if "'''" in line else '"""']
    return None


def _error_line(lines: list[str]) -> int:
    """Line of the first error; after the last line if there is none."""
    found = _parsed(lines)
    return (found.lineno or 0) if isinstance(found, SyntaxError) else len(lines) + 1


def _replaced(lines: list[str], error: SyntaxError) -> list[str]:
    """The lines with the wrong one replaced; a block that it begins stays a block."""
    at = min(max(error.lineno or 1, 1), len(lines)) - 1
    if empty := re.search(r"^expected an indented block.* on line (\d+)$", error.msg):
        header = int(empty[1]) - 1
        return [*lines[:header], lines[header] + " 0", *lines[header + 1 :]]
    indents = [len(line) - len(line.lstrip()) if line.strip() else None for line in lines]
    own = indents[at] or 0
    below = next((indent for indent in indents[at + 1 :] if indent is not None), 0)
    block = "def f():" if re.match(r"\s*(?:async )?def \w+.*:\s*$", lines[at]) else "if 0:"
    return [*lines[:at], " " * own + (block if below > own else "0"), *lines[at + 1 :]]
