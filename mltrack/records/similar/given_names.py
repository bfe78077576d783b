"""The names that code defines: parameters, variables, loop variables, captures, functions and classes; not what it
calls or reads.

Every rule needs a place that defines a name (an assignment, a list of parameters, a type before it); a word that is
only read stays. A missed name costs a little similarity; a wrong one makes different code look alike.

Invariant: repetitions are bounded or possessive, so the time is linear in the text.

    names_in_braces("Map < String , Integer > counts = new HashMap < > ( ) ;")     # {"counts"}
"""

from __future__ import annotations

import re
from keyword import kwlist

WORD = r"\$?[^\W\d][\w$]*"
"""A word of any language; variables of PHP and the shell begin with a dollar."""

PYTHON_KEYWORDS = frozenset(kwlist)
_BRACES_WORDS = """
    abstract and as assert async await bool boolean break byte case catch char class const continue def default delete
    do double else elseif enum export extends extern false final finally float fn for foreach from func function goto if
    implements import in inline instanceof int interface let long mut namespace native new nil not null of operator or
    package private protected public return short signed sizeof static str string struct super switch template this
    throw throws transient true try typedef typename typeof undefined union unsigned using var virtual void volatile
    while with yield $this i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 isize usize int8 int16 int32 int64 uint uint8 uint16
    uint32 uint64 float32 float64 size_t
"""
BRACES_KEYWORDS = frozenset(_BRACES_WORDS.split())
_USING_WORDS = """
    and as assert await break case continue defer delete do echo else export extends finally from go goto if implements
    import in instanceof match new not of or package range return sizeof throw throws try typeof use using while with
    yield
"""
_BEFORE_EXPRESSIONS = frozenset(_USING_WORDS.split())
"""Words after which a name is used, not defined."""

# code is tokens joined by spaces, so a token begins after a space; an expression that begins with a fixed letter or
# sign and then looks behind is much faster
_BEGIN = r"(?<!\S)"
_END = r"(?!\S)"
_INSIDE = r"(?:[^()]++|\((?:[^()]++|\([^()]*+\))*\))*"
_LISTED = re.compile(rf"(?:^|[(,*&{{\[]|\.\.\.|{_BEGIN}mut) ?({WORD})(?= (?:[,:=?)}}\]]|$)|$)")
_BLOCKS = re.compile(r"\|(?:(?<=[(,={] \|)|(?<=\bdo \|)|(?<=\bmove \|)) ([^|\n]{0,200}?) \|")
"""Parameters of a Ruby block and a Rust closure."""
_DOLLARS = re.compile(rf"{_BEGIN}\$_?[a-z]\w*")

# Python and similar languages: Ruby, the shell
_PYTHON_LISTS = re.compile(
    rf"{_BEGIN}(?:def [^(\n]{{1,80}}?(\( {_INSIDE}\))|lambda ([^:()\n]{{0,300}}):|for ([^\n;=]{{0,300}}?) in{_END}|as"
    r" (\( [^()]{0,300}\)))"
)
# at the beginning of a statement: inside a call it is an argument's name
_TARGETS = re.compile(
    r"(?:^|[\n;]) ?(?:(?:local|export|declare|readonly) )?"
    r"((?:[(\[*] ?){0,3}[\w.$]+(?:(?: [)\]]){0,3} , (?:[(\[*] ?){0,3}[\w.$]+){0,20})(?: [)\],]){0,3}(?: :"
    r" [^=\n]{0,200})? =(?!=|>)"
)
_BETWEEN_TARGETS = re.compile(r"[ ,*()\[\]]+")
_PYTHON_NAMES = re.compile(
    rf"as(?<!\Sas) ({WORD}){_END}|def(?<!\Sdef) ({WORD}){_END}|class(?<!\Sclass) ({WORD}){_END}|=(?<!\S=) ({WORD})"
    rf" ={_END}|=>(?<!\S=>) ({WORD}){_END}"
)
_GIVEN_BEFORE = re.compile(rf"{_BEGIN}({WORD}) (?::=|\( \) (?:\n )?\{{){_END}")
_CASES = re.compile(r"(?:^|\n) ?case ([^\n]{1,300}) :(?: \n|$)")
_CAPTURED = re.compile(rf"{_BEGIN}({WORD})(?= (?:[,)}}\]|]|as{_END})|$)")

