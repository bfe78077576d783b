"""Code without what can be changed and leaves it the same code: layout, comments, the names that it gives, literals.

One lexer for all languages: it needs no parser, so a fragment, an indented method, Python 2 or half a file is read like the rest,
and two versions of a function are always read the same way. A language matters for two things only: what begins a comment,
and which names the code itself gives (parameters, variables, loop and function names); the names of what it calls stay.

Invariant: `normalize` takes any text, never fails, and is a pure function of it; its time is linear in the text.

    normalize("def f(a):\\n    return open(a, 'r')  # read").tokens
    # def NAME ( NAME ) : return open ( NAME , TEXT )
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from keyword import kwlist

NAME, TEXT, NUMBER = "\x01name", "\x01text", "\x01number"
"""What stands for a name that the code gives, for a string and for a number."""

LONGEST_CHARACTERS = 200_000
"""Of a longer text only the beginning is read as code; the rest counts for `same_code` as it stands."""

_QUOTES = "\"'`"
_WORD = r"[^\W\d][\w$]*"
_STRINGS = r"""
    (?:[rRbBuUfFtT]{0,2}|L)(?:\"{3}(?:[^"\\]++|\\.|"(?!""))*+(?:\"{3}|\Z) | '{3}(?:[^'\\]++|\\.|'(?!''))*+(?:'{3}|\Z)
        | "(?:[^"\\\n]++|\\.)*+" | '(?:[^'\\\n]++|\\.)*+')
    | `(?:[^`\\]++|\\.)*+`
"""
_REST = rf"""
    | \.?\d(?:[eEpP][-+]\d|[\w.])*
    | (?:\?\.|\.|->|::)?{_WORD}
    | \n
    | ===|!==|->|=>|:=|::|\*\*|//|<<|>>|&&|\|\||\+\+|--|[-+*/%&|^=!<>]=
    | [^\w\s]
"""
_DOCSTRING = r"""^[ \t]*[rRuU]?(?:\"{3}(?:[^"\\]++|\\.|"(?!""))*+\"{3} | '{3}(?:[^'\\]++|\\.|'(?!''))*+'{3})[ \t]*\r?$"""
_FLAGS = re.VERBOSE | re.DOTALL | re.MULTILINE
# what a comment or a docstring matches leaves the group empty
_HASH_COMMENTS = re.compile(rf"{_DOCSTRING} | \#[^\n]* | ( {_STRINGS} {_REST} )", _FLAGS)
_SLASH_COMMENTS = re.compile(rf"//[^\n]* | /\*.*?(?:\*/|\Z) | ( {_STRINGS} {_REST} )", _FLAGS)

_ONLY_PYTHON = re.compile(
    r"^[ \t]*(?:(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(|(?:class|if|elif|for|while|with|except)\b[^\n;{]*:[ \t]*(?:\#.*)?\r?$|(?:else|try|finally)[ \t]*:)",
    re.MULTILINE,
)
_SIGNS = re.compile(
    r"(;[ \t]*(?:(?://|/\*)[^\n]*)?\r?$|^[ \t]*(?://|/\*|\#[ \t]*(?:include|define|if|ifdef|ifndef|pragma)\b))|^[ \t]*\#[ !]|([{}][ \t]*\r?$)",
    re.MULTILINE,
)

_PYTHON_KEYWORDS = frozenset(kwlist)
_BRACES_WORDS = """
    abstract and as assert async await bool boolean break byte case catch char class const continue def default delete do double else enum export extends
    extern false final finally float fn for from func function goto if implements import in inline instanceof int interface let long namespace native new
    nil not null of operator or package private protected public return short signed sizeof static struct super switch template this throw throws
    transient true try typedef typename typeof undefined union unsigned using var virtual void volatile while with yield
"""
_BRACES_KEYWORDS = frozenset(_BRACES_WORDS.split())
_USING_WORDS = """
    and as assert await break case continue delete do else export extends finally from goto if implements import in instanceof new not of or package return
    sizeof throw throws try typeof using while with yield
"""
_BEFORE_EXPRESSIONS = frozenset(_USING_WORDS.split())
"""Words after which a name is used, not given."""

# bounded repetitions: no text costs more than its length
_INSIDE = r"(?:[^()]++|\((?:[^()]++|\([^()]*+\))*+\))*+"
_LISTED = re.compile(rf"(?:^|[(,*]) ?({_WORD})(?= (?:[,:=)]|$)|$)")
# Python: lists of names, assigned names (at the beginning of a statement: inside a call it is an argument's name), single names
_PYTHON_LISTS = re.compile(rf"(?<![\w.])(?:def {_WORD} (\( {_INSIDE}\))|lambda ([^:()\n]{{0,300}}):|for ([^\n;=]{{0,300}}?) in(?!\w))")
_TARGETS = re.compile(
    r"(?:^|[\n;]) ?((?:[(\[*] ?){0,3}[\w.$]+(?:(?: [)\]]){0,3} , (?:[(\[*] ?){0,3}[\w.$]+){0,20})(?: [)\],]){0,3}(?: : [^=\n]{0,200})? =(?!=|>)"
)
_BETWEEN_TARGETS = re.compile(r"[ ,*()\[\]]+")
_PYTHON_NAMES = re.compile(rf"(?<![\w.])(?:(?:as|def|class) ({_WORD})|({_WORD}) :=|= ({_WORD}) =(?!=))(?!\w)")
# C, Java, JavaScript and their kin
_BRACES_LISTS = re.compile(
    rf"(?<![\w.])(?:function|fn|func|fun)(?: {_WORD})? (\( {_INSIDE}\))|(\( [^()]*+\)) =>|(?<![\w.])for \( (?:(?:const|let|var|auto) )?([^\n;=]{{0,300}}?) (?:in|of)(?!\w)"
)
_BRACES_NAMES = re.compile(rf"(?:^|[\n;{{}},(]) ?({_WORD}) =(?!=|>)|(?<![\w.])({_WORD}) (?::=|=>)|= ({_WORD}) =(?!=)")
_DECLARED = re.compile(rf"(?<![\w.>:$])({_WORD})(?: [*&]+| \[ \])*+ ({_WORD})(?= (?:[=;,)\[:({{\n]|$))")
_JOINED_LINES = re.compile(r"(?<=[(,\[]) (?:\n )+")


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
    kept = [token for token in (_HASH_COMMENTS if python else _SLASH_COMMENTS).findall(head) if token]
    code = _JOINED_LINES.sub(" ", " ".join([TEXT if token[-1] in _QUOTES else token for token in kept]))
    given = _given_in_python(code) - _PYTHON_KEYWORDS if python else _given_in_braces(code) - _BRACES_KEYWORDS
    tokens: list[str] = []
    exact: list[str] = []
    numbers: dict[str, str] = {}
    for token in kept:
        first = token[0]
        if first in "\n;\\":
            continue
        if first in ")]}" and tokens and tokens[-1] == ",":  # a formatter's comma before the bracket
            tokens.pop()
            exact.pop()
        if token in given:
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
    """Whether a text is read as Python: a line that only Python has, a comment with a hash, or no sign of braces and semicolons."""
    if _ONLY_PYTHON.search(text):
        return True
    signs = {index for found in _SIGNS.finditer(text) for index in (found.lastindex or 0,)}
    return not signs or (1 not in signs and 0 in signs)


def _given_in_python(code: str) -> set[str]:
    """The names that Python code gives: parameters, assigned and loop variables, aliases, functions, classes; `code` is tokens joined by spaces."""
    given = {name for found in _PYTHON_NAMES.findall(code) for name in found if name}
    for lists in _PYTHON_LISTS.findall(code):
        given.update(name for listed in lists for name in _LISTED.findall(listed))
    for targets in _TARGETS.findall(code):
        given.update(name for name in _BETWEEN_TARGETS.split(targets) if name and "." not in name and not name[0].isdigit())
    return given


def _given_in_braces(code: str) -> set[str]:
    """The same for C, Java, JavaScript and their kin, where a name after a type or another word is declared there."""
    given = {name for found in _BRACES_NAMES.findall(code) for name in found if name}
    for lists in _BRACES_LISTS.findall(code):
        given.update(name for listed in lists for name in _LISTED.findall(listed))
    given.update(name for before, name in _DECLARED.findall(code) if before not in _BEFORE_EXPRESSIONS)
    return given
