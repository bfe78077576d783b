"""Distinct functions, and copies of them as people make them: renamed, reformatted, with other comments, with other
literals.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

OPERATIONS = ("+", "-", "*", "/", "%", "**", "//", "&", "|", "^")
CALLS = (
    "open",
    "len",
    "sorted",
    "sum",
    "max",
    "min",
    "print",
    "repr",
    "list",
    "tuple",
    "set",
    "zip",
    "map",
    "filter",
    "hash",
    "bool",
)
ATTRIBUTES = (
    "read",
    "close",
    "append",
    "strip",
    "split",
    "items",
    "keys",
    "update",
    "copy",
    "clear",
    "index",
    "count",
    "sort",
    "encode",
)


def function(number: int) -> str:
    """A function of some twelve lines whose structure no other number's has."""
    draw = random.Random(number)
    lines = [f"def work_{number}(first, second, limit={number}):", "    # what it does", '    result = "begin"']
    for step in range(9):
        operation, call, attribute = draw.choice(OPERATIONS), draw.choice(CALLS), draw.choice(ATTRIBUTES)
        kind = draw.randrange(4)
        if kind == 0:
            lines.append(f"    value_{step} = {call}(first.{attribute}()) {operation} {step}")
            lines.append(f"    result = result {draw.choice(OPERATIONS)} value_{step}")
        elif kind == 1:
            lines.append(f"    for item_{step} in {call}(second.{attribute}):")
            lines.append(f"        result.{draw.choice(ATTRIBUTES)}(item_{step}, 'text {step}')")
        elif kind == 2:
            lines.append(f"    if limit {operation} {draw.choice(CALLS)}(result) > {step}:")
            lines.append(f"        first = second.{attribute}({draw.choice(CALLS)}(limit))")
        else:
            lines.append(f"    while {call}(second.{attribute}) {operation} limit:")
            lines.append(f"        limit = limit {draw.choice(OPERATIONS)} first.{draw.choice(ATTRIBUTES)}")
    return "\n".join([*lines, "    return result"]) + "\n"


def renamed(code: str) -> str:
    """Other names for the function, its parameters and its variables."""
    names = {"first": "alpha", "second": "beta", "limit": "bound", "result": "outcome"}
    code = re.sub(r"\b(work|value|item)_(\d+)\b", r"other_\1_x\2", code)
    return re.sub(r"(?<![.\w])(first|second|limit|result)\b", lambda found: names[found.group()], code)


def reformatted(code: str) -> str:
    """As a formatter writes it: other quotes, indentation by two, a parameter a line with a comma at the end, a broken
    call, blank lines.
    """
    code = re.sub(r"def (\w+)\((\w+), (\w+), (\w+=\d+)\):", r"def \1(\n    \2,\n    \3,\n    \4,\n):", code).replace(
        "'", '"'
    )
    code = re.sub(r"\((\w+), (\"text \d+\")\)", r"(\n            \1,\n            \2,\n        )", code)
    return "\n\n".join(
        re.sub(r"^( +)", lambda found: " " * (len(found.group()) // 2), line) for line in code.split("\n")
    )


def with_a_parameter_a_line(code: str) -> str:
    """As other formatters write it: no comma at the end, the bracket on a line of its own."""
    return re.sub(r"def (\w+)\((\w+), (\w+), (\w+=\d+)\):", r"def \1(\n    \2,\n    \3,\n    \4\n):", code)


def recommented(code: str) -> str:
    """A docstring, and comments on every second line."""
    head, *rest = code.replace("    # what it does\n", "").split("\n")
    commented = [f"{line}  # step {n}" if n % 2 and line.strip() else line for n, line in enumerate(rest)]
    return "\n".join([head, '    """Says what it does.', "", '    At length."""', *commented])


def with_other_literals(code: str) -> str:
    """Other numbers and other texts."""
    code = re.sub(r"(?<![\w.])\d+\b", lambda found: str(int(found.group()) * 7 + 1), code)
    return re.sub(r"(['\"])[^'\"\n]*\1", r"\1something else entirely\1", code)


def with_a_line_more(code: str) -> str:
    """A statement before the end."""
    return code.replace("    return result", "    print(limit)\n    return result")


def java_method(number: int) -> str:
    """A method in Java whose structure no other number's has."""
    draw = random.Random(number)
    lines = [
        f"public Map<String, List<Integer>> work{number}(List<String> first, Map<String, List<Integer>> second) {{",
        "    Map<String, Integer> result = null;",
    ]
    for step in range(8):
        call, attribute, operation = draw.choice(ATTRIBUTES), draw.choice(ATTRIBUTES), draw.choice(OPERATIONS[:5])
        if draw.randrange(2):
            lines.append(f"    List<Integer> value{step} = second.{call}(first.{attribute}() {operation} {step});")
            lines.append(f"    result.{draw.choice(ATTRIBUTES)}(value{step} {draw.choice(OPERATIONS[:5])} first);")
        else:
            lines.append(f"    for (Map.Entry<String, List<Integer>> item{step} : second.{call}()) {{")
            lines.append(f"        first.{attribute}(item{step}.{draw.choice(ATTRIBUTES)}() {operation} result);")
            lines.append("    }")
    return "\n".join([*lines, "    return second;", "}"]) + "\n"


COPIES: tuple[Callable[[str], str], ...] = (
    renamed,
    reformatted,
    recommented,
    with_other_literals,
    with_a_line_more,
    with_a_parameter_a_line,
)
