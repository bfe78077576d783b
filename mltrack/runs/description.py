"""The description of a run in MLflow: the run itself, its params and its data sets.

Invariant: nothing here contacts MLflow; the relay creates the run when the server answers.
"""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mltrack
from mltrack.addresses import is_same, without_secrets
from mltrack.config import TrainModelRequest, options_of
from mltrack.data import CodeDataset
from mltrack.data.own_dataset import OwnDataset
from mltrack.data.requested import WORKING_DIRECTORY
from mltrack.journal import RunDirectory, RunInfo, records
from mltrack.records.builtin.stdlib_source import STDLIB
from mltrack.records.check import DataReport
from mltrack.relay import tracking_uri_of
from mltrack.runs.provenance import git_facts, is_taken
from mltrack.store import StoreRejected, active_run, database_file, default_tracking_uri

MANY_LONG = 0.2
"""The user is warned if a larger share of records is longer than `max_length`."""


def describe_run(request: TrainModelRequest, resumed: RunDirectory | None, notice: Callable[[str], None]) -> RunInfo:
    """The MLflow run of a training: the one that `mlflow run` made or that is active here, the resumed one, or a new
    one, which the relay creates.

    A run that is active here, or that MLFLOW_RUN_ID names, is used by one training: a further one becomes its child.

    Args:
        request: with the task's defaults.
        resumed: the run directory that is continued or forked.
        notice: called with a line for the user.

    Raises:
        StoreRejected: MLFLOW_RUN_ID names a run, but the database that should hold it does not exist.
    """
    if resumed is not None and not request.fork:
        info = _found_again(resumed, request.tracking_uri, notice)
        info.upload = request.upload
        return info
    active = active_run()
    if (
        active is not None
        and request.tracking_uri
        and default_tracking_uri(request.tracking_uri) != active.tracking_uri
    ):
        notice(
            f"run {active.run_id} that is active here is in {without_secrets(active.tracking_uri)}, but tracking_uri is"
            " different: this training gets a run of its own"
        )
        active = None
    given = os.environ.get("MLFLOW_RUN_ID") or (active.run_id if active is not None else None)
    info = RunInfo(
        local_id=uuid.uuid4().hex,
        experiment_name=request.experiment_name,
        run_name=request.run_name or f"{request.task} {request.model_name}",
        tracking_uri=_address(request, active.tracking_uri if active is not None else None),
        owns_status=active is None,
        offline=request.offline,
        upload=request.upload,
        task=request.task,
        created_ms=records.now_ms(),
        tags={"mltrack.task": request.task, WORKING_DIRECTORY: os.getcwd(), **({} if given else git_facts())},
        mltrack_version=mltrack.__version__,
    )
    if resumed is not None:
        info.tags["mltrack.forked_from"] = resumed.read_run().run_id or resumed.path.name
    if given is None:
        return info
    if is_taken(given, request.output_dir):
        info.owns_status, info.experiment_id = (
            True,
            active.experiment_id if active is not None else os.environ.get("MLFLOW_EXPERIMENT_ID"),
        )
        info.tags |= {**git_facts(), "mlflow.parentRunId": given}
        notice(f"MLflow run {given} belongs to an earlier training; this one is recorded as its child run")
    else:
        if (
            not request.offline and (file := database_file(info.tracking_uri)) is not None and not file.exists()
        ):  # a new one would not hold the run either
            raise StoreRejected(
                f"MLFLOW_RUN_ID names run {given}: there is no database {without_secrets(info.tracking_uri)}; unset it,"
                " or give --tracking-uri"
            )
        info.run_id, info.run_name = given, f"{request.task} {request.model_name}"
        if request.experiment_name or request.run_name:
            notice("experiment_name and run_name are ignored: MLFLOW_RUN_ID names the run already")
    return info


def _address(request: TrainModelRequest, active_uri: str | None) -> str:
    try:
        return default_tracking_uri(request.tracking_uri or active_uri)
    except StoreRejected:
        if request.offline:  # `mltrack sync` will name the address
            return ""
        raise


def _found_again(resumed: RunDirectory, given_uri: str | None, notice: Callable[[str], None]) -> RunInfo:
    """The resumed run as in run.json, with its current tracking URI."""
    info, uri = resumed.read_run(), tracking_uri_of(resumed, given_uri)
    if given_uri is None and not is_same(uri, info.tracking_uri):
        notice(f"{info.address} was moved; its database is {without_secrets(uri)} now")
    info.tracking_uri = uri
    return info


