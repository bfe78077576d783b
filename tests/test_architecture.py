"""Each layer imports only the layers that stand above it in docs/architecture.md; MLflow is imported in the store
alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mltrack.config import GROUPS, OPTIONS, TrainingConfig, TrainModelRequest
from mltrack.tasks import TaskType

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mltrack"
PAGE = ROOT / "docs" / "architecture.md"
ENTRY = {"__init__", "__main__"}
"""The package's lazy names and `python -m mltrack`: they stand outside of the order."""
MOST_LINES = 400
"""Of a module."""
HANDED_OUT = "mltrack.tasks.contract."
"""What `task_named` returns: every layer may name its type."""
SHIPPED = PACKAGE / "tasks" / "shipped"
"""Plain Python that travels with a model; it is loaded by MLflow where mltrack may not be installed."""


def layers() -> list[str]:
    """The names of the page's block, the lowest layer first."""
    block = re.search(r"## Layout\n.*?```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None, f"{PAGE}: accepted: a fenced block under '## Layout'"
    return [line.split()[0].rstrip("/") for line in block[1].splitlines() if line.strip()]


def modules() -> list[tuple[Path, str]]:
    """(file, layer) of every module of the package that is part of the order."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        layer = layer_of(name.removesuffix("/__init__"))
        if name not in ENTRY and SHIPPED not in path.parents:
            found.append((path, layer))
    return found


def layer_of(name: str) -> str:
    """The layer of a module, named like a path: a module of a folder may be a layer of its own."""
    return name if name in layers() else name.split("/")[0]


def imports(path: Path, package: Path = PACKAGE) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, inside functions too."""
    own = (package.name, *path.relative_to(package).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join((*own[: len(own) - node.level], *filter(None, [node.module])))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def for_types_alone(path: Path) -> set[int]:
    """The lines that only a type checker reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    guarded = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {line for node in guarded for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def violations(path: Path, layer: str, order: list[str], package: Path = PACKAGE) -> list[str]:
    """What a file imports and may not, one line each."""
    problems, types_alone = [], for_types_alone(path)
    for line, name in imports(path, package):
        if line in types_alone and name.startswith(HANDED_OUT):
            continue
        head, _, rest = name.partition(".")
        where = f"{path.relative_to(package.parent)}:{line} imports {name}"
        if head == "mlflow" and layer != "store":
            problems.append(f"{where}; only mltrack.store may import mlflow")
        parts = rest.split(".")
        target = "/".join(parts[:2]) if "/".join(parts[:2]) in order else parts[0]
        if head == package.name and target in order and target != layer and order.index(target) > order.index(layer):
            problems.append(f"{where}, which stands below {layer}")
    return problems


def test_the_page_lists_what_the_package_holds() -> None:
    assert sorted(set(layers())) == sorted({layer for _, layer in modules()})
    assert len(layers()) == len(set(layers()))


def test_a_name_with_a_slash_is_a_folder() -> None:
    block = PAGE.read_text(encoding="utf-8").split("## Layout")[1]
    for layer in layers():
        written_as_folder = re.search(rf"^{layer}/ ", block, re.MULTILINE) is not None
        assert written_as_folder == (PACKAGE / layer).is_dir(), layer


def test_no_layer_imports_one_below_it() -> None:
    order = layers()
    problems = [problem for path, layer in modules() for problem in violations(path, layer, order)]
    assert not problems, "\n".join(problems)


def test_the_check_sees_each_form_of_a_wrong_import(tmp_path: Path) -> None:
    package = tmp_path / "mltrack"
    (package / "data").mkdir(parents=True)
    forms = {
        "import mltrack.training.trainer": 1,
        "from mltrack import training": 1,
        "from mltrack.training import AdvancedTrainer": 1,
        "from ..training import AdvancedTrainer": 1,
        "from .. import training": 1,
        "def late():\n    from mlflow.entities import Metric": 1,
        "def late():\n    import mlflow.tracking": 1,
        "from mltrack.errors import DatasetError": 0,
        "from mltrack import __version__": 0,
        "from .labels import LABELS": 0,
    }
    for text, expected in forms.items():
        path = package / "data" / "wrong.py"
        path.write_text(text + "\n", encoding="utf-8")
        assert len(violations(path, "data", ["errors", "data", "training"], package)) == expected, text


def test_a_stage_of_a_run_takes_what_it_needs_and_asserts_nothing() -> None:
    asserts = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (PACKAGE / "runs").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert asserts == []


def test_nothing_outside_of_the_tasks_asks_which_task_it_is() -> None:
    """No literal, no `TaskType` but as the default of an option: everything else asks the object."""
    names = {task.value for task in TaskType}
    askers = []
    for path, _ in modules():
        if "tasks" in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            asks = (isinstance(node, ast.Constant) and node.value in names) or (
                isinstance(node, ast.Attribute) and node.attr == "is_classification"
            )
            if asks:
                askers.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert askers == []


def test_a_module_can_be_read_at_a_sitting() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert [f"{path.relative_to(ROOT)}: {length}" for path, length in lengths.items() if length > MOST_LINES] == []


def test_no_two_modules_have_one_name() -> None:
    names = [path.name for path, _ in modules() if path.stem != "__init__"]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_an_option_is_declared_once() -> None:
    """A name of an option stands as a dataclass field in one class of `config/options.py`, and in no other."""
    declared = [name for classes in GROUPS.values() for kind in classes for name in kind.__annotations__]
    assert sorted(declared) == sorted(OPTIONS)
    for kind in (TrainModelRequest, TrainingConfig):
        assert not set(OPTIONS) & set(kind.__annotations__), kind.__name__
