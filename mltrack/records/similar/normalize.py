"""Code without what does not change its meaning: layout, comments, the names it defines, literals.

One lexer for all languages, without a parser: fragments, indented methods, Python 2 and half files are read like the
rest, and two versions of a function are always read the same way. The language matters only for the beginning of
comments and for the names that the code defines (`mltrack.records.similar.given_names`); names that it calls stay.

Invariant: `normalize` takes any text, never fails, and is a pure function of it, in time linear in the text.

    normalize("def f(a):\\n    return open(a, 'r')  # read").tokens
    # def NAME ( NAME ) : return open ( NAME , TEXT )
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from itertools import zip_longest

from mltrack.records.similar.given_names import PYTHON_KEYWORDS, WORD, names_in_braces, names_in_python

NAME, TEXT, NUMBER = "\x01name", "\x01text", "\x01number"
"""Tokens for a name that the code defines, a string and a number."""

LONGEST_CHARACTERS = 200_000
"""Only this much of a text is read as code; the rest counts for `same_code` unchanged."""

# Groups are not possessive, here and in `given_names`: before Python 3.11.5 `re` reads `(?:...)*+` wrongly (gh-106052).
# They would gain nothing: the alternatives are never ambiguous.
_QUOTES = "\"'`"
_STRINGS = r"""
    (?:[rRbBuUfFtT]{0,2}|L)(?:\"{3}(?:[^"\\]++|\\.|"(?!""))*(?:\"{3}|\Z) | '{3}(?:[^'\\]++|\\.|'(?!''))*(?:'{3}|\Z)
        | "(?:[^"\\\n]++|\\.)*" | '(?:[^'\\\n]++|\\.)*')
    | `(?:[^`\\]++|\\.)*`
"""
# A quote that is never closed is searched for its end once: escapes in that search are also escaped here, and start no
# other search.
_REST = rf"""
    | \\["'`\\]
    | \.\.[.=<]?
    | \.?\d(?:[eEpP][-+]\d|\w|\.(?!\.))*
    | (?:\?\.|\.|->|::)?{WORD}
    | \n
    | ===|!==|->|=>|:=|::|\*\*|//|<<|>>|&&|\|\||\+\+|--|[-+*/%&|^=!<>]=
    | [^\w\s]
"""
_CONTINUED = r"\\\r?\n"
_DOCSTRING = r"""^[ \t]*[rRuU]?(?:\"{3}(?:[^"\\]++|\\.|"(?!""))*\"{3} | '{3}(?:[^'\\]++|\\.|'(?!''))*'{3})[ \t]*\r?$"""
_FLAGS = re.VERBOSE | re.DOTALL | re.MULTILINE
# the group is empty for a comment, a docstring or a continued line
_HASH_COMMENTS = re.compile(rf"{_DOCSTRING} | \#[^\n]* | {_CONTINUED} | ( {_STRINGS} {_REST} )", _FLAGS)
_SLASH_COMMENTS = re.compile(rf"//[^\n]* | /\*.*?(?:\*/|\Z) | {_CONTINUED} | ( {_STRINGS} {_REST} )", _FLAGS)
_JOINED_LINES = re.compile(r"(?<=[(,\[]) (?:\n )+|(?<!\n)(?: \n)+ (?=[)\],])")

_ONLY_PYTHON = re.compile(
    r"^[ \t]*(?:(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(|(?:class|if|elif|for|while|with|except)\b[^\n;{]*:["
    r" \t]*(?:\#.*)?\r?$|(?:else|try|finally)[ \t]*:)",
    re.MULTILINE,
)
_SIGNS = re.compile(
    r"(;[ \t]*(?:(?://|/\*)[^\n]*)?\r?$|^[ \t]*(?://|/\*|\#[ \t]*(?:include|define|if|ifdef|ifndef|pragma)\b))|^["
    r" \t]*\#[ !]|([{}][ \t]*\r?$)",
    re.MULTILINE,
)
_SHELL = re.compile(r"^[ \t]*(?:fi|done|esac)[ \t]*\r?(?:$|[;|&<>)])", re.MULTILINE)
# a string keeps its quote, a comment its beginning
_SAID = re.compile(
    r"""(["'`\#/\\])(?:
        (?<=")(?:""(?:[^"\\]++|\\.|"(?!""))*(?:"{3}|\Z) | (?:[^"\\\n]++|\\.)*")
        | (?<=')(?:''(?:[^'\\]++|\\.|'(?!''))*(?:'{3}|\Z) | (?:[^'\\\n]++|\\.)*')
        | (?<=`)(?:[^`\\]++|\\.)*` | (?<=\\). | (?<=\#)([ \t!]*\w*)[^\n]* | (?<=/)(?:(/)[^\n]* | (\*).*?(?:\*/|\Z))
    )""",
    _FLAGS,
)