def params_of(request: TrainModelRequest) -> dict[str, str]:
    """The effective options that decide a result, each as the user typed it."""
    options = options_of(request.task)
    return {
        options[name].param: request.as_typed.get(name, _written(value))
        for name, value in request.options().items()
        if value is not None and options[name].is_param
    }


def inputs_of(
    request: TrainModelRequest, train_dataset: CodeDataset, eval_dataset: CodeDataset
) -> list[Mapping[str, Any]]:
    """Both splits as data set inputs of the run.

    MLflow keeps one data set for all runs of an experiment with the same digest, so nothing in it depends on a model or
    a tokenizer."""
    return [
        _described(train_dataset, request.dataset_path, "training", "train"),
        _described(eval_dataset, _evaluation_path(request, eval_dataset), "evaluation", "eval"),
    ]


def _evaluation_path(request: TrainModelRequest, dataset: CodeDataset) -> str:
    """The records' path; a data set of the caller's own has a source of its own."""
    own = dataset.source if isinstance(dataset, OwnDataset) else None
    return own or request.validation_path or request.dataset_path


def _described(dataset: CodeDataset, path: str, context: str, split: str) -> Mapping[str, Any]:
    """A data set as an input of the run."""
    number = len(dataset) + dataset.dropped
    profile: dict[str, Any] = {"num_rows": number, "records": number, "digest": dataset.digest}
    if dataset.record_counts:
        profile["classes"] = dataset.record_counts
    source: str | dict[str, str] = path
    if path == STDLIB:  # it depends on the versions of the interpreter and of Bandit
        source = {"uri": STDLIB, "python": platform.python_version(), **dataset.task.builtin_facts()}
    return {
        "name": f"{Path(path).name}-{split}",
        "digest": dataset.digest[:36],
        "source": source,
        "context": context,
        "schema": json.dumps(
            {"mlflow_colspec": [{"name": name, "type": "string", "required": True} for name in dataset.task.fields]}
        ),
        "profile": json.dumps(profile),
    }


def data_summary(
    train_dataset: CodeDataset, eval_dataset: CodeDataset, counts: Mapping[str, int], check: DataReport | None
) -> dict[str, Any]:
    """What `data/data.json` says before the first step: how many records were read and left out, and of each split its
    records, classes and the share that `max_length` cuts or drops.

    Args:
        counts: records_read and records_left_out; empty for data sets that the caller made.
        check: its shares are added where the records were checked.
    """
    return {
        **counts,
        **({} if check is None else check.shares()),
        "training": _split_summary(train_dataset),
        "evaluation": _split_summary(eval_dataset),
    }


def _split_summary(dataset: CodeDataset) -> dict[str, Any]:
    return {
        "records": len(dataset) + dataset.dropped,
        "dropped_records": dataset.dropped,
        "truncated_share": dataset.truncated_share,
        "classes": dict(dataset.record_counts),
        "digest": dataset.digest,
    }


def long_text_warnings(train_dataset: CodeDataset, eval_dataset: CodeDataset) -> list[str]:
    """A line for each split of which `max_length` has cut or dropped more than `MANY_LONG`."""
    lines = []
    for name, dataset in (("training", train_dataset), ("evaluation", eval_dataset)):
        if dataset.truncated_share > MANY_LONG:
            what = "left out" if dataset.dropped else "cut"
            lines.append(
                f"{dataset.truncated_share:.0%} of the {name} records are longer than max_length={dataset.max_length}"
                f" tokens and were {what}"
            )
    return lines


def one_class_warning(train_dataset: CodeDataset, eval_dataset: CodeDataset) -> list[str]:
    """A line for the user if all evaluation records have one class and the training records several."""
    there = [[name for name, count in one.record_counts.items() if count] for one in (train_dataset, eval_dataset)]
    if len(there[0]) < 2 or len(there[1]) != 1:
        return []
    return [
        f"all {len(eval_dataset):,} evaluation records are '{there[1][0]}', so their figures say little; give"
        " --validation-path, or a larger --validation-split"
    ]


def _written(value: Any) -> str:
    """A value as a user would type it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
