"""`mltrack train`: arguments to a request, signals to a stop, the response to a summary and an exit code."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress

from mltrack.addresses import redact
from mltrack.cli.stop_flag import StopFlag
from mltrack.config import OPTIONS, ConfigFile, TrainModelRequest, TrainModelResponse, options_of
from mltrack.errors import ConfigurationError, described, printable


def train(words: Mapping[str, str]) -> int:
    """Run a training from command line arguments; returns the exit code."""
    request = _request(words)
    stop = StopFlag()
    stop.install()
    _quiet(request.debug)
    from mltrack.hardware import prepare_process

    prepare_process(request.speedups)
    from mltrack.cli.training_progress import TrainingProgress
    from mltrack.runs.use_case import TrainModelUseCase

    progress = TrainingProgress()
    warnings.showwarning = lambda message, *_args, **_kwargs: progress.warn(redact(f"mltrack: {message}"))
    use_case = TrainModelUseCase(
        callbacks=[progress],
        notice=progress.notice,
        progress=progress.preparing,
        on_delivery=progress.delivering,
        stop_requested=stop,
        at_once=stop.at_once,
    )
    try:
        response = use_case.execute(request)
    finally:
        progress.close()
    with suppress(OSError):  # a closed pipe or terminal does not change the outcome
        _tell(request, response)
    return response.exit_code


def _tell(request: TrainModelRequest, response: TrainModelResponse) -> None:
    from mltrack.cli.summary import print_summary

    if request.output == "json":
        print(json.dumps(response.to_dict()), flush=True)
    for line in response.errors:
        print(printable(f"mltrack: {line}"), file=sys.stderr)
    try:
        print_summary(request, response, file=sys.stderr if request.output == "json" else sys.stdout)
    except Exception as error:  # the training is over: a failed summary does not change its outcome
        print(f"mltrack: the summary is not complete: {described(error)}", file=sys.stderr)


def _request(words: Mapping[str, str]) -> TrainModelRequest:
    """Of the command line, and of the file that `--config` names where the command line says nothing."""
    typed, problems, options = dict(words), [], OPTIONS
    file = ConfigFile.read(path) if (path := typed.pop("config", None)) else None
    if file is not None:
        _refuse_two_tasks(file, typed.get("task"))
    words = {name: value.word for name, value in file.words.items()} | typed if file is not None else typed
    with suppress(ConfigurationError):  # reported below with the other problems
        options = options_of(OPTIONS["task"].parse(words.get("task", "")))
    for name, word in words.items():
        try:
            options[name].parse(word)
        except ConfigurationError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError("; ".join(problems))
    request = TrainModelRequest.from_words(words)
    request.config_text = file.text if file is not None else None
    return request


def _refuse_two_tasks(file: ConfigFile, task: str | None) -> None:
    """`mlflow run` always gives a task, its default one if the user named none: that one must not win unseen.

    Raises:
        ConfigurationError: under `mlflow run` the file names another task.
    """
    named = file.words.get("task")
    if "MLFLOW_RUN_ID" in os.environ and named is not None and task not in (None, named.word):
        raise ConfigurationError(
            f"{file.path}, line {named.line}: task is {named.word}, but mlflow run says {task}; add"
            f" -P task={named.word}"
        )


def _quiet(debug: bool) -> None:
    """Hide log lines and warnings of libraries, except with `--debug true`."""
    logging.basicConfig(
        level=logging.INFO if debug else logging.ERROR, format="%(name)s: %(message)s", stream=sys.stderr
    )
    if not debug:
        warnings.filterwarnings("ignore", module=r"(?!mltrack)")
        warnings.formatwarning = lambda message, *_args, **_kwargs: redact(f"mltrack: {message}\n")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