@dataclass(frozen=True, slots=True)
class NormalizedCode:
    """A normalised text."""

    tokens: list[str]
    """Tokens in order, with `NAME`, `TEXT` and `NUMBER` for the names that the code defines and for literals."""
    same_code: bytes
    """16 bytes, equal for code that differs only in layout, comments and the names it defines; literals count."""


def normalize(text: str) -> NormalizedCode:
    """The code in a form that renaming and reformatting do not change."""
    head, rest = text[:LONGEST_CHARACTERS], text[LONGEST_CHARACTERS:]
    python = looks_like_python(head)
    hashes = python or _looks_like_shell(head)
    kept = [token for token in (_HASH_COMMENTS if hashes else _SLASH_COMMENTS).findall(head) if token]
    code = _JOINED_LINES.sub(" ", " ".join([TEXT if token[-1] in _QUOTES else token for token in kept]))
    given = names_in_python(code) if hashes else names_in_braces(code)
    tokens: list[str] = []
    exact: list[str] = []
    numbers: dict[str, str] = {}
    calls: list[bool] = []  # for each open bracket, whether it is a call
    for token, following in zip_longest(kept, kept[1:], fillvalue=""):
        first = token[0]
        if first in "\n;\\":
            continue
        if first in "([{":
            calls.append(python and first == "(" and _is_called(tokens))
        elif first in ")]}":
            if tokens and tokens[-1] == ",":  # a formatter's comma before the bracket
                tokens.pop()
                exact.pop()
            if calls:
                calls.pop()
        if token in given and not (following == "=" and calls and calls[-1] and _names_argument(tokens)):
            tokens.append(NAME)
            exact.append(numbers.setdefault(token, f"\x01{len(numbers)}"))
        elif token[-1] in _QUOTES and len(token) > 1:
            tokens.append(TEXT)
            exact.append('"' + token.strip(_QUOTES))
        elif first.isdigit() or (first == "." and token[1:2].isdigit()):
            tokens.append(NUMBER)
            exact.append(token)
        else:
            tokens.append(token)
            exact.append(token)
    digest = blake2b("\0".join(exact).encode("utf-8", "surrogatepass"), digest_size=16)
    digest.update(rest.encode("utf-8", "surrogatepass"))
    return NormalizedCode(tokens, digest.digest())


def looks_like_python(text: str) -> bool:
    """Whether a text is read as Python: a line that only Python has, a comment with a hash, or no sign of braces and
    semicolons. Comments and strings do not count.
    """
    line = _ONLY_PYTHON.search(text)
    before = text[: line.end()] if line is not None else ""
    if (
        line is not None and "`" not in before and _ONLY_PYTHON.search(without_comments_and_strings(before))
    ):  # mostly the first line: no need to read the others
        return True
    if not any(found.lastindex for found in _SIGNS.finditer(text)):
        return True
    code = without_comments_and_strings(text)
    if line is not None and _ONLY_PYTHON.search(code):
        return True
    signs = {index for found in _SIGNS.finditer(code) for index in (found.lastindex or 0,)}
    return not signs or (1 not in signs and 0 in signs)


def _looks_like_shell(text: str) -> bool:
    """Whether a text that is not Python ends its blocks like the shell, whose comments begin with a hash."""
    return _SHELL.search(text) is not None and _SHELL.search(without_comments_and_strings(text)) is not None


def without_comments_and_strings(text: str) -> str:
    """The text without the contents of its comments and strings, in any language."""
    return _SAID.sub(r"\1\2\3\4", text)


def _names_argument(tokens: list[str]) -> bool:
    """Whether a name after these tokens of a call, before an equals sign, is an argument, not a lambda's parameter."""
    near = tokens[-20:]
    return "lambda" not in near or ":" in near[near.index("lambda") :]


def _is_called(tokens: list[str]) -> bool:
    """Whether a bracket after these tokens opens a call, not a definition's parameters or an expression."""
    if not tokens or (len(tokens) > 1 and tokens[-2] == "def"):
        return False
    before = tokens[-1]
    return before in (NAME, ")", "]") or ((before[-1].isalnum() or before[-1] == "_") and before not in PYTHON_KEYWORDS)
