"""The options of `mltrack train`: what is accepted, and that an empty word means that an option is not set."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from mltrack.cli import run
from mltrack.cli.app import app
from mltrack.cli.parameters import without_empty
from mltrack.config import OPTIONS, Option, TrainingConfig, TrainModelRequest, checked_options
from mltrack.errors import ConfigurationError
from mltrack.runs.description import params_of

NUMBERS = [option for option in OPTIONS.values() if option.kind in ("int", "float", "interval")]
WHOLE_NUMBERS = [option for option in NUMBERS if option.kind != "float"]


def _refused(option: Option, value: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        option.check(value)
    line = str(caught.value)
    assert line.startswith(f"{option.name} must be "), line
    assert "\n" not in line
    assert len(line) < 400
    return line


@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: option.name)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, True, False], ids=str)
def test_what_is_no_number_is_refused_in_one_line(option: Option, value: object) -> None:
    assert f", not {value!r}" in _refused(option, value)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.name)
def test_a_number_of_thousands_of_digits_is_refused_in_one_line(option: Option) -> None:
    assert "more than 4,300 digits" in _refused(option, 10**5000)


@pytest.mark.parametrize("option", WHOLE_NUMBERS, ids=lambda option: option.name)
@pytest.mark.parametrize("value", [2**63, 10**30, 10**400, 1e300], ids=["2**63", "10**30", "10**400", "1e300"])
def test_a_whole_number_beyond_64_bits_is_refused_in_one_line(option: Option, value: object) -> None:
    _refused(option, value)


@pytest.mark.parametrize("word", ["nan", "inf", "-Infinity", "1e400", "-1e400"])
def test_a_word_that_is_no_finite_number_is_shown_as_it_was_typed(word: str) -> None:
    for option in NUMBERS:
        with pytest.raises(ConfigurationError) as caught:
            option.parse(word)
        assert re.match(rf"{option.name} must be .*, not {word!r}", str(caught.value))


@pytest.mark.parametrize("digits", [20, 400, 5000])
def test_a_word_of_many_digits_is_refused_in_one_line(digits: int) -> None:
    for option in WHOLE_NUMBERS:
        with pytest.raises(ConfigurationError) as caught:
            option.parse("9" * digits)
        assert re.match(rf"{option.name} must be .*, not '9999", str(caught.value)), option.name
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.name)
def test_an_empty_word_means_that_the_option_is_not_set(option: Option) -> None:
    assert option.parse("") == option.default
    request = TrainModelRequest.from_words({"seed": "1", option.name: ""} if option.name != "seed" else {"seed": ""})
    assert getattr(request, option.name) == option.default
    assert option.name not in request.as_typed, "as if it had not been typed"


def _command() -> object:
    import typer

    return typer.main.get_command(app)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["train", "--epochs", "", "--seed", "1"], ["train", "--seed", "1"]),
        (["train", "--epochs=", "--seed=1"], ["train", "--seed=1"]),
        (["train", "--task", "text_classification", "--task", ""], ["train", "--task", "text_classification"]),
        (["train", "--debug", "", "--output_dir", "", "--dataset-path", ""], ["train"]),
        (
            ["predict", "--model-uri", "m", "--stop", "", "--text", "--stop", "--input-path", ""],
            ["predict", "--model-uri", "m", "--text", "--stop"],
        ),
        (["models", "promote", "m", "--alias", "", "--version", "1"], ["models", "promote", "m", "--version", "1"]),
        (["models", "delete", "", "--force", ""], ["models", "delete", ""]),
        (["data", "check", "--", "--task", ""], ["data", "check", "--", "--task", ""]),
        (["train", "--learnin-rate", ""], ["train", "--learnin-rate", ""]),
        (["predict", "--epochs", ""], ["predict", "--epochs", ""]),
        (["train", "--epochs"], ["train", "--epochs"]),
        (["train", "--help"], ["train", "--help"]),
        ([], []),
    ],
    ids=" ".join,
)
def test_an_option_with_an_empty_value_is_as_if_it_had_not_been_typed(words: list[str], kept: list[str]) -> None:
    assert without_empty(_command(), words) == kept


def test_an_empty_value_reaches_no_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["runs", "--limit", "", "--output-dir", "", "--output", "", "--reap", "", "--tracking-uri", ""]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path / 'mltrack-runs'}\n"
    assert run(["predict", "--model-uri", "", "--text", "x"]) == 2
    assert "Missing option '--model-uri'" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["-1", "many", "9" * 5000])
def test_a_limit_that_is_no_whole_number_is_one_line(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", "--limit", limit]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mltrack: limit must be a whole number")
    assert limit[:10] in line
    assert len(line) < 100


def test_names_of_0_1_are_still_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    request = TrainModelRequest(use_mixed_precision=False, exact=False, new_run=True)
    assert (request.precision, request.strict_resume, request.fork) == (False, False, True)
    assert (request.use_mixed_precision, request.exact, request.new_run) == (False, False, True)
    request.exact = True
    assert request.strict_resume is True
    config = TrainingConfig(use_mixed_precision="bf16")
    assert (config.precision, config.use_mixed_precision) == ("bf16", "bf16")
    assert replace(config, use_mixed_precision="off").precision == "off"
    with pytest.raises(FrozenInstanceError):
        config.use_mixed_precision = "off"
    typed = TrainModelRequest.from_words({"use_mixed_precision": "fp16", "exact": "false"})
    assert (typed.precision, typed.strict_resume) == ("fp16", False)
    assert checked_options({"use_mixed_precision": "fp16", "new_run": True}, "config.json") == {
        "precision": "fp16",
        "fork": True,
    }
    assert params_of(typed)["use_mixed_precision"] == "fp16", "old and new runs share a column"
    assert run(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--precision" in shown
    assert "mixed-precision" not in shown
