"""What mltrack does with MLflow, in verbs. Only this package imports mlflow and handles differences of its versions.

Invariant: importing this package loads no mlflow. Every error that leaves it is StoreUnavailable (try later),
StoreRejected (do not try again) or another TrackingError, of one line. Every verb can be repeated when interrupted.
"""

from __future__ import annotations

from mltrack.store import artifacts, fetching, light_model, logged_models, model_tags, params, placement, registry, runs
from mltrack.store.connection import (
    Store,
    active_run,
    connect,
    default_tracking_uri,
    import_client,
    ping,
    served_uri,
)
from mltrack.store.database import database_file, has_running_runs
from mltrack.store.light_model import write_model_folder
from mltrack.store.logged_models import models_of_run, prune, publish
from mltrack.store.params import log_params, same_meaning
from mltrack.store.refusal import StoreDenied, StoreRejected, StoreUnavailable, credentials_place, translated
from mltrack.store.registry import (
    get_alias,
    list_models,
    list_versions,
    load_folder,
    load_pyfunc,
    register,
    resolve,
    set_alias,
)
from mltrack.store.runs import (
    RunInfo,
    create_run,
    delivered_pairs,
    finish_run,
    get_run,
    list_runs,
    log_inputs,
    log_points,
    reopen_run,
    search_running_runs,
    set_tags,
)
