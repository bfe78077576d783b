"""The end of `mltrack train`: the result, its place, and the next commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from itertools import groupby
from pathlib import Path
from typing import TextIO

from mltrack.addresses import is_same
from mltrack.config import OPTIONS, TrainModelRequest, TrainModelResponse
from mltrack.errors import MltrackError, printable
from mltrack.evaluation.beside_baselines import verdict
from mltrack.journal import RunDirectory, RunInfo, read_json
from mltrack.records.builtin.stdlib_source import STDLIB
from mltrack.store import default_tracking_uri
from mltrack.tasks import task_named

SAMPLES_SHOWN, SAMPLE_LINES, SAMPLE_WIDTH = 3, 8, 110
DEFAULT_FOLDER = OPTIONS["output_dir"].default
_REPEATED = re.compile(r"(.{1,40}?)\1{3,}")
"""A piece of a line that is repeated at least four times in a row."""


def print_summary(request: TrainModelRequest, response: TrainModelResponse, *, file: TextIO) -> None:
    """Print the summary of a training, if it has a run directory."""
    directory = _directory(request, response)
    if directory is None:
        return
    info, request = directory.read_run(), _effective(directory, request)
    lines = [""]
    if response.success:
        lines += _result(request, response) + _samples(directory)
    lines += [f"warning    {line}" for line in response.warnings]
    lines += _whereabouts(response, directory, info) + _commands(request, response, directory, info)
    print(printable("\n".join(lines), but="\n\t"), file=file, flush=True)


def _effective(directory: RunDirectory, request: TrainModelRequest) -> TrainModelRequest:
    """The options of the run; a resumed run inherits some that are not on this command line."""
    saved = read_json(directory.path / "config.json")
    if saved is None:
        return request
    return TrainModelRequest(**{name: value for name, value in saved.items() if name in OPTIONS})


def _directory(request: TrainModelRequest, response: TrainModelResponse) -> RunDirectory | None:
    folders = [Path(path).parent for path in (response.metrics_file, response.model_path) if path]
    folders += [Path(request.output_dir) / response.run_id] if response.run_id else []
    found = next((folder for folder in folders if (folder / "run.json").exists()), None)
    return RunDirectory(found.absolute()) if found is not None else None


def _result(request: TrainModelRequest, response: TrainModelResponse) -> list[str]:
    best = f"{request.metric_name} {response.best_metric:.4f}" if response.best_metric is not None else "no evaluation"
    where = (
        f" (epoch {response.best_epoch + 1}, step {response.best_step:,})" if response.best_epoch is not None else ""
    )
    figures: dict[str, float] = next(
        (one["metrics"] for one in response.checkpoints if one["step"] == response.best_step), {}
    )
    lines = [f"best       {best}{where}"]
    if judged := verdict(figures, response.baselines, request.metric_name):
        lines.append(f"           {judged}")
    about = task_named(request.task).card.about_builtin
    if about and request.dataset_path == STDLIB:
        lines.append(f"           {about}")
    early = ", stopped early" if response.stopped_early else ""
    rate = f", {response.tokens_per_second:,.0f} tokens/s" if response.tokens_per_second else ""
    epochs = f"{response.epochs_run} epoch{'s' if response.epochs_run != 1 else ''}"
    lines.append(f"trained    {response.steps_run:,} steps, {epochs} in {response.training_time:.0f} s{rate}{early}")
    return lines


def _samples(directory: RunDirectory) -> list[str]:
    path = directory.path / "samples.json"
    if not path.exists():
        return []
    lines = ["", "samples (greedy):"]
    for sample in json.loads(path.read_text(encoding="utf-8"))[:SAMPLES_SHOWN]:
        lines.append(f"  # {_cut(' '.join(sample['description'].split()))}")
        lines += [f"    {line}" for line in shown_sample(sample["completion"])]
    return [*lines, ""]


def shown_sample(text: str) -> list[str]:
    """A completion in at most `SAMPLE_LINES` lines: what repeats itself is shown once, with how often."""
    lines: list[str] = []
    for line, same in groupby(line for line in text.splitlines() if line.strip()):
        count = len(list(same))
        short = _cut(_REPEATED.sub(lambda found: f"{found[1]} [x{len(found[0]) // len(found[1])}] ", line).rstrip())
        lines.append(short + (f"  [x{count}]" if count > 1 else ""))
    more = len(lines) - SAMPLE_LINES
    return lines if more <= 0 else [*lines[: SAMPLE_LINES - 1], f"[{more + 1} more lines]"]


def _cut(line: str) -> str:
    return line if len(line) <= SAMPLE_WIDTH else line[: SAMPLE_WIDTH - 3] + "..."


def _whereabouts(response: TrainModelResponse, directory: RunDirectory, info: RunInfo) -> list[str]:
    lines = [f"run        {response.run_id} ({response.status}) in {directory.path}"]
    if response.model_path:
        lines.append(f"model      {response.model_path}")
    held = response.registered_model
    if held:
        lines.append(
            f"registry   models:/{held['name']}/{held['version']}"
            f" ({', '.join('@' + alias for alias in held['aliases'])}) in {info.address}"
        )
        if held.get("decision"):
            lines.append(f"           {held['decision']}")
        if held.get("command"):
            lines.append(f"decide     {_command(*shlex.split(held['command']), '--tracking-uri', info.address)}")
    delivery = directory.read_delivery()
    for line in delivery.get("exposed", []):
        lines.append(f"secret     {line}")
    for line in delivery.get("failed", []):
        lines.append(f"refused    {line}")
    if settled := delivery.get("elsewhere") or delivery.get("deleted"):
        lines.append(f"delivery   {settled}")
    elif response.delivery == "pending":
        lines.append(f"delivery   pending: {_command('mltrack', 'sync', str(directory.path))}")
        if delivery.get("waiting"):
            lines.append(f"           {delivery['waiting']}")
    return lines


def _commands(
    request: TrainModelRequest, response: TrainModelResponse, directory: RunDirectory, info: RunInfo
) -> list[str]:
    """Look, load, continue: for the terminal in which the training ran, without what holds there anyway."""
    here = "MLFLOW_RUN_ID" not in os.environ  # `mlflow run` may train in a folder of its own
    folder = [] if here and directory.path.parent == Path(DEFAULT_FOLDER).absolute() else [str(directory.path.parent)]
    in_folder = [word for path in folder for word in ("--output-dir", path)]
    in_store = [] if here and _is_default(info.address) else ["--tracking-uri", info.address]
    lines = []
    if info.address.startswith("http") and info.run_id:
        lines.append(f"look       {info.address.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}")
    elif info.run_id:
        lines.append(f"look       {_command('mltrack', 'ui', *in_folder, *in_store)}")
    if response.registered_model:
        uri = f"models:/{response.registered_model['name']}/{response.registered_model['version']}"
        text = task_named(request.task).serving.example
        lines.append(f"load       {_command('mltrack', 'predict', '--model-uri', uri, '--text', text, *in_store)}")
    if response.checkpoints and not response.stopped_early:
        words = ["mltrack", "resume", response.run_id or "latest", *in_folder, *in_store, *_further(request, response)]
        lines.append(f"continue   {_command(*words)}")
    return lines


def _is_default(address: str) -> bool:
    """True if commands in this folder use that store anyway."""
    try:
        return is_same(default_tracking_uri(None), address)
    except MltrackError:  # this folder cannot have one
        return False


def _further(request: TrainModelRequest, response: TrainModelResponse) -> list[str]:
    """The options that continue a finished training; an interrupted one needs none."""
    if not response.success:
        return []
    if request.max_steps is not None and response.steps_run >= request.max_steps:
        return ["--max-steps", str(2 * response.steps_run)]
    return ["--epochs", str(response.epochs_run + 1)]


def _command(*words: str) -> str:
    program = Path(sys.executable).parent / words[0]
    found = shutil.which(words[0])
    if found is not None and program.exists() and Path(found).samefile(program):
        return shlex.join(words)
    if program.exists():
        return shlex.join([str(program), *words[1:]])
    # not installed: from the source tree, as `mlflow run` does
    package_parent = Path(__file__).resolve().parents[2]
    return shlex.join(["env", f"PYTHONPATH={package_parent}", sys.executable, "-m", *words])
