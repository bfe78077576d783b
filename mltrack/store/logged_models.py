"""Checkpoints as LoggedModels: published by the light path, pruned with their bytes.

Invariant: one logged model per (run, step), READY only while all its bytes and links are there. Nothing that a
registered version loads is deleted. Both verbs can be interrupted at any point and called again.

    model_id = publish(store, run_id, folder, name="step-4", step=4, tags={}, metrics={"eval_loss": 0.5},
    timestamp_ms=now) prune(store, model_id)      # "registered" where a version points at it: then nothing was deleted
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mltrack.store import placement, run_models
from mltrack.store.artifacts import delete_tree, send_tree, writable_root
from mltrack.store.connection import Store, all_pages, local_path
from mltrack.store.light_model import identified
from mltrack.store.refusal import StoreRejected, is_missing, translated
from mltrack.store.registered import is_registered
from mltrack.store.runs import CUT_MARK, MAX_DIGEST_LENGTH, cut, legal_name
from mltrack.store.server_version import holds_models

RUN_TAG = "mltrack.run_id"
STEP_TAG = "mltrack.step"
REJECTED_TAG = "mltrack.metrics_rejected"
MAX_TAG_LENGTH = 8000


def publish(
    store: Store,
    run_id: str,
    model_folder: str | Path,
    *,
    name: str,
    step: int,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    timestamp_ms: int,
    dataset_name: str | None = None,
    dataset_digest: str | None = None,
    goes_on: bool = False,
    immutable: bool = False,
) -> str:
    """Make the logged model of this run and step, or whatever of it is missing.

    Args:
        model_folder: as light_model.write_model_folder wrote it; only read.
        metrics: shown beside the model; a NaN or an infinity is left out (MLflow would store a NaN as 0, the best loss
            of all).
        timestamp_ms: when the metrics were recorded, for those that the run does not hold at this step. The others
            get the run's own time: MLflow writes a model's metric on the run too, and with another time it would
            appear there twice. So send the run's points first.
        dataset_name, dataset_digest: the data set that the metrics were measured on, as the run's inputs name it.
        goes_on: resume an interrupted upload: large files that the store has already are not sent again.
        immutable: the folder's files are never rewritten in place: on a local root the large ones may become hard
            links.

    Returns:
        The model id, "m-..."; the model is READY. The tag mltrack.metrics_rejected names metrics that the store
        rejected. On a server without logged models the id is that of `run_models`.
    """
    folder = Path(model_folder)
    if not (folder / "MLmodel").is_file():
        raise StoreRejected(f"{folder}: no MLmodel file; use a folder that write_model_folder wrote")
    if not holds_models(store):
        return run_models.publish(store, run_id, folder, step=step, tags=tags, metrics=metrics, goes_on=goes_on)
    with translated(store, f"publishing the model of step {step}"):
        run = store.client.get_run(run_id)
        local_path(store, run.info.artifact_uri)  # raises before there is an entry for a model that cannot be stored
        model = _find(store, run.info.experiment_id, run_id, step)
        if model is None:
            model = store.client.create_logged_model(
                run.info.experiment_id,
                name=_legal_model_name(name),
                source_run_id=run_id,
                tags={
                    **{legal_name(key): cut(str(value), MAX_TAG_LENGTH) for key, value in tags.items()},
                    RUN_TAG: run_id,
                    STEP_TAG: str(step),
                },
            )
        ready = str(model.status) == "READY"
        if not ready:
            _store_bytes(store, model, folder, run_id, goes_on=goes_on, immutable=immutable)
        if model.model_id not in {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}:
            from mlflow.entities import LoggedModelOutput

            store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    _log_metrics(store, run, model, metrics, step, timestamp_ms, dataset_name, dataset_digest)
    if not ready:
        with translated(store, f"finishing the model of step {step}"):
            store.client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def prune(store: Store, model_id: str) -> str:
    """Delete a logged model and its bytes, unless a registered version uses it.

    The order: check that no version uses it, unset READY (so that mltrack cannot register it any more), check again,
    delete its bytes, delete its entry. After an interruption the entry exists as long as bytes may, and the next call
    finishes.

    Returns:
        "pruned"; "registered" if it was left alone; "gone" if there was nothing to do; "foreign" if the folder that it
        names is not its own, and then nothing was touched.
    """
    if run_models.is_run_model(model_id):
        return run_models.prune(store, model_id, lambda: is_registered(store, model_id))
    with translated(store, f"pruning {model_id}"):
        if is_registered(store, model_id):
            return "registered"
        try:
            model = store.client.get_logged_model(model_id)
        except Exception as error:
            if is_missing(error):
                return "gone"
            raise
        local = local_path(store, model.artifact_location)
        if local is not None and not _is_own(local, model_id):
            return "foreign"
        was_ready = str(model.status) == "READY"
        if was_ready:
            store.client.finalize_logged_model(model_id, "FAILED")
        if is_registered(store, model_id):
            if was_ready:
                store.client.finalize_logged_model(model_id, "READY")
            return "registered"
        if local is None:
            delete_tree(store, model.artifact_location)
        else:
            placement.remove(local)
            if local.parent.name == model_id:
                _remove_empty(local.parent)
        store.client.delete_logged_model(model_id)
        return "pruned"


def models_of_run(store: Store, run_id: str) -> list[dict[str, Any]]:
    """The run's logged models by step: model_id, step, status (PENDING, READY, FAILED), tags, name, artifact_location,
    metrics.
    """
    if not holds_models(store):
        return run_models.models_of_run(store, run_id)
    with translated(store, f"listing the models of run {run_id}"):
        experiment_id = store.client.get_run(run_id).info.experiment_id
        found = _search(store, experiment_id, f"tags.`{RUN_TAG}` = '{run_id}'")
    models = [model for model in found if model.tags.get(RUN_TAG) == run_id]
    return sorted(map(_row, models), key=lambda row: int(row["step"]))


def of_step(store: Store, run_id: str, step: int) -> dict[str, Any] | None:
    """The run's logged model of this step, as `models_of_run` returns it; None if there is none."""
    if not holds_models(store):
        return run_models.of_step(store, run_id, step)
    with translated(store, f"looking for the model of step {step}"):
        model = _find(store, store.client.get_run(run_id).info.experiment_id, run_id, step)
    return None if model is None else _row(model)