# C, Java, JavaScript, Go, Rust and similar languages
_GIVING = rf"(?::?=|=>|->|[-+*/%&|^]=){_END}"
_ASSIGNED = re.compile(rf"{_BEGIN}({WORD}) {_GIVING}|{_BEGIN}(?:let|val|var|mut) ({WORD})(?! \()")
_SEVERAL_ASSIGNED = re.compile(rf"{_BEGIN}(?<!, )({WORD}(?: , {WORD})+) {_GIVING}")
_AFTER_DECLARED = rf"(?= (?:[=;,)\[:({{\n]|$|(?:in|of){_END}))"
_DECLARED = re.compile(
    # not `a ? b : c`
    rf"(?<![\w$\x01])({WORD})(?:(?: [*&]+| \[ \]| \.\.\.)* ({WORD}){_AFTER_DECLARED}| \? ({WORD})(?= [=;,)]))"
)
_GENERIC = re.compile(
    rf" <(?<=[\w$] <)(?: (?:[\w$.:?,*<>\[\]]+|&)){{0,60}}? >>?(?: [*&?]+| \[ \]| \.\.\.)* ({WORD}){_AFTER_DECLARED}"
)
_FUNCTIONS = re.compile(
    rf"{_BEGIN}(?:function|fn|func|fun)(?: (\( [^()]*+\)))?(?: ({WORD}))?[^()\n]{{0,200}}? (\( {_INSIDE}\))"
)
_BEFORE_TYPES = re.compile(rf"[(,] ({WORD})(?= [\w*\[.])")
"""Go: the parameter precedes its type."""
_ARROWS_AND_METHODS = re.compile(
    rf"(\((?<!if \()(?<!while \()(?<!switch \() [^()]*+\))(?: : [^()\n]{{0,100}}?)? (?:=>|->|\{{){_END}"
)
_LOOPS = re.compile(
    rf"for(?<!\Sfor)(?:each)? (?:\( )?(?:(?:const|let|var|auto|val) )?([^\n;={{]{{0,300}}?) (?:in|of){_END}"
)
_TAKEN_APART = re.compile(
    rf"{_BEGIN}(?:const|let|var|val|auto)(?: [*&]+)? ((?:{WORD} )?[\[({{] [^;]{{0,400}}?[\])}}]) (?:=|of|in|:){_END}"
)
_PART = re.compile(rf"{_BEGIN}({WORD})(?= [,}}\])=])")


def names_in_python(code: str) -> set[str]:
    """The names defined in Python code, or in similar Ruby and shell code; `code` is tokens joined by spaces, without
    comments and strings.
    """
    given = _found(_PYTHON_NAMES, code) | _listed(code, _PYTHON_LISTS, _BLOCKS)
    for targets in _TARGETS.findall(code):
        given.update(
            name for name in _BETWEEN_TARGETS.split(targets) if name and "." not in name and not name[0].isdigit()
        )
    if " := " in code or "( ) " in code:
        given |= _found(_GIVEN_BEFORE, code)
    for pattern in _CASES.findall(code) if "case " in code else ():
        given.update(_CAPTURED.findall(pattern.split(" if ")[0]))
    return (given | _with_dollar(code)) - PYTHON_KEYWORDS


def names_in_braces(code: str) -> set[str]:
    """The same for C, Java, JavaScript and similar languages, where a name after a type or another word is declared."""
    given = (
        _found(_ASSIGNED, code)
        | _found(_GENERIC, code)
        | _listed(code, _FUNCTIONS, _ARROWS_AND_METHODS, _LOOPS, _BLOCKS)
    )
    for names in _SEVERAL_ASSIGNED.findall(code):
        given.update(names.split(" , "))
    for lists in _FUNCTIONS.findall(code):
        given.update(name for listed in lists for name in _BEFORE_TYPES.findall(listed))
    for pattern in _TAKEN_APART.findall(code):
        given.update(_PART.findall(pattern))
    given.update(
        name or nullable for before, name, nullable in _DECLARED.findall(code) if before not in _BEFORE_EXPRESSIONS
    )
    return (given | _with_dollar(code)) - BRACES_KEYWORDS


def _found(expression: re.Pattern[str], code: str) -> set[str]:
    """The matches of all groups of the expression."""
    found = expression.findall(code)
    return {name for names in found for name in ((names,) if isinstance(names, str) else names) if name}


def _listed(code: str, *expressions: re.Pattern[str]) -> set[str]:
    """The names in the lists that the groups of these expressions match."""
    return {
        name for expression in expressions for listed in _found(expression, code) for name in _LISTED.findall(listed)
    }


def _with_dollar(code: str) -> set[str]:
    """Variables of PHP and the shell; upper case is for the language and the environment."""
    return set(_DOLLARS.findall(code)) if "$" in code else set()
