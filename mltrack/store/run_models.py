"""The checkpoints' models where the server knows no logged models: folders among the artifacts of the run.

Invariant: as that of `logged_models`. A model `mltrack-models/step-00000004` is whole where `step-00000004.json` lies
beside it, which is written last and deleted first; its id is `runs:/<run id>/mltrack-models/step-00000004`.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mltrack.store import artifacts, placement
from mltrack.store.connection import Store, local_path
from mltrack.store.light_model import identified
from mltrack.store.refusal import StoreRejected, is_missing, translated
from mltrack.store.runs import parsed

FOLDER = "mltrack-models"
_ID = re.compile(rf"runs:/([0-9A-Za-z_-]{{1,64}})/({FOLDER}/(step-(\d{{8,18}})))")
_SOURCE = re.compile(rf"[^?#]*/({FOLDER}/step-\d{{8,18}})/?")


def is_run_model(model_id: str) -> bool:
    """True for an id of this module."""
    return _ID.fullmatch(model_id) is not None


def id_of_source(run_id: str | None, source: str) -> str | None:
    """The id of the model that a registered version was made from; None where it is none of a run's."""
    found = _SOURCE.fullmatch(source)
    made = f"runs:/{run_id}/{found[1]}" if found is not None else ""
    return made if is_run_model(made) else None


def publish(
    store: Store,
    run_id: str,
    folder: Path,
    *,
    step: int,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    goes_on: bool,
) -> str:
    """The id of the model of this step, whose missing files are sent; arguments as of `logged_models.publish`."""
    name = f"step-{step:08d}"
    path = f"{FOLDER}/{name}"
    described = {
        "step": step,
        "tags": {key: str(value) for key, value in tags.items()},
        "metrics": {key: float(value) for key, value in metrics.items() if math.isfinite(value)},
    }
    with translated(store, f"publishing the model of step {step}"):
        if f"{name}.json" not in artifacts.list_names(store, run_id, FOLDER):
            text = (folder / "MLmodel").read_text(encoding="utf-8")
            uri = store.client.get_run(run_id).info.artifact_uri
            local_path(store, uri)  # refused before anything is sent
            with tempfile.TemporaryDirectory(prefix=placement.TEMPORARY, dir=folder.parent) as parent:
                staged, instead = Path(parent) / "model", {"MLmodel": identified(text, run_id=run_id, path=path)}
                placement.copy_tree(folder, staged, immutable=True, instead=instead)
                artifacts.send_tree(store, uri, staged, path, goes_on=goes_on)
            artifacts.put_text(store, run_id, json.dumps(described), f"{path}.json")
    return f"runs:/{run_id}/{path}"


def prune(store: Store, model_id: str, is_registered: Callable[[], bool]) -> str:
    """Delete a model and its bytes, unless a registered version points at it; returns as `logged_models.prune`."""
    run_id, path, name = _parts(model_id)
    try:
        if is_registered():
            return "registered"
        names = artifacts.list_names(store, run_id, FOLDER)
    except StoreRejected as error:
        if is_missing(error):  # with its run
            return "gone"
        raise
    if not {name, f"{name}.json"} & set(names):
        return "gone"
    held = _description(store, run_id, name) if f"{name}.json" in names else None
    artifacts.delete(store, run_id, f"{path}.json")
    if is_registered():  # since it was asked
        if held is not None:
            artifacts.put_text(store, run_id, json.dumps(held), f"{path}.json")
        return "registered"
    artifacts.delete(store, run_id, path)
    return "pruned"


def models_of_run(store: Store, run_id: str) -> list[dict[str, Any]]:
    """The rows of `logged_models.models_of_run`: a whole model is READY, any other is PENDING."""
    with translated(store, f"listing the models of run {run_id}"):
        names = artifacts.list_names(store, run_id, FOLDER)
        uri = store.client.get_run(run_id).info.artifact_uri
        found = sorted({stem for name in names if re.fullmatch(r"step-\d{8,18}", stem := name.removesuffix(".json"))})
        return [_row(store, run_id, uri, name, is_ready=f"{name}.json" in names) for name in found]


def of_step(store: Store, run_id: str, step: int) -> dict[str, Any] | None:
    """The row of one step; None where there is none."""
    return next((row for row in models_of_run(store, run_id) if row["step"] == step), None)


def metrics_of(store: Store, model_id: str) -> dict[str, float]:
    """What was recorded beside a model; nothing where it is gone."""
    run_id, _, name = _parts(model_id)
    try:
        return _numbers(_description(store, run_id, name).get("metrics"))
    except (StoreRejected, OSError) as error:
        if isinstance(error, StoreRejected) and not is_missing(error):
            raise
        return {}


def place_of(store: Store, model_id: str) -> tuple[str, str]:
    """The run of a model, and the artifact URI of its folder."""
    run_id, path, _ = _parts(model_id)
    with translated(store, f"looking for {model_id}"):
        return run_id, f"{store.client.get_run(run_id).info.artifact_uri.rstrip('/')}/{path}"


def check_ready(store: Store, model_id: str) -> None:
    """Raise StoreRejected where a model is not whole."""
    run_id, _, name = _parts(model_id)
    if f"{name}.json" not in artifacts.list_names(store, run_id, FOLDER):
        raise StoreRejected(f"{store.shown_uri}: the files of {model_id} are not complete; run mltrack sync {run_id}")


def _row(store: Store, run_id: str, uri: str, name: str, *, is_ready: bool) -> dict[str, Any]:
    held = _description(store, run_id, name) if is_ready else {}
    tags = held.get("tags")
    return {
        "model_id": f"runs:/{run_id}/{FOLDER}/{name}",
        "step": int(name.removeprefix("step-")),
        "status": "READY" if is_ready else "PENDING",
        "tags": {str(key): str(value) for key, value in tags.items()} if isinstance(tags, dict) else {},
        "name": name,
        "artifact_location": f"{uri.rstrip('/')}/{FOLDER}/{name}",
        "metrics": _numbers(held.get("metrics")),
    }


def _description(store: Store, run_id: str, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mltrack-") as folder:
        file = artifacts.download(store, run_id, f"{FOLDER}/{name}.json", folder)
        return dict(parsed(file.read_text(encoding="utf-8", errors="replace"), dict))


def _numbers(held: Any) -> dict[str, float]:
    items = held.items() if isinstance(held, dict) else ()
    return {str(key): float(value) for key, value in items if isinstance(value, int | float)}


def _parts(model_id: str) -> tuple[str, str, str]:
    """Run id, path among its artifacts, name."""
    found = _ID.fullmatch(model_id)
    if found is None:
        raise StoreRejected(f"'{model_id}' names no model of a run; runs:/RUN_ID/{FOLDER}/step-00000004 does")
    return found[1], found[2], found[3]
