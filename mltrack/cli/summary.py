"""The end of `mltrack train`: the result, its place, and the next commands."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TextIO

from mltrack.config import OPTIONS, TrainModelRequest, TrainModelResponse
from mltrack.errors import printable
from mltrack.journal import RunDirectory, RunInfo, read_json
from mltrack.records.builtin.stdlib_source import STDLIB
from mltrack.tasks import task_named

SAMPLES_SHOWN = 3


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
    beside = next(
        (line.partition(" (")[2] for line in _beside_baselines(response) if line.startswith(f"{request.metric_name} ")),
        "",
    )
    lines = [f"best       {best}{' (' + beside if beside else ''}{where}"]
    lines += [
        f"           {line}" for line in _beside_baselines(response) if not line.startswith(f"{request.metric_name} ")
    ]
    about = task_named(request.task).card.about_builtin
    if about and request.dataset_path == STDLIB:
        lines.append(f"           {about}")
    early = ", stopped early" if response.stopped_early else ""
    rate = f", {response.tokens_per_second:,.0f} tokens/s" if response.tokens_per_second else ""
    lines.append(
        f"trained    {response.steps_run:,} steps, {response.epochs_run} epochs in {response.training_time:.0f}"
        f" s{rate}{early}"
    )
    return lines


def _beside_baselines(response: TrainModelResponse) -> list[str]:
    """The best model's values with the baselines of the same metric: "eval_macro_f1 0.81 (majority 0.40, tfidf
    0.87)".
    """
    best: dict[str, float] = next(
        (one["metrics"] for one in response.checkpoints if one["step"] == response.best_step), {}
    )
    beside: dict[str, list[str]] = {}
    for name, value in response.baselines.items():
        who, _, metric = name.removeprefix("baseline_").partition("_")
        beside.setdefault(metric, []).append(f"{who} {value:.4f}")
    return [
        (
            f"eval_{metric} {best[f'eval_{metric}']:.4f} (baselines: {', '.join(others)})"
            if f"eval_{metric}" in best
            else f"{metric}: {', '.join(others)}"
        )
        for metric, others in beside.items()
    ]


def _samples(directory: RunDirectory) -> list[str]:
    path = directory.path / "samples.json"
    if not path.exists():
        return []
    lines = ["", "samples (greedy):"]
    for sample in json.loads(path.read_text(encoding="utf-8"))[:SAMPLES_SHOWN]:
        lines.append(f"  # {' '.join(sample['description'].split())[:120]}")
        lines += [f"    {line}" for line in sample["completion"].splitlines()[:8] if line.strip()]
    return [*lines, ""]


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
    lines = []
    if info.address.startswith("http") and info.run_id:
        lines.append(f"open       {info.address.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}")
    elif info.run_id and info.address.startswith("sqlite"):
        lines.append(f"open       {_command('mlflow', 'ui', '--backend-store-uri', info.address)}")
    if response.registered_model:
        uri = f"models:/{response.registered_model['name']}/{response.registered_model['version']}"
        text = task_named(request.task).serving.example
        lines.append(
            "load      "
            f" {_command('mltrack', 'predict', '--tracking-uri', info.address, '--model-uri', uri, '--text', text)}"
        )
    if response.checkpoints and not response.stopped_early:
        words = [
            "mltrack",
            "train",
            "--resume",
            response.run_id or "latest",
            "--output-dir",
            str(directory.path.parent),
        ]
        words += ["--tracking-uri", info.address]
        words += _further(request, response)
        lines.append(f"resume     {_command(*words)}")
    return lines


def _further(request: TrainModelRequest, response: TrainModelResponse) -> list[str]:
    """The options that continue a finished training; an interrupted one needs none."""
    if not response.success:
        return []
    if request.max_steps is not None and response.steps_run >= request.max_steps:
        return ["--max-steps", str(2 * response.steps_run)]
    return ["--epochs", str(response.epochs_run + 1)]


def _command(*words: str) -> str:
    program = Path(sys.executable).parent / words[0]
    if program.exists() or words[0] != "mltrack":
        return shlex.join([str(program) if program.exists() else words[0], *words[1:]])
    package_parent = (
        Path(__file__).resolve().parents[2]
    )  # not installed: run from the source tree, as `mlflow run` does
    return shlex.join(["env", f"PYTHONPATH={package_parent}", sys.executable, "-m", *words])
