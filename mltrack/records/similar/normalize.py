"""Code without what can be changed and leaves it the same code: layout, comments, the names that it gives, literals.

One lexer for all languages: it needs no parser, so a fragment, an indented method, Python 2 or half a file is read like
the rest, and two versions of a function are always read the same way. A language matters for two things only: what
begins a comment, and which names the code itself gives (`mltrack.records.similar.given_names`); the names of what it
calls stay.

Invariant: `normalize` takes any text, never fails, and is a pure function of it; its time is linear in the text.

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
"""What stands for a name that the code gives, for a string and for a number."""

LONGEST_CHARACTERS = 200_000
"""Of a longer text only the beginning is read as code; the rest counts for `same_code` as it stands."""

# Groups are not possessive, here and in `given_names`: before Python 3.11.5 `re` reads `(?:...)*+` wrongly (gh-106052).
# Nothing would be gained: what an alternative has taken, no other way of reading takes.
_QUOTES = "\"'`"
_STRINGS = r"""
    (?:[rRbBuUfFtT]{0,2}|L)(?:\"{3}(?:[^"\\]++|\\.|"(?!""))*(?:\"{3}|\Z) | '{3}(?:[^'\\]++|\\.|'(?!''))*(?:'{3}|\Z)
        | "(?:[^"\\\n]++|\\.)*" | '(?:[^'\\\n]++|\\.)*')
    | `(?:[^`\\]++|\\.)*`
"""
# A quote that nothing closes is looked behind once: what it is escaped from there is escaped from here, too, and begins
# no other look.
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
# what a comment, a docstring or a continued line matches leaves the group empty
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
# of a string its quote stays, of a comment its beginning
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
    """What is left of a text."""

    tokens: list[str]
    """Tokens in order, with `NAME`, `TEXT` and `NUMBER` in place of the names that the code gives and of literals."""
    same_code: bytes
    """16 bytes, equal for code that differs in layout, comments and the names that it gives alone; literals count."""


def normalize(text: str) -> NormalizedCode:
    """The code in a form that copying and renaming does not change."""
    head, rest = text[:LONGEST_CHARACTERS], text[LONGEST_CHARACTERS:]
    python = looks_like_python(head)
    hashes = python or _looks_like_shell(head)
    kept = [token for token in (_HASH_COMMENTS if hashes else _SLASH_COMMENTS).findall(head) if token]
    code = _JOINED_LINES.sub(" ", " ".join([TEXT if token[-1] in _QUOTES else token for token in kept]))
    given = names_in_python(code) if hashes else names_in_braces(code)
    tokens: list[str] = []
    exact: list[str] = []
    numbers: dict[str, str] = {}
    calls: list[bool] = []  # of the open brackets, which are calls
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
    semicolons.

    What comments and strings say does not count.
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
    """Whether a text that is not Python ends its blocks as the shell does, and so begins its comments with a hash."""
    return _SHELL.search(text) is not None and _SHELL.search(without_comments_and_strings(text)) is not None


def without_comments_and_strings(text: str) -> str:
    """The text without what its comments and strings say, whichever language it is."""
    return _SAID.sub(r"\1\2\3\4", text)


def _names_argument(tokens: list[str]) -> bool:
    """Whether what stands behind these tokens of a call, before an equals sign, is an argument's name: not so a
    lambda's parameter.
    """
    near = tokens[-20:]
    return "lambda" not in near or ":" in near[near.index("lambda") :]


def _is_called(tokens: list[str]) -> bool:
    """Whether a bracket behind these tokens opens a call, not a definition's parameters or an expression."""
    if not tokens or (len(tokens) > 1 and tokens[-2] == "def"):
        return False
    before = tokens[-1]
    return before in (NAME, ")", "]") or ((before[-1].isalnum() or before[-1] == "_") and before not in PYTHON_KEYWORDS)
