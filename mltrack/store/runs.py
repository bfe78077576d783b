"""Runs: create, read and finish them, and write their points, tags and data sets.

Invariant: an interrupted verb may be repeated with the same arguments and leaves the store as one call does. A run is
found by its idempotency key, a metric point by its fixed timestamp, a data set by its name and digest."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import sys
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mltrack.addresses import is_same, redact
from mltrack.errors import printable
from mltrack.store.connection import Store, all_pages, default_tracking_uri
from mltrack.store.database import own_artifact_root
from mltrack.store.former_tags import with_present_names
from mltrack.store.refusal import StoreRejected, already_exists, translated

LOCAL_ID_TAG = "mltrack.local_id"
KIND_TAG = "mltrack.kind"
MAX_POINTS = 1000
MAX_TAGS = 100
MAX_TAG_LENGTH = 8000
MAX_NAME_LENGTH, MAX_DATASET_NAME_LENGTH, MAX_DIGEST_LENGTH = 250, 500, 36
CUT_MARK = "...(cut)"

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
"""An id is used as the name of a folder."""
Json = TypeVar("Json", dict[str, Any], list[Any])

Point = tuple[str, float, int, int]
"""key, value, timestamp in ms, step"""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What the store knows of a run."""

    run_id: str
    experiment_id: str
    status: str
    """RUNNING, FINISHED, FAILED, KILLED, SCHEDULED"""
    artifact_uri: str
    tags: dict[str, str]
    params: dict[str, str]
    is_deleted: bool = False
    """in MLflow's trash, or its experiment is"""
    run_name: str = ""
    start_time_ms: int = 0
    end_time_ms: int | None = None
    metrics: dict[str, float] | None = None
    """the last value of each metric"""


def create_run(
    store: Store,
    *,
    experiment_name: str | None,
    run_name: str | None,
    tags: Mapping[str, str],
    idempotency_key: str,
    start_time_ms: int,
    experiment_id: str | None = None,
) -> RunInfo:
    """The run with `idempotency_key`, created if there is none.

    Args:
        experiment_id: takes precedence over the name.
        experiment_name: None: MLFLOW_EXPERIMENT_ID, else MLFLOW_EXPERIMENT_NAME, else "Default". Created if it does not
            exist.
    """
    experiment_id = experiment_id or find_experiment(store, experiment_name)
    with translated(store, "creating the run"):
        found = store.client.search_runs(
            [experiment_id], filter_string=f"tags.`{LOCAL_ID_TAG}` = '{_quoted(idempotency_key)}'", max_results=1
        )
        if found:
            return _info(store, found[0])
        all_tags = {
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            **_legal_tags(tags),
            LOCAL_ID_TAG: idempotency_key,
        }
        run = store.client.create_run(
            experiment_id,
            start_time=start_time_ms,
            tags=all_tags,
            run_name=run_name and legal_text(run_name, MAX_NAME_LENGTH),
        )
        return _info(store, run)


def find_experiment(store: Store, name: str | None) -> str:
    """The id of the experiment, created if it does not exist; two processes at once get the same one."""
    environment = os.environ if _environment_means(store) else {}
    given_id = environment.get("MLFLOW_EXPERIMENT_ID") if name is None else None
    variable = "MLFLOW_EXPERIMENT_ID" if given_id else "MLFLOW_EXPERIMENT_NAME"
    named = "" if name is not None or not environment.get(variable) else f" that {variable} names"
    shown_name = f" '{name}'" if name else named and f"{named} (--experiment-name chooses another)"
    with translated(store, f"looking for the experiment{shown_name}"):
        name = name or environment.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        experiment = store.client.get_experiment(given_id) if given_id else store.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(store.client.create_experiment(name, artifact_location=_location(store)))
            except Exception as error:
                experiment = (
                    store.client.get_experiment_by_name(name)
                    if already_exists(error) or "UNIQUE" in str(error)
                    else None
                )
                if experiment is None:
                    raise
    if experiment.lifecycle_stage == "deleted":
        raise StoreRejected(
            f"{store.shown_uri}: experiment '{experiment.name}'{named} is deleted; choose another --experiment-name, or"
            " restore it with"
            f" '{_mlflow(store, 'experiments', 'restore', '--experiment-id', experiment.experiment_id)}'"
        )
    return str(experiment.experiment_id)


