"""Notices about the MLflow run of a training, found when the relay opens it."""

from __future__ import annotations

import os

from mltrack.relay.trainers import VERSION_TAG
from mltrack.store import RunInfo, Store, StoreUnavailable, artifacts, run_models
from mltrack.store.connection import ServersOwnFolder
from mltrack.store.server_version import holds_models, server_version


def opening_notices(store: Store, run: RunInfo) -> list[str]:
    """A line if another tool created the run, one if its artifact folder is unavailable or the server's own, and one if
    the server has no logged models.
    """
    lines = []
    if not holds_models(store):
        lines.append(
            f"{store.shown_uri} is MLflow {server_version(store)}, which has no logged models: the models of the kept"
            f" checkpoints are artifacts of the run, in {run_models.FOLDER}; MLflow 3 shows them with their metrics"
        )
    is_empty_project_run = run.tags.get("mlflow.source.type") == "PROJECT" and not run.metrics
    if os.environ.get("MLFLOW_RUN_ID") == run.run_id and VERSION_TAG not in run.tags and not is_empty_project_run:
        what = (
            f"'{run.run_name}' of {run.tags.get('mlflow.source.name') or 'an unnamed program'}, {run.status},"
            f" {len(run.metrics or {})} metrics"
        )
        lines.append(
            f"MLFLOW_RUN_ID names run {run.run_id} ({what}), which mltrack did not create; this training is added to it"
        )
    try:
        artifacts.check_root(store, run.run_id)
    except StoreUnavailable as error:
        lines.append(f"{error}; models and files stay in the run directory until it is available")
    except ServersOwnFolder as error:
        lines.append(str(error))
    return lines
