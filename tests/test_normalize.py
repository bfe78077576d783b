"""What a copy changes is gone from normalised code, what the code does is still there."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from renamed_copies import FUNCTIONS
from renamed_copies import renamed as other_names

import mltrack
from mltrack.records.similar.normalize import LONGEST_CHARACTERS, looks_like_python, normalize

C = """
static int copy(const char *source, int count, struct buffer *target) {
    int i, total = 0;               // how much
    for (int k = 0; k < count; k++) {
        total += strlen(source);
    }
    memcpy(target->data, source, total);   /* the copy */
    return total;
}
"""
JAVASCRIPT = """
const load = async (path, options = {}) => {
    let text = await fetch(path, options);
    for (const part of text.split("/")) { console.log(part); }
    return text.json();
};
"""
PYTHON = """
def load(path, *parts, encoding="utf-8", **options):
    first, (second, third) = split(path, maxsplit=2)
    with open(first, encoding=encoding) as stream:
        lines = [line.strip() for line in stream if (size := len(line)) > 3]
    return map(lambda item, base=1: item.key + base, lines)
"""


def renamed(code: str, names: str) -> str:
    """Each of the names with an x behind, attributes left alone."""
    return re.sub(rf"(?<![.\w>])({'|'.join(names.split())})\b(?!=[^=]*utf)", r"\1x", code)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (C, "copy source count target i total k"),
        (JAVASCRIPT, "load path options text part"),
        (PYTHON, "load path parts options first stream lines line size item base"),
    ],
    ids=["c", "javascript", "python"],
)
def test_the_names_that_code_gives_do_not_count(code: str, names: str) -> None:
    other = renamed(code, names)
    assert other != code
    assert normalize(other) == normalize(code)


@pytest.mark.parametrize("language", FUNCTIONS)
def test_the_names_that_code_gives_do_not_count_in_any_language(language: str) -> None:
    code = FUNCTIONS[language][0]
    other = other_names(language)
    assert other != code
    assert normalize(other).tokens == normalize(code).tokens


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("yaml.load(data, Loader=yaml.Loader)", "yaml.load(data, Loader=yaml.SafeLoader)"),
        ("call(command, shell=True)", "call(command, shell=False)"),
        ("call(command, shell=True)", "call(command, check=True)"),
        ("def f(a):\n    return eval(a)", "def f(a):\n    return literal_eval(a)"),
        ("def f(a, b):\n    return a", "def f(a, b):\n    return b"),
        ("def f(a):\n    return g(a, key=a)", "def f(a):\n    return g(a, a=a)"),
        ("strcpy(a, b);", "strncpy(a, b);"),
        ("int *p = x ? TRUE : y;", "int *p = x ? FALSE : y;"),
        ("flags = O_CREAT;", "flags = O_EXCL;"),
        ("if (a > LOW) { b(); }", "if (a > HIGH) { b(); }"),
        ("let a = document.b;", "let a = window.b;"),
        ("f(a => a.left);", "f(a => a.right);"),
        ("$a = $_GET['x'];", "$a = $_POST['x'];"),
        ("if (a < b) { go(); }", "if (a > b) { go(); }"),
        ("def f(a):\n    return a + 1", "def f(a):\n    return a + 2"),
        ('def f(a):\n    return "x"', 'def f(a):\n    return "y"'),
    ],
)
def test_what_the_code_does_counts(first: str, second: str) -> None:
    assert normalize(first).same_code != normalize(second).same_code


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("f(a, 'b')  # c", 'f(\n    a,\n    "b",\n)'),
        ("x = 1 // 2  # half", "x = 1 // 2"),
        ("int x; // a # b", "int x;"),
        ('#include <a.h>\nint f() { return "#"; } /* */', '#include <a.h>\nint f()\n{\n    return "#";\n}'),
        ("def f():\n    '''Doc.'''\n    return 1", "def f():\n    return 1"),
        ("def f():\r\n    return 1\r\n", "def f():\n    return 1"),
        ("    def f(self):\n        pass", "def f(self):\n    pass"),
        ("def f(a, b):\n    return a + b", "def f(\n    a,\n    b\n):\n    return a + b"),
        ("def f(a, b):\n    return [a, b]", "def f(a\n      , b):\n    return [\n        a,\n        b\n    ]"),
        ("x = 1 + y", "x = 1 + \\\n    y"),
        ('x = """\n# no comment\n"""', 'x = """\n# no comment\n"""  # one'),
        ("a = f(1);\nb = 2;", "a = f(1)\nb = 2"),
    ],
)
def test_layout_and_comments_do_not_count(first: str, second: str) -> None:
    assert normalize(first).same_code == normalize(second).same_code


