"""How much code there is: lines without blanks, comments and docstrings, and what the architecture's goals count.

python benchmarks/lines.py [--root FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONG = 300
"""Lines from which a module is called long."""
TASK_WORDS = ("is_classification", "text_classification", "code_generation", "security_classification")
_SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def docstring_lines(tree: ast.AST) -> set[int]:
    """Lines of strings that stand alone as a statement."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def code_lines(path: Path) -> int:
    """Lines that hold code."""
    text = path.read_text(encoding="utf-8")
    held = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in _SILENT
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(held - docstring_lines(ast.parse(text)))


def asks_for_the_task(path: Path) -> bool:
    """True where code, docstrings apart, names a task or asks what kind it is."""
    text = path.read_text(encoding="utf-8")
    silent = docstring_lines(ast.parse(text))
    lines = (line for number, line in enumerate(text.splitlines(), 1) if number not in silent)
    return any(word in line.partition("#")[0] for line in lines for word in TASK_WORDS)


def figures(root: Path) -> dict[str, int]:
    """The counts by name."""
    package = sorted((root / "mltrack").rglob("*.py"))
    tests = sorted((root / "tests").rglob("*.py"))
    modules = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in package}
    outside = [path for path in package if "tasks" not in path.relative_to(root).parts]
    runs = sorted((root / "mltrack" / "runs").rglob("*.py"))
    return {
        "code lines of mltrack/": sum(map(code_lines, package)),
        "lines of mltrack/": sum(modules.values()),
        "modules of mltrack/": len(modules),
        f"modules over {LONG} lines": sum(lines > LONG for lines in modules.values()),
        "files outside tasks/ that ask for the task": sum(map(asks_for_the_task, outside)),
        "asserts in runs/": sum(
            isinstance(node, ast.Assert)
            for path in runs
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        ),
        "code lines of tests/": sum(map(code_lines, tests)),
        "lines of README.md": len((root / "README.md").read_text(encoding="utf-8").splitlines()),
    }


def main() -> None:
    """Print one table, and write one JSON file where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = figures(given.root)
    for name, value in found.items():
        print(f"{value:>8,}  {name}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
