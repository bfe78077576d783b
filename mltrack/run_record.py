"""What a run is in MLflow: the run itself, its params and its data sets.

Invariant: a server that does not answer costs nothing but the delay; the run is made when it is back.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mltrack
from mltrack.config import OPTIONS, TrainModelRequest
from mltrack.data import CodeDataset
from mltrack.journal import RunDirectory, RunInfo, records
from mltrack.provenance import git_facts
from mltrack.store import StoreUnavailable, active_run, connect, default_tracking_uri, runs

NOT_PARAMS = {"output_dir", "tracking_uri", "experiment_name", "run_name", "resume", "exact", "new_run", "offline", "exit_wait", "debug", "output"}
"""Options that say where a run is kept, not what it computes; they stay out of the MLflow params."""

assert OPTIONS.keys() >= NOT_PARAMS


def open_run(request: TrainModelRequest, resumed: RunDirectory | None, notice: Callable[[str], None]) -> RunInfo:
    """The MLflow run of a training: the one that `mlflow run` made or that is active here, the resumed one, or a new one.

    Args:
        request: with the task's defaults.
        resumed: the run directory that is continued or forked.
        notice: takes a line for the user; a server that does not answer is one, not an error.

    Raises:
        StoreRejected: the run or the experiment that was named is not there.
    """
    active = active_run()
    given = os.environ.get("MLFLOW_RUN_ID") or (active[0] if active is not None else None)
    info = RunInfo(
        local_id=uuid.uuid4().hex,
        experiment_name=request.experiment_name,
        run_name=request.run_name or f"{request.task} {request.model_name}",
        tracking_uri=default_tracking_uri(request.tracking_uri or (active[1] if active is not None else None)),
        owns_status=active is None,
        offline=request.offline,
        task=request.task,
        created_ms=records.now_ms(),
        tags={"mltrack.task": request.task, **({} if given else git_facts())},
        mltrack_version=mltrack.__version__,
    )
    if resumed is not None and not request.new_run:
        info = resumed.read_run()
    elif given is not None:
        info.run_id = given
        if request.experiment_name or request.run_name:
            notice("experiment_name and run_name are ignored: MLFLOW_RUN_ID names the run already")
    if resumed is not None and request.new_run:
        info.tags["mltrack.forked_from"] = resumed.read_run().run_id or resumed.path.name
    if request.offline:
        return info
    try:
        store = connect(info.tracking_uri)
        if info.run_id is None:
            opened = runs.create_run(
                store,
                experiment_name=info.experiment_name,
                run_name=info.run_name,
                tags=info.tags,
                idempotency_key=info.local_id,
                start_time_ms=info.created_ms,
            )
        else:
            runs.reopen_run(store, info.run_id)
            opened = runs.get_run(store, info.run_id)
        info.run_id, info.experiment_id = opened.run_id, opened.experiment_id
        info.under_mlflow_run = opened.tags.get("mlflow.source.type") == "PROJECT"
    except StoreUnavailable as error:
        notice(f"{error}; training goes on, everything is kept in the run directory and delivered when the server is back")
    return info


def params_of(request: TrainModelRequest) -> dict[str, str]:
    """The effective options that decide a result, each in the form that the user typed it."""
    return {name: request.as_typed.get(name, _written(value)) for name, value in request.options().items() if value is not None and name not in NOT_PARAMS}


def inputs_of(train_dataset: CodeDataset, eval_dataset: CodeDataset) -> list[Mapping[str, Any]]:
    """Both splits as data set inputs of the run."""
    return [_described(train_dataset, "training", "train"), _described(eval_dataset, "evaluation", "eval")]


def _described(dataset: CodeDataset, context: str, split: str) -> Mapping[str, Any]:
    """A data set as an input of the run."""
    profile: dict[str, Any] = {"records": len(dataset), "tokens": int(dataset.lengths.sum()), "truncated": dataset.truncated}
    if dataset.task.is_classification:
        profile["classes"] = dataset.class_counts
    return {
        "name": f"{Path(str(dataset.source)).name}-{split}",
        "digest": dataset.digest[:36],
        "source": str(dataset.source),
        "context": context,
        "profile": json.dumps(profile),
    }


def _written(value: Any) -> str:
    """A value as a user would type it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
