"""`mltrack.yaml`: the same options as on the command line, which wins; errors with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import commands
import pytest
import tiny
from conftest import write_records

from mltrack import TrainModelRequest
from mltrack.cli import run
from mltrack.config import OPTIONS, ConfigFile
from mltrack.errors import ConfigurationError

TEXT = """\
# a comment
task: text_classification
learning-rate: 2e-5
batch_size: 4
offline: yes
columns: {code: func, label: target}
validation_path:
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("mltrack.yaml")
    path.write_text(TEXT)
    return path


def test_a_value_means_what_it_means_on_the_command_line(file: Path) -> None:
    held = ConfigFile.read(file)
    assert {name: (word.word, word.line) for name, word in held.words.items()} == {
        "task": ("text_classification", 2),
        "learning_rate": ("2e-5", 3),
        "batch_size": ("4", 4),
        "offline": ("yes", 5),
        "columns": ("code=func,label=target", 6),
    }
    request = TrainModelRequest.from_config(file, batch_size=8)
    assert (request.learning_rate, request.batch_size, request.offline) == (2e-5, 8, True)
    assert request.as_typed["learning_rate"] == "2e-5"


@pytest.mark.parametrize(
    ("text", "line", "facts"),
    [
        ("seed: 1\nlerning_rate: 1", 2, ["lerning_rate", "did you mean 'learning_rate'?"]),
        ("seed: 1\nbatch_size: zero", 2, ["batch_size", "zero"]),
        ("seed: 1\n\nseed: 2", 3, ["seed", "line 1"]),
        ("exact: true\nstrict_resume: true", 2, ["strict_resume", "twice"]),
        ("columns:\n  code: [a, b]", 1, ["columns"]),
        ("task: text_clasification", 1, ["did you mean 'text_classification'?"]),
        ("a: b: c", 1, ["not YAML"]),
        ("seed: !!python/object/apply:os.system ['true']", 1, ["seed"]),
    ],
)
def test_an_error_says_where_it_is(file: Path, text: str, line: int, facts: list[str]) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        ConfigFile.read(file)
    said = str(raised.value)
    assert said.startswith(f"mltrack.yaml, line {line}: ")
    assert "\n" not in said
    assert all(fact in said for fact in facts), said


@pytest.mark.parametrize("text", ["- a\n- b", "only words", "[" * 5000])
def test_what_is_no_list_of_options_is_refused_in_one_line(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"^mltrack\.yaml[^\n]*$"):
        ConfigFile.read(file)


def test_a_file_that_is_not_there_says_what_writes_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--config", "none.yaml"]) == 2
    assert "none.yaml" in (said := capsys.readouterr().err)
    assert "mltrack init" in said


def test_the_effective_options_and_where_each_comes_from(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--config", "mltrack.yaml", "--batch-size", "16", "--output", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == list(OPTIONS)
    assert shown["batch_size"] == {"value": 16, "from": "command line"}
    assert shown["learning_rate"] == {"value": 2e-5, "from": "mltrack.yaml, line 3"}
    assert shown["epochs"]["from"] == "default of text_classification"
    assert shown["epochs"]["value"] > 0
    assert shown["seed"] == {"value": OPTIONS["seed"].default, "from": "default"}
    assert run(["config", "show"]) == 0
    assert "default of code_generation" in capsys.readouterr().out


def test_mlflow_runs_own_default_task_does_not_win_unseen(file, capsys, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789abcdef")
    assert run(["train", "--task", "code_generation", "--config", "mltrack.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mltrack: mltrack.yaml, line 2: task is text_classification")
    assert "-P task=text_classification" in said


def test_init_writes_a_file_that_explains_every_option_and_means_the_defaults(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init"]) == 2, "a file that is there stays"
    assert file.read_text() == TEXT
    assert run(["init", "--force", "--task", "text_classification"]) == 0
    written = file.read_text()
    assert all(f"{name}:" in written for name in OPTIONS)
    assert max(map(len, written.splitlines())) <= 100
    assert set(ConfigFile.read(file).words) == {"task", "dataset_path", "model_name"}
    capsys.readouterr()
    uncommented = "\n".join(line.removeprefix("#") if line[:2] != "# " else line for line in written.splitlines())
    file.write_text(uncommented)
    assert run(["config", "show", "--config", "mltrack.yaml", "--output", "json"]) == 0
    from_file = json.loads(capsys.readouterr().out)
    assert run(["config", "show", "--task", "text_classification", "--output", "json"]) == 0
    default = json.loads(capsys.readouterr().out)
    assert {name: one["value"] for name, one in from_file.items()} == {n: one["value"] for n, one in default.items()}


def test_a_training_takes_the_file_and_keeps_it(tmp_path: Path) -> None:
    records = write_records(tmp_path / "records.jsonl", count=24)
    (tmp_path / "my.yaml").write_text(
        f"task: text_classification\ndataset_path: {records}\nmodel_name: scratch:tiny\nmax_steps: 1\nmax_length: 32\n"
        "offline: true\nbatch_size: 4\ntracking_uri: http://me:secret@127.0.0.1:9\n"
    )
    finished = commands.mltrack("train", "--config", "my.yaml", "--batch-size", "2", "--output", "json", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    folder = Path(tiny.last_json_line(finished.stdout)["metrics_file"]).parent
    config = json.loads((folder / "config.json").read_text())
    assert (config["batch_size"], config["max_length"], config["max_steps"]) == (2, 32, 1)
    kept = (folder / "mltrack.yaml").read_text()
    assert "model_name: scratch:tiny" in kept
    assert "secret" not in kept
    assert '"mltrack.yaml"' in (folder / "journal").read_text(errors="replace"), "an artifact of the run"
