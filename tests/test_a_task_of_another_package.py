"""A task that an installed package brings is trained, resumed, evaluated, registered and served without a change in
mltrack, its own option included.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import tiny
from mlflow import MlflowClient

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
PACKAGE = Path(__file__).parent / "packages" / "token_tags"
WORDS = {"def": "keyword", "return": "keyword", "(": "mark", ")": "mark", "f": "name", "g": "name", "1": "number"}
WITHOUT_BOTH = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mltrack", "token_tags"):
            raise ModuleNotFoundError(f"{name} is refused by the test", name=name)

sys.meta_path.insert(0, Refused())
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
print(model.predict(["def f ( )", "return 1"]))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with records, and the environment in which the package is installed."""
    folder = tmp_path_factory.mktemp("tags")
    installed = folder / "site"
    source = shutil.copytree(PACKAGE, folder / "source")  # building leaves files beside it
    words = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, "--target", str(installed), str(source)],
        check=True,
        capture_output=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    chosen = random.Random(0)
    rows = [chosen.choices(list(WORDS), k=chosen.randint(3, 9)) for _ in range(160)]
    records = [json.dumps({"words": row, "tags": [WORDS[word] for word in row]}) + "\n" for row in rows]
    (folder / "records.jsonl").write_text("".join(records[:120]), encoding="utf-8")
    held = [{"words": [word.upper() for word in row], "tags": [WORDS[word] for word in row]} for row in rows[120:]]
    (folder / "held.jsonl").write_text("".join(json.dumps(one) + "\n" for one in held), encoding="utf-8")
    return folder, {"PYTHONPATH": os.pathsep.join((str(commands.ROOT), str(installed)))}


def test_it_goes_the_whole_way(project: tuple[Path, dict[str, str]]) -> None:
    folder, installed = project
    task = ("--task", "token_classification", "--dataset-path", "records.jsonl", "--model-name", "scratch:tiny")

    def mltrack(*words: object) -> str:
        done = commands.mltrack(*words, cwd=folder, **installed)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Read words without regard to case" in mltrack("train", "--help")
    trained = tiny.last_json_line(
        mltrack("train", *task, "--lowercase", "--max-steps", 20, "--save-every", 10, "--output", "json")
    )
    run_id = trained["run_id"]
    uri = f"sqlite:///{folder}/mlflow.db"
    params = MlflowClient(uri).get_run(run_id).data.params
    assert (params["task"], params["lowercase"]) == ("token_classification", "true")

    rebuild = json.loads(mltrack("data", "show", run_id, "--output", "json"))["rebuild"]
    assert "--lowercase true" in rebuild
    assert "records" in mltrack(*shlex.split(rebuild)[1:])
    resumed = tiny.last_json_line(mltrack("train", "--resume", run_id, "--max-steps", 60, "--output", "json"))
    assert (resumed["run_id"], resumed["steps_run"]) == (run_id, 60)
    assert json.loads((folder / "mltrack-runs" / run_id / "config.json").read_text())["lowercase"] is True
    changed = commands.mltrack(
        "train", "--resume", run_id, *task, "--no-lowercase", "--max-steps", 80, cwd=folder, **installed
    )
    assert changed.returncode == 2
    assert "lowercase" in changed.stderr

    (answer,) = json.loads(
        mltrack("predict", "--model-uri", resumed["model_uri"], "--text", "def g ( 1 )", "--output", "json")
    )
    assert answer == {"tags": ["keyword", "name", "mark", "number", "mark"]}
    figures = json.loads(
        mltrack("evaluate", "--model-uri", resumed["model_uri"], "--dataset-path", "held.jsonl", "--output", "json")
    )
    assert figures["accuracy"] == 1.0, "it is judged as it was trained: without regard to case"

    name = "mltrack-token_classification"
    mltrack("models", "promote", name, "--version", 1, "--alias", "champion")
    told = json.loads(
        mltrack("models", "promote", name, "--version", 2, "--dataset-path", "held.jsonl", "--output", "json")
    )
    assert told["promoted"] is True

    folder_of_version = (
        MlflowClient(uri)
        .get_logged_model(MlflowClient(uri).get_model_version(name, "2").source.rsplit("/", 1)[-1])
        .artifact_location
    )
    served = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_BOTH, folder_of_version.removeprefix("file://")],
        cwd=folder,
        env=commands.environment(PYTHONPATH=""),
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert "{'tags': ['keyword', 'name', 'mark', 'mark']}, {'tags': ['keyword', 'number']}" in served.stdout


def test_what_is_wrong_is_said_in_one_line(project: tuple[Path, dict[str, str]]) -> None:
    folder, installed = project
    (folder / "bad.jsonl").write_text('{"words": ["a", "b"], "tags": ["name"]}\n', encoding="utf-8")
    task = ("--task", "token_classification", "--dataset-path", "bad.jsonl")
    for words, expected in (
        ((*task, "--offline"), "bad.jsonl, record 1, field 'tags': has 1 tags for 2 words"),
        (("--task", "token_classification", "--offline"), "the built-in source 'stdlib' has no records for"),
        (("--task", "token_clasification", "--offline"), "not 'token_clasification'"),
        ((*task, "--offline", "--packing"), "bad.jsonl, record 1"),
        (("--task", "text_classification", "--lowercase", "true"), "No such option: --lowercase"),
    ):
        done = commands.mltrack("train", *words, cwd=folder, **installed)
        assert done.returncode == 2, done.stderr
        (line,) = [one for one in done.stderr.splitlines() if one.startswith("mltrack:")]
        assert expected in line


def test_where_the_package_is_not_installed_that_is_said(project: tuple[Path, dict[str, str]]) -> None:
    folder, _ = project
    done = commands.mltrack("train", "--task", "token_classification", "--dataset-path", "records.jsonl", cwd=folder)
    assert done.returncode == 2
    assert (
        "one of text_classification, code_generation, security_classification, not 'token_classification'"
        in done.stderr
    )