def _row(model: Any) -> dict[str, Any]:
    return {
        "model_id": model.model_id,
        "step": _step(model.tags.get(STEP_TAG, "")),
        "status": str(model.status),
        "tags": dict(model.tags),
        "name": model.name,
        "artifact_location": model.artifact_location,
        "metrics": {metric.key: metric.value for metric in model.metrics or []},
    }


def _store_bytes(store: Store, model: Any, folder: Path, run_id: str, *, goes_on: bool, immutable: bool) -> None:
    ml_model = identified((folder / "MLmodel").read_text(encoding="utf-8"), model_id=model.model_id, run_id=run_id)
    local = writable_root(store, model.artifact_location)
    if local is not None:
        if local.parent.name != model.model_id and not _is_own(local, model.model_id):
            raise StoreRejected(
                f"{store.shown_uri} keeps {model.model_id} in {local}, which is not that model's folder"
            )
        local.parent.mkdir(parents=True, exist_ok=True)
        placement.place_tree(folder, local, immutable=immutable, instead={"MLmodel": ml_model})
        return
    with tempfile.TemporaryDirectory(prefix=placement.TEMPORARY, dir=folder.parent) as parent:
        staged = Path(parent) / "model"
        placement.copy_tree(folder, staged, immutable=immutable, instead={"MLmodel": ml_model})
        send_tree(store, model.artifact_location, staged, goes_on=goes_on)


def _log_metrics(
    store: Store,
    run: Any,
    model: Any,
    metrics: Mapping[str, float],
    step: int,
    timestamp_ms: int,
    dataset_name: str | None,
    dataset_digest: str | None,
) -> None:
    from mlflow.entities import Metric

    run_id = run.info.run_id
    held = {(metric.key, metric.step) for metric in model.metrics or []}
    new = {
        legal_name(key): float(value)
        for key, value in metrics.items()
        if math.isfinite(value) and (legal_name(key), step) not in held
    }
    if not new:
        return
    digest = dataset_digest[:MAX_DIGEST_LENGTH] if dataset_digest else None
    with translated(store, f"reading the metrics of step {step}"):
        times = {key: _recorded_ms(store, run, key, step) or timestamp_ms for key in new}
    rows = [
        Metric(
            key,
            value,
            int(times[key]),
            int(step),
            model_id=model.model_id,
            dataset_name=dataset_name,
            dataset_digest=digest,
            run_id=run_id,
        )
        for key, value in new.items()
    ]
    try:
        with translated(store, f"sending the metrics of {model.model_id}"):
            store.client.log_batch(run_id, metrics=rows)
    except StoreRejected as error:
        names = ", ".join(row.key for row in rows)
        with translated(store, f"tagging {model.model_id}"):
            store.client.set_logged_model_tags(model.model_id, {REJECTED_TAG: cut(f"{names}: {error}", MAX_TAG_LENGTH)})


def _recorded_ms(store: Store, run: Any, key: str, step: int) -> int | None:
    """When the run's point (key, step) was recorded; None if it has none."""
    last = {metric.key: metric for metric in run.data._metric_objs}.get(key)
    if last is None or last.step < step:
        return None
    if last.step == step:
        return int(last.timestamp)
    # A checkpoint older than the last evaluation, which is rare; its metrics have a point per evaluation, not per step.
    return next(
        (int(point.timestamp) for point in store.client.get_metric_history(run.info.run_id, key) if point.step == step),
        None,
    )


def _find(store: Store, experiment_id: str, run_id: str, step: int) -> Any:
    found = _search(store, experiment_id, f"tags.`{RUN_TAG}` = '{run_id}' AND tags.`{STEP_TAG}` = '{step}'")
    # If two processes have made two, a READY one wins.
    return min(found, key=lambda model: str(model.status) != "READY", default=None)


def _search(store: Store, experiment_id: str, where: str) -> list[Any]:
    search = store.client.search_logged_models
    return list(all_pages(lambda token: search([experiment_id], filter_string=where, page_token=token)))


def _step(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1


def _legal_model_name(name: str) -> str:
    for character in "/:.%\"'":
        name = name.replace(character, "-")
    return name[: 250 - len(CUT_MARK)] or "model"


def _is_own(folder: Path, model_id: str) -> bool:
    """True if the folder's MLmodel file names this model, or if a folder of its name is empty."""
    import yaml

    try:
        text = (folder / "MLmodel").read_text(encoding="utf-8")
        described = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return folder.parent.name == model_id and not any(folder.glob("*"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False
    return isinstance(described, dict) and described.get("model_id") == model_id


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # it holds a file that is not the model's
        return
