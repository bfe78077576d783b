"""The wheel alone is enough: in a fresh environment that has what the base needs and no extra, in a folder outside of
the checkout, the demo and the three tasks run on `stdlib`, and nothing of the checkout is read.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import commands
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tracked_runs import delivered, until

from mltrack import __version__, extras
from mltrack.journal import find_run_directories
from mltrack.tasks import TaskType

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
PROJECT = tomllib.loads((commands.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")
LITTLE = ("--model-name", "scratch:tiny", "--max-steps", 3, "--max-length", 64, "--batch-size", 4, "--output", "json")
WATCH = """
import os, sys

def _watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "os.chdir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if path.startswith({checkout!r}) and not path.startswith({outer!r}):
            descriptor = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, (event + " " + path + "\\n").encode())
            os.close(descriptor)

sys.addaudithook(_watch)
"""
"""A module that each Python process of the fresh environment imports first: it notes what is opened in the checkout, but
for the packages of an environment that lies in there.
"""


def base_distributions() -> Iterator[importlib.metadata.Distribution]:
    """What the base needs, directly or not, and no extra."""
    waiting = [Requirement(text) for text in PROJECT["dependencies"]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        asked = [(canonicalize_name(wanted.name), extra) for extra in ("", *wanted.extras)]
        for name, extra in asked:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            found = importlib.metadata.distribution(name)
            if extra == "":
                yield found
            for text in found.requires or []:
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    waiting.append(further)


@dataclass(frozen=True)
class Fresh:
    """An environment in which the wheel is installed, and an empty folder to work in."""

    python: Path
    folder: Path
    log: Path
    """What was opened in the checkout."""

    def run(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment."""
        return commands.run(
            self.python.parent / str(words[0]),
            *words[1:],
            cwd=self.folder,
            timeout_s=300,
            PATH=f"{self.python.parent}:/usr/bin:/bin",
            PYTHONPATH="",
            **variables,
        )

    def mltrack(self, *words: object) -> str:
        """What `mltrack ...` prints, which must go well."""
        done = self.run("mltrack", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of what git does not ignore; building leaves files beside them."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = subprocess.run(
        [
            "git",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "mltrack",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ],
        cwd=commands.ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((commands.ROOT / name).read_bytes())
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(made), str(source))
    subprocess.run([*PIP, *build], check=True, capture_output=True)
    (file,) = made.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """The packages are links to those of this environment, so that nothing is downloaded; pip looks whether all that
    the wheel asks for is there.
    """
    home, folder = tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("elsewhere")
    venv.create(home, symlinks=True)
    python, log = home / "bin" / "python", home / "checkout-was-read"
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(home), "platbase": str(home)}))
    for distribution in base_distributions():
        for file in distribution.files or []:
            source, link = Path(str(distribution.locate_file(file.parts[0]))), site / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(source)
    subprocess.run(
        [*PIP, "--python", str(python), "install", "--no-index", str(wheel)],
        check=True,
        env=os.environ | {"PYTHONPATH": ""},
    )
    outer = sys.prefix + os.sep
    text = WATCH.format(checkout=str(commands.ROOT) + os.sep, outer=outer, log=str(log))
    (site / "watch_the_checkout.py").write_text(text, encoding="utf-8")
    (site / "watch_the_checkout.pth").write_text("import watch_the_checkout\n", encoding="utf-8")
    return Fresh(python, folder, log)


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (place,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(place).decode()
    assert "mltrack/py.typed" in names
    assert {
        f"mltrack/tasks/shipped/{file.name}" for file in (commands.ROOT / "mltrack/tasks/shipped").glob("*.py")
    } <= {*names}
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "projects", "docs"))]
    head = text.partition("\n\n")[0].splitlines()
    assert f"Version: {__version__}" in head
    assert "Classifier: Typing :: Typed" in head
    assert {line.partition(": ")[2] for line in head if line.startswith("Provides-Extra: ")} == {
        *PROJECT["optional-dependencies"]
    }
    assert set(extras.EXTRAS) <= set(PROJECT["optional-dependencies"])


def test_it_is_the_wheel_that_runs_and_the_watch_sees(fresh: Fresh) -> None:
    said = fresh.run("python", "-c", "import mltrack; print(mltrack.__file__)").stdout.strip()
    assert Path(said).is_relative_to(fresh.python.parents[1])
    for words in (("mltrack",), ("python", "-m", "mltrack")):
        assert fresh.run(*words, "--version").stdout == f"mltrack {__version__}\n"
    assert not fresh.log.exists()
    fresh.run("python", "-c", f"open({str(commands.ROOT / 'README.md')!r}).close()")
    assert fresh.log.read_text(encoding="utf-8") == f"open {commands.ROOT / 'README.md'}\n"
    fresh.log.unlink()


def test_the_demo_and_the_three_tasks_run_on_the_standard_library(fresh: Fresh) -> None:
    for words in (("demo",), *(("train", "--task", task) for task in TaskType)):
        told = json.loads(fresh.mltrack(*words, *LITTLE).splitlines()[-1])
        assert (told["success"], told["steps_run"]) == (True, 3)
    runs = find_run_directories(fresh.folder / "mltrack-runs")
    assert len(runs) == 4
    until(lambda: all(map(delivered, runs)), "the deliveries, which a busy machine leaves to the relays", within_s=400)
    registered = json.loads(fresh.mltrack("models", "list", "--output", "json"))
    assert {model["name"] for model in registered if model["aliases"].get("champion")} == {
        f"mltrack-{task}" for task in TaskType
    }
    assert "def" in fresh.mltrack("data", "inspect", "stdlib", "--task", "code_generation")
    answer = fresh.mltrack(
        "predict", "--model-uri", "models:/mltrack-text_classification@champion", "--text", "eval(x)"
    )
    assert "safe" in answer
    assert not fresh.log.exists(), fresh.log.read_text(encoding="utf-8")


def test_a_feature_of_an_extra_names_it(fresh: Fresh) -> None:
    (fresh.folder / "model.gguf").write_bytes(b"GGUF" + bytes(32))
    store = "from mltrack import store; s = store.connect('sqlite:///mlflow.db')\n"
    with_s3 = f"{store}with store.translated(s, 'storing'): store.artifacts.repository(s, 's3://b/c').list_artifacts()"
    for words, extra in (
        (("mltrack", "train", "--model-name", "model.gguf", "--offline"), "gguf"),
        (("mltrack", "models", "list", "--tracking-uri", "postgresql+psycopg2://m@127.0.0.1:1/t"), "postgres"),
        (("mltrack", "models", "list", "--tracking-uri", "postgresql://m@127.0.0.1:1/t"), "postgres"),
        (("python", "-c", with_s3), "s3"),
    ):
        done = fresh.run(*words)
        assert done.returncode != 0
        last = done.stderr.splitlines()[-1]
        assert f"pip install 'mltrack[{extra}]'" in last, done.stderr
        assert words[0] == "python" or len(done.stderr.splitlines()) == 1
