"""The functions of the running interpreter's standard library, each as text without its docstring.

Invariant: files and functions come in sorted order, tests left out; every text parses by itself and has no docstring.
"""

from __future__ import annotations

import ast
import inspect
import io
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mltrack.errors import DatasetError

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class SourceFunction:
    """A function or method that is not inside another function."""

    module: str
    """Path below the folder that was read, such as json/decoder.py."""
    name: str
    """Qualified name, such as JSONDecoder.decode."""
    first_line: int
    """Line of its first decorator or its `def`; the first of a file is 1."""
    last_line: int
    code: str
    """The function without its docstring, dedented, without white space at its end."""
    summary: str
    """First paragraph of the docstring on one line; empty if there is none."""


def library_folder() -> Path:
    """The folder of the standard library's modules."""
    return Path(sysconfig.get_path("stdlib"))


def library_files() -> list[Path]:
    """The standard library's own Python files, tests and installed packages left out, sorted.

    Raises:
        DatasetError: the interpreter has no source files (an embedded or zipped library).
    """
    folder = library_folder()
    files = []
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        top = parts[0].removesuffix(".py")
        if (
            top in sys.stdlib_module_names
            and not _TEST_FOLDERS.intersection(parts[:-1])
            and not parts[-1].startswith("test_")
        ):
            files.append(path)
    if not files:
        raise DatasetError(
            "this Python has no source files of its standard library; use another interpreter, or a data file",
            path=folder,
        )
    return sorted(files, key=lambda path: path.relative_to(folder).parts)


def functions_of(path: Path, folder: Path) -> Iterator[SourceFunction]:
    """The functions of one file below `folder`, in line order; none if the file does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in old modules
        try:
            data = path.read_bytes()
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            text = io.TextIOWrapper(io.BytesIO(data), encoding).read()
            tree = ast.parse(text)
        except (OSError, SyntaxError, ValueError):
            return
        # the lines as ast counts them: form feeds and the like do not end a line
        lines = text.split("\n")
        module = path.relative_to(folder).as_posix()
        for node, name in _outermost(tree, ""):
            code = _without_docstring(node, lines)
            if code is not None:
                yield SourceFunction(
                    module, name, _first_line(node), node.end_lineno or node.lineno, code, _summary(node)
                )


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _outermost(node: ast.AST, prefix: str) -> Iterator[tuple[_Function, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield child, prefix + child.name
        elif isinstance(child, ast.ClassDef):
            yield from _outermost(child, f"{prefix}{child.name}.")
        elif isinstance(child, (ast.If, ast.Try, ast.With, ast.ExceptHandler, ast.For, ast.While)):
            yield from _outermost(child, prefix)


def _first_line(node: _Function) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _summary(node: _Function) -> str:
    docstring = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
    return " ".join(docstring.split("\n\n", 1)[0].split())


def _without_docstring(node: _Function, lines: list[str]) -> str | None:
    """The dedented text; None if only placeholders are left or the text does not parse alone."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body or all(_is_placeholder(statement) for statement in body):
        return None
    first, last = _first_line(node), node.end_lineno or node.lineno
    kept = lines[first - 1 : last]
    if body is not node.body:
        start, end = node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno
        if start == node.lineno or body[0].lineno == end:
            return None  # on one line with the def or with the next statement
        behind = lines[end:last]
        while behind and not behind[0].strip():
            behind.pop(0)
        kept = lines[first - 1 : start - 1] + behind
    code = textwrap.dedent("\n".join(kept)).rstrip()
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return None
    return code


def _is_placeholder(statement: ast.stmt) -> bool:
    """`pass`, `...`, or a bare `raise NotImplementedError`: nothing to learn from."""
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.Raise):
        return statement.exc is not None and "NotImplementedError" in ast.dump(statement.exc)
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