def _environment_means(store: Store) -> bool:
    """False if MLFLOW_TRACKING_URI names another store: `mlflow.set_experiment` puts an experiment id of that store
    into the environment.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return uri is None or is_same(default_tracking_uri(), store.tracking_uri)


def get_run(store: Store, run_id: str) -> RunInfo:
    """The run; raises StoreRejected if this store does not hold it."""
    with translated(store, f"reading run {run_id}"):
        return _info(store, store.client.get_run(run_id))


def get_active_run(store: Store, run_id: str) -> RunInfo:
    """Like `get_run`, for a run that can be written.

    Raises:
        StoreRejected: the store does not hold it, or it is deleted; the message says how to restore it.
    """
    run = get_run(store, run_id)
    if run.is_deleted:
        raise StoreRejected(
            f"{store.shown_uri}: run {run_id} is deleted; restore it with '{restore_command(store, run)}'"
        )
    return run


def restore_command(store: Store, run: RunInfo) -> str:
    """MLflow's command that restores a deleted run, or its whole experiment if that is deleted."""
    with translated(store, f"reading experiment {run.experiment_id}"):
        experiment = store.client.get_experiment(run.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        return _mlflow(store, "experiments", "restore", "--experiment-id", run.experiment_id)
    return _mlflow(store, "runs", "restore", "--run-id", run.run_id)


def reopen_run(store: Store, run_id: str) -> None:
    """Set the status RUNNING for a resumed run, which MLflow does not do."""
    with translated(store, f"reopening run {run_id}"):
        store.client.update_run(run_id, status="RUNNING")


def finish_run(store: Store, run_id: str, status: str, end_time_ms: int | None = None) -> None:
    """Set the final status: FINISHED, FAILED or KILLED."""
    with translated(store, f"ending run {run_id}"):
        store.client.set_terminated(run_id, status=status, end_time=end_time_ms)


def set_tags(store: Store, run_id: str, tags: Mapping[str, Any]) -> None:
    """Set any number of tags; a value beyond MLflow's 8,000 characters is cut with a mark."""
    from mlflow.entities import RunTag

    rows = [RunTag(key, value) for key, value in _legal_tags(tags).items()]
    with translated(store, f"tagging run {run_id}"):
        for start in range(0, len(rows), MAX_TAGS):
            store.client.log_batch(run_id, tags=rows[start : start + MAX_TAGS])


def drop_tag(store: Store, run_id: str, key: str) -> None:
    """Remove a tag, if it exists."""
    with translated(store, f"untagging run {run_id}"):
        if key in store.client.get_run(run_id).data.tags:
            store.client.delete_tag(run_id, key)


def log_points(store: Store, run_id: str, points: Sequence[Point]) -> None:
    """Send metric points, in requests of at most 1,000; a point sent twice is stored once, because its timestamp is the
    caller's.

    An infinity is stored as the largest finite number of its sign, as MLflow does; a NaN stays NaN (the caller tags
    both)."""
    from mlflow.entities import Metric

    rows = [Metric(legal_name(key), finite(value), int(timestamp), int(step)) for key, value, timestamp, step in points]
    with translated(store, f"sending {len(rows)} points of run {run_id}"):
        for start in range(0, len(rows), MAX_POINTS):
            store.client.log_batch(run_id, metrics=rows[start : start + MAX_POINTS])


def log_a_point_again(store: Store, run_id: str) -> bool:
    """Write a point that the run holds already, to check that the store takes points of this run; nothing changes.

    Returns:
        False if the run has no point yet; then nothing was written.
    """
    from mlflow.entities import Metric

    with translated(store, f"writing on run {run_id}"):
        held = next((one for one in store.client.get_run(run_id).data._metric_objs if one.value == one.value), None)
        if held is None:
            return False
        store.client.log_batch(run_id, metrics=[Metric(held.key, held.value, held.timestamp, held.step)])
        return True


def log_inputs(store: Store, run_id: str, inputs: Iterable[Mapping[str, Any]]) -> None:
    """Write the run's data sets.

    Args:
        inputs: each with `name` and `digest` (cut to 36 characters), and maybe `source` (path, URI, or a JSON-able
            dict), `source_type`, `context` (training, validation, test), `schema` and `profile` (JSON text or
            JSON-able).
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    rows = []
    for given in inputs:
        source = given.get("source") or ""
        data = Dataset(
            name=legal_text(given["name"], MAX_DATASET_NAME_LENGTH),
            digest=str(given["digest"])[:MAX_DIGEST_LENGTH],
            source_type=str(given.get("source_type") or "local"),
            source=json.dumps(source if isinstance(source, Mapping) else {"uri": str(source)}),
            schema=_json_text(given.get("schema")),
            profile=_json_text(given.get("profile")),
        )
        context = given.get("context")
        rows.append(DatasetInput(data, [InputTag("mlflow.data.context", str(context))] if context else []))
    if rows:
        with translated(store, f"naming the data sets of run {run_id}"):
            store.client.log_inputs(run_id, datasets=rows)


def delivered_pairs(store: Store, run_id: str, keys: Iterable[str], after_step: int) -> set[tuple[str, int]]:
    """The (key, step) pairs with step > `after_step` that the store holds already; for a resume without the local
    journal.
    """
    pairs: set[tuple[str, int]] = set()
    with translated(store, f"reading what run {run_id} holds"):
        for key in keys:
            pairs.update(
                (key, metric.step)
                for metric in store.client.get_metric_history(run_id, legal_name(key))
                if metric.step > after_step
            )
    return pairs


def list_runs(
    store: Store, experiment_name: str | None = None, *, max_results: int = 50, status: str | None = None
) -> list[RunInfo]:
    """The newest runs first, of one experiment or of all; an experiment that does not exist has none."""
    with translated(store, "listing the runs"):
        if experiment_name is None:
            experiment_ids = [
                experiment.experiment_id
                for experiment in all_pages(lambda token: store.client.search_experiments(page_token=token))
            ]
        else:
            experiment = store.client.get_experiment_by_name(experiment_name)
            experiment_ids = [experiment.experiment_id] if experiment else []
        if not experiment_ids:
            return []
        where = f"attributes.status = '{status}'" if status else ""
        found = store.client.search_runs(
            experiment_ids, filter_string=where, max_results=max_results, order_by=["attributes.start_time DESC"]
        )
        return [_info(store, run) for run in found]


def search_running_runs(store: Store) -> list[RunInfo]:
    """Runs of mltrack with status RUNNING: candidates for a reaper, which must check their processes itself."""
    return [run for run in list_runs(store, max_results=1000, status="RUNNING") if LOCAL_ID_TAG in run.tags]


def legal_name(key: str) -> str:
    """`key`, or if MLflow refuses it as the name of a metric, param or tag, a legal name that no other key gets.

    Refused characters become '_', characters beyond 250 are cut, and the key's checksum (CRC-32) is appended."""
    key = str(key)
    name = re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)
    name = re.sub(r"/+", "/", name).strip("/") or "_"
    name = "/".join("_" if part in (".", "..") else part for part in name.split("/"))
    if name == key and len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{name[: MAX_NAME_LENGTH - 9]}-{zlib.crc32(key.encode('utf-8', 'backslashreplace')):08x}"