def test_literals_are_one_in_the_tokens_and_themselves_in_same_code() -> None:
    first, second = normalize("f(0x1F, 1e-5, b'a', f'{x}')"), normalize('f(3, .5, "c", "")')
    assert first.tokens == second.tokens
    assert first.same_code != second.same_code


@pytest.mark.parametrize(
    ("code", "python"),
    [
        (PYTHON, True),
        (C, False),
        (JAVASCRIPT, False),
        ("x = {\n    'a': 1,\n}\nfor a in x:\n    print(a)", True),
        ("print 'two'", True),
        ("public class A {\n    // for b in c:\n}", False),
        ("function f(a)\n{\n  return a\n}", False),
    ],
)
def test_which_comments_a_text_has(code: str, python: bool) -> None:
    assert looks_like_python(code) is python


@pytest.mark.parametrize(
    "comment",
    ["/* reads\n    while reading:\n    */", '/* "\n    for a in b: */', "// for example:", "/* def copy(source):\n*/"],
)
def test_a_comment_does_not_say_which_language_it_is_in(comment: str) -> None:
    assert normalize(C.replace("{\n", f"{{\n    {comment}\n", 1)) == normalize(C)


@pytest.mark.parametrize("text", ["`\nwhile reading:\n`", '"\\\n while reading:"'])
def test_a_string_does_not_say_which_language_it_is_in(text: str) -> None:
    assert not looks_like_python(f"let a = {text};\nb(a);\n")


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text(alphabet="\"'`/*#\\\n\r\t ()[]{}=,.:;ab1_def\x00\ud800"))
@example("")
@example('"""')
@example("\\")
@example("def f(")
def test_no_text_fails(text: str) -> None:
    found = normalize(text)
    assert found == normalize(text)
    assert all(found.tokens)
    assert len(found.same_code) == 16


PARTS = (
    "for ",
    "a , ",
    "def a ( ",
    "( a ) => ",
    '"""x\n',
    "; x : aaa ",
    "* ",
    "if a:",
    "/*",
    "'",
    "\\",
    "lambda ",
    "= a ",
    "{",
    "`",
    "for ( a ",
    "\n",
    "f(a=",
    "case a ",
)
PARTS_IN_BRACES = ("a < ", "a -> ", "func ( ) ", "let { ", "( | a ", "a = ", "\n , ", "\n )", "a : ", "a ? ")


@pytest.mark.parametrize(
    ("opening", "part"), [*(("", part) for part in PARTS), *(("int x;\n", part) for part in PARTS_IN_BRACES)]
)
def test_time_is_linear_in_the_text(opening: str, part: str) -> None:
    assert _seconds(opening + part * (LONGEST_CHARACTERS // len(part))) < 5


@pytest.mark.parametrize("quote", ['"', "'", "`"])
@pytest.mark.parametrize("opening", ["", "int x;\n"])
def test_time_is_linear_behind_a_quote_that_is_never_closed(quote: str, opening: str) -> None:
    assert _seconds(opening + quote + f"\\{quote}" * (LONGEST_CHARACTERS // 2)) < 5
    assert _seconds(opening + quote + f"\\\n\\{quote}" * (LONGEST_CHARACTERS // 4)) < 5


def _seconds(text: str) -> float:
    """CPU time of one call; a quadratic expression takes minutes."""
    began = time.process_time()
    normalize(text)
    return time.process_time() - began


def test_what_is_behind_the_longest_text_still_counts() -> None:
    code = "x = 1\n" * (LONGEST_CHARACTERS // 6 + 1)
    assert normalize(code + "a").same_code != normalize(code + "b").same_code


def test_no_pattern_has_a_possessive_group() -> None:
    """Python before 3.11.5 reads them wrongly (gh-106052), which a newer interpreter does not show."""
    package = Path(mltrack.__file__).parent
    lines = [
        (path.name, line.strip())
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert [
        (name, line)
        for name, line in lines
        if not line.startswith("#") and re.search(r"\)(?:[*+?]|\{\d*,?\d*\})\+", line)
    ] == []
