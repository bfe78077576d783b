"""The command line: fast help, one line an error, exit codes and a live line on a terminal and none elsewhere."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import FrozenInstanceError, fields, replace

import commands
import pytest
import tiny

import mltrack
from mltrack.cli.command import as_values
from mltrack.config import GROUPS, OPTIONS, TrainingConfig, TrainModelRequest
from mltrack.errors import ConfigurationError


def test_help_loads_nothing_heavy(tmp_path):
    script = (
        "import sys\nfrom mltrack.cli import run\nfor words in (['--help'], ['train', '--help'], ['models', '--help'],"
        " ['sync', '--help']): assert run(words) == 0\nheavy = {'torch', 'mlflow', 'transformers', 'sklearn', 'pandas',"
        " 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    finished = commands.run(sys.executable, "-c", script, cwd=tmp_path, COLUMNS="200")
    assert finished.returncode == 0, finished.stderr
    for option in OPTIONS.values():
        assert option.flag in finished.stdout, option.name


@pytest.mark.parametrize("words", [("--version",), ("--version", "train")])
def test_the_version_is_told_at_once(tmp_path, words):
    script = f"import sys\nfrom mltrack.cli import run\nassert run({list(words)}) == 0\nprint('torch' in sys.modules)"
    finished = commands.run(sys.executable, "-c", script, cwd=tmp_path)
    assert finished.stdout == f"mltrack {mltrack.__version__}\nFalse\n", finished.stderr
    assert commands.cold_mltrack(*words, cwd=tmp_path).stdout == f"mltrack {mltrack.__version__}\n"


def test_the_help_of_train_can_be_scanned(tmp_path):
    finished = commands.cold_mltrack("train", "--help", cwd=tmp_path, COLUMNS="200")
    lines = finished.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    headings = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [*(group.capitalize() for group in GROUPS), "Options"]
    assert "--learning_rate" not in finished.stdout, "one spelling is shown"
    assert "--offline / --no-offline" in finished.stdout


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--offline"], ["--offline", "true"]),
        (["--no-offline", "--seed", "1"], ["--offline", "false", "--seed", "1"]),
        (["--offline", "--seed", "1"], ["--offline", "true", "--seed", "1"]),
        (["--offline", "false"], ["--offline", "false"]),
        (["--offline=true"], ["--offline=true"]),
        (["--no-new-run", "--new_run"], ["--new-run", "false", "--new_run", "true"]),
        (["--no-seed"], ["--no-seed"]),
        (["a", "--offline", "--", "--offline"], ["a", "--offline", "true", "--", "--offline"]),
    ],
)
def test_booleans_are_flags_too(words, meant):
    assert as_values(words, {"--offline", "--new-run", "--new_run"}) == meant


def test_a_flag_leaves_a_commands_arguments_alone(tmp_path):
    for words in (("delete", "--force", "name"), ("delete", "name", "--force", "true")):
        finished = commands.mltrack("models", *words, "--tracking-uri", f"sqlite:///{tmp_path}/none.db", cwd=tmp_path)
        assert "none.db" in finished.stderr, finished.stderr
    finished = commands.mltrack("sync", "--all", "nowhere", cwd=tmp_path)
    assert re.search("sync .*run directories or run ids, or --all true", finished.stderr)


def test_flags_reach_the_command(tmp_path, records_file):
    """A resume that is not there is found out before anything is made: the flags in front of it were accepted."""
    for words in (("--offline", "--no-exact"), ("--no-offline", "--exact", "false"), ("--debug", "--offline", "true")):
        finished = commands.mltrack("train", "--resume", "latest", *words, cwd=tmp_path)
        assert finished.returncode == 2, finished.stderr
        assert "resume=latest" in finished.stderr
        assert ("Traceback" in finished.stderr) == ("--debug" in words)


def test_the_shell_completes_commands_options_and_choices(tmp_path):
    def offered(*words: str) -> str:
        typed = " ".join(("mltrack", *words))
        environment = {"_MLTRACK_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": typed, "SHELL": "/bin/zsh"}
        return commands.run(commands.BIN / "mltrack", cwd=tmp_path, **environment).stdout

    assert "train" in offered("tr")
    assert "--learning-rate" in offered("train", "--learn")
    assert "security_classification" in offered("train", "--task", "sec")
    assert "skip" in offered("evaluate", "--on-bad-record", "sk")
    assert "--install-completion" in commands.mltrack("--help", cwd=tmp_path).stdout


def test_an_option_is_declared_once():
    """`TrainModelRequest` and `TrainingConfig` take their fields from the groups; the exceptions are named."""
    own = [name for name in TrainModelRequest.__annotations__ if name in OPTIONS]
    assert own == []
    assert list(TrainingConfig.__annotations__) == ["num_epochs"]
    assert {f.name for f in fields(TrainingConfig)} - {"num_epochs"} < OPTIONS.keys()


def test_a_training_config_is_valid_and_stays_as_it_is():
    config = TrainingConfig(num_epochs=2, batch_size=4, learning_rate=None, use_mixed_precision=False)
    assert (config.learning_rate, config.use_mixed_precision) == (OPTIONS["learning_rate"].trainer_default, "off")
    with pytest.raises(FrozenInstanceError):
        config.batch_size = 8
    with pytest.raises(ConfigurationError, match=r"batch_size must be .* not 0"):
        replace(config, batch_size=0)
    assert replace(config, seed=1) != config


def test_both_spellings_of_every_option():
    from mltrack.cli.parameters import spellings

    assert spellings("learning_rate") == ["--learning-rate", "--learning_rate"]
    assert spellings("task") == ["--task"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("train", "--task", "code_gen"),
            r"mltrack: task must be .*, not 'code_gen' \(did you mean 'code_generation'\?\)",
        ),
        (("train", "--epochs", "0"), r"mltrack: epochs must be a whole number >= 1, not 0"),
        (("train", "--learning-rate", "fast"), r"mltrack: learning_rate must be a number > 0.*, not 'fast'"),
        (("train", "--debug", "maybe"), r"mltrack: debug must be true or false, not 'maybe'"),
        (("train", "--learnin-rate", "1"), r"mltrack: No such option.*--learnin-rate.*See 'mltrack train --help'"),
        (("trian",), r"mltrack: No such command 'trian'\..*See 'mltrack --help'"),
        (
            ("train", "--dataset-path", "missing.jsonl"),
            r"mltrack: dataset_path: missing\.jsonl: no such file.* \.json, .*stdlib",
        ),
        (("train", "--model-name", "scratch:huge"), r"mltrack: model_name: .*scratch:huge.*scratch:tiny"),
        (("train", "--resume", "latest"), r"mltrack: resume=latest.* no run in .* has a checkpoint"),
        (
            ("predict", "--model-uri", "models:/x@y"),
            r"mltrack: predict .*--text or --input-path",
        ),
        (
            ("train", "--registered-model-name", "a/b"),
            r"mltrack: registered_model_name must be a name without .* not 'a/b'",
        ),
        (
            ("train", "--upload", "none"),
            (
                r"mltrack: upload=none leaves no model to register, but register is best; use --register never, or"
                r" --upload model"
            ),
        ),
        (
            ("train", "--max-length", "100000"),
            r"mltrack: max_length must be at most \d+, .*scratch:small.* not 100000",
        ),
        (
            ("train", "--parallel", "ddp"),
            r"mltrack: parallel=ddp.*auto.*none.*dp",
        ),
        (
            ("train", "--output-dir", "/dev/null/x"),
            r"mltrack: output_dir .*'/dev/null/x'",
        ),
        (
            ("predict", "--model-uri", "nowhere", "--text", "x"),
            r"mltrack: model_uri must be models:/name@alias.*, not 'nowhere'",
        ),
        (("sync", "nowhere"), r"mltrack: sync: 'nowhere' .*run directory .*id of a run in "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, words, line):
    finished = commands.mltrack(*words, cwd=tmp_path)
    assert finished.returncode == 2, finished.stderr
    (said,) = finished.stderr.strip().splitlines()
    assert re.fullmatch(line + ".*", said), said


def test_a_bad_record_is_one_line_and_exit_code_2(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"code": "a", "label": "safe"}\n{"code": "", "label": "safe"}\n')
    finished = commands.mltrack("train", "--task", "text_classification", "--dataset-path", path, cwd=tmp_path)
    assert finished.returncode == 2
    (said,) = finished.stderr.strip().splitlines()
    assert said.startswith(f"mltrack: {path}, record 2, field 'code': ")
    assert not (tmp_path / "mlflow.db").exists(), "no run for what could never train"


def test_a_contradicting_num_labels_says_both_numbers(tmp_path, records_file):
    words = (
        "train",
        "--task",
        "text_classification",
        "--dataset-path",
        records_file("text_classification"),
        "--num-labels",
        "3",
    )
    finished = commands.mltrack(*words, cwd=tmp_path)
    assert finished.returncode == 2
    assert re.search(r"num_labels.*3.*2|2.*num_labels.*3", finished.stderr), finished.stderr


def test_json_output_is_the_last_line_and_whole(tmp_path, records_file):
    words = commands.training(records_file("text_classification"), "--epochs", "1")
    finished = commands.mltrack(*words, "--output", "json", "--offline", "true", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    from dataclasses import fields

    from mltrack.config import TrainModelResponse

    assert set(tiny.last_json_line(finished.stdout)) == {f.name for f in fields(TrainModelResponse)}


def test_no_control_characters_when_piped(tmp_path, records_file):
    words = commands.training(records_file("text_classification"), "--epochs", "1")
    finished = commands.mltrack(*words, "--offline", "true", cwd=tmp_path)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", finished.stdout + finished.stderr)
    for part in (
        "best       eval_loss",
        "(majority 0.",
        "run        ",
        "delivery   pending: ",
        "model      ",
    ):
        assert part in finished.stdout


def test_a_live_line_on_a_terminal(tmp_path, records_file):
    words = [
        "train",
        "--task",
        "text_classification",
        "--dataset-path",
        str(records_file("text_classification")),
        *commands.TINY,
        "--epochs",
        "12",
    ]
    code, text = commands.on_terminal(*words, "--offline", "true", cwd=tmp_path, TERM="xterm", COLUMNS="200")
    assert code == 0
    assert re.search(
        r"step \d+/60  epoch \d+  ETA \d+:\d\d.*loss \d\.\d{4} .*lr \d\.\d\de-0\d  [\d,]+ tokens/s", text, re.DOTALL
    ), text[-3000:]
    assert "best " in text
    assert "\x1b[" in text, "a live line is redrawn in place"


def test_request_and_options_agree():
    from dataclasses import fields

    names = {f.name for f in fields(TrainModelRequest)} - {"as_typed", "task_options", "config_text"}
    assert names == set(OPTIONS)
    request = TrainModelRequest()
    for name, option in OPTIONS.items():
        assert getattr(request, name) == option.default, name
    assert request.validate() == []


def test_all_problems_of_a_request_at_once():
    problems = TrainModelRequest(task="x", epochs=-1, batch_size="many", use_mixed_precision="fp8").validate()
    assert len(problems) == 4
    for name, value in (("task", "'x'"), ("epochs", "-1"), ("batch_size", "'many'"), ("precision", "'fp8'")):
        assert [name in one for one in problems if value in one] == [True], problems


def test_doctor_says_one_line_each(tmp_path):
    finished = commands.mltrack("doctor", cwd=tmp_path)
    lines = finished.stdout.strip().splitlines()
    assert finished.returncode == 0, finished.stdout
    assert all(line.startswith("ok ") for line in lines)
    assert any("tracking" in line and "answers" in line for line in lines)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("x")
    finished = commands.mltrack("doctor", "--tracking-uri", "http://127.0.0.1:9", cwd=tmp_path)
    assert finished.returncode == 1
    bad = [line for line in finished.stdout.splitlines() if line.startswith("BAD")]
    assert len(bad) == 2
    assert "move ./mlruns away" in bad[1]


def test_an_unreachable_server_costs_the_delivery_not_the_run(tmp_path, records_file):
    words = commands.training(records_file("text_classification"), "--epochs", "1")
    finished = commands.mltrack(
        *words, "--tracking-uri", "http://127.0.0.1:9", "--exit-wait", "1", "--output", "json", cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    response = tiny.last_json_line(finished.stdout)
    assert (response["success"], response["delivery"]) == (True, "pending")
    assert "mltrack sync " in finished.stderr.replace("bin/mltrack", "mltrack")
    assert json.loads((tmp_path / "mltrack-runs" / response["run_id"] / "metrics.json").read_text())["entries"]