def legal_text(value: Any, limit: int) -> str:
    """`value` as text that every database takes: lone surrogates (of undecodable file names) and NUL are escaped, and
    text beyond `limit` characters is cut with a mark.
    """
    return cut(_storable(str(value)), limit)


def finite(value: float) -> float:
    """`value`, or for an infinity the largest finite number of its sign; NaN stays NaN."""
    return max(-sys.float_info.max, min(sys.float_info.max, float(value))) if value == value else float("nan")


def cut(text: str, limit: int) -> str:
    """`text`, cut to `limit` characters including a mark if it is longer."""
    return text if len(text) <= limit else text[: limit - len(CUT_MARK)] + CUT_MARK


def _mlflow(store: Store, *words: str) -> str:
    """An MLflow command line for this store."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(store.shown_uri)} mlflow {shlex.join(words)}"


def _location(store: Store) -> str | None:
    """Where the files of a new experiment belong; None: MLflow decides."""
    root = own_artifact_root() if store.is_local else None
    return None if root is None else f"{root}/{uuid.uuid4().hex}"


def _legal_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    return {legal_name(key): legal_text(redact(str(value)), MAX_TAG_LENGTH) for key, value in tags.items()}


def parsed(text: str, kind: type[Json]) -> Json:
    """The JSON value of a tag, which is not trusted; an empty `kind` if it is of another kind."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return kind()
    return value if isinstance(value, kind) else kind()


def _info(store: Store, run: Any) -> RunInfo:
    if not _RUN_ID.fullmatch(run.info.run_id):
        raise StoreRejected(
            f"{store.shown_uri} names a run {printable(run.info.run_id[:80])!r}, which is no run id; an id has"
            " letters, digits, '-' and '_' only"
        )
    store.artifact_roots[run.info.run_id] = run.info.artifact_uri
    return RunInfo(
        run_id=run.info.run_id,
        experiment_id=str(run.info.experiment_id),
        status=str(run.info.status),
        artifact_uri=run.info.artifact_uri,
        tags=with_present_names(run.data.tags),
        params=dict(run.data.params),
        is_deleted=run.info.lifecycle_stage == "deleted",
        run_name=run.info.run_name or "",
        start_time_ms=int(run.info.start_time or 0),
        end_time_ms=run.info.end_time,
        metrics=dict(run.data.metrics),
    )


def _storable(text: str) -> str:
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def _json_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return _storable(text)  # not cut: MLflow refuses a text that is too long, but half a JSON would be invalid


def _quoted(text: str) -> str:
    if "'" in text:
        raise StoreRejected(f"the key {text!r} must not contain a quote; use letters, digits and '-'")
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"
