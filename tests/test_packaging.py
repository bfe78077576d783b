"""What a fresh clone is installed and run from: the lock, the environments, the project files; and that no tracked file
knows the machine it was made on.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mltrack.tasks import TaskType

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOREIGN = [
    "/ro" + "ot/",
    "/wo" + "rk/",
    "/opt/wh" + "eels",
    "py" + "pi.org",
    "files.python" + "hosted.org",
    "--index" + "-url",
    "--find" + "-links",
]
"""What would tie the project to one machine or one registry; in two parts, so that this file does not name them."""


def project_file(folder: Path) -> dict[str, Any]:
    """An MLproject file."""
    return yaml.safe_load((folder / "MLproject").read_text(encoding="utf-8"))


def test_a_changed_lock_changes_the_conda_environment() -> None:
    noted = re.search(r"sha256: (\w+)", (ROOT / "conda.yaml").read_text(encoding="utf-8"))
    assert noted is not None
    assert noted[1] == hashlib.sha256(LOCK.encode()).hexdigest(), (
        "conda.yaml notes another lock; `make lock` writes both"
    )


def test_conda_yaml_installs_the_lock_on_the_oldest_python() -> None:
    dependencies = yaml.safe_load((ROOT / "conda.yaml").read_text(encoding="utf-8"))["dependencies"]
    assert "python=3.11" in dependencies
    assert {"pip": ["-r requirements.lock"]} in dependencies
    assert project_file(ROOT)["conda_env"] == "conda.yaml"


def test_the_lock_pins_every_package_and_leaves_cudas_to_torch() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert all(re.match(r"[a-z0-9][\w.-]*==[\w.+!]+( ; .+)?$", line) for line in lines)
    assert "torch==2.13.0" in [line.split(" ;")[0] for line in lines]
    assert not [line for line in lines if line.startswith(("nvidia", "cuda", "triton"))]


def test_the_lock_holds_every_dependency_in_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    locked: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE):
        locked.setdefault(canonicalize_name(name), []).append(version)
    for text in [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]:
        wanted = Requirement(text)
        versions = locked.get(canonicalize_name(wanted.name), [])
        assert versions, text
        assert all(wanted.specifier.contains(version) for version in versions), (text, versions)


def test_main_declares_the_task_alone() -> None:
    entries = project_file(ROOT)["entry_points"]
    assert set(entries) == {"main", "predict", "evaluate"}
    assert list(entries["main"]["parameters"]) == ["task"]


@pytest.mark.parametrize("task", TaskType)
def test_each_project_fixes_its_task_and_nothing_else(task: str) -> None:
    folder = ROOT / "projects" / task
    main = project_file(folder)["entry_points"]["main"]
    assert main["command"] == f"python -m mltrack train --task {task}"
    assert not main.get("parameters")


@pytest.mark.parametrize("task", TaskType)
def test_each_projects_sample_is_good(task: str) -> None:
    from mltrack.records.readers import read_records

    path = ROOT / "projects" / task / "data" / "sample.jsonl"
    records = read_records(path, task)
    assert 50 <= len(records) <= 100
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(records)
    assert f"{len(records)} records" in (path.parents[1] / "README.md").read_text(encoding="utf-8")
    if task == "security_classification":
        assert {json.loads(line)["label"] for line in path.read_text(encoding="utf-8").splitlines()} == {
            "safe",
            "low",
            "medium",
            "high",
            "critical",
        }


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "\nmake test\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_package_ships_what_it_needs() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    assert PROJECT["project"]["scripts"] == {"mltrack": "mltrack.cli:main"}
    assert "tasks/shipped/*.py" in PROJECT["tool"]["setuptools"]["package-data"]["mltrack"]
    assert list((ROOT / "mltrack" / "tasks" / "shipped").glob("*.py"))


def test_the_demo_of_the_command_is_that_of_make() -> None:
    from mltrack.cli.app import DEMO
    from mltrack.config import OPTIONS

    words = "".join(f" -P {name}={value}" for name, value in ({"task": OPTIONS["task"].default} | DEMO).items())
    assert f"--env-manager local{words}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_extras_that_a_message_names_bring_what_is_missing() -> None:
    from packaging.requirements import Requirement

    from mltrack.extras import EXTRAS

    optional = PROJECT["project"]["optional-dependencies"]
    imported = {"psycopg2-binary": "psycopg2"}
    for extra, packages in EXTRAS.items():
        brought = {imported.get(name, name) for name in (Requirement(text).name for text in optional[extra])}
        assert brought & set(packages), extra


def test_versions_agree() -> None:
    import mltrack

    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mltrack.__version__"}
    assert f"## [{mltrack.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", FOREIGN)
def test_no_tracked_file_names_a_machine_or_a_registry(words: str) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    found = subprocess.run(
        ["git", "grep", "-In", "-F", "-e", words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1, found.stdout + found.stderr
