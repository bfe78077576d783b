"""What a run says of its model in the registry, and how a registered model is found again.

Invariant: a version carries what is needed to judge it (metrics, data digest, commit) without opening its run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrack import store
from mltrack.config import TrainModelRequest
from mltrack.errors import ConfigurationError, TrackingError

if TYPE_CHECKING:  # both load torch, which `mltrack models` does without
    from mltrack.checkpoints import CheckpointMetadata
    from mltrack.data import CodeDataset

CANNOT = {
    True: "It has seen labels, not proofs: it ranks code for a person to read and finds neither all flaws nor only flaws.",
    False: "It completes in the style of its training data; what it writes may not run and must be read by a person.",
}


def version_tags(request: TrainModelRequest, digest: str, checkpoint: CheckpointMetadata) -> dict[str, str]:
    """Tags of a version: task, base model, data digest, step, and each metric of its checkpoint."""
    return {
        "mltrack.task": request.task,
        "mltrack.model_name": request.model_name,
        "mltrack.data_digest": digest,
        "mltrack.step": str(checkpoint.step),
        **{f"mltrack.{name}": f"{value:.6g}" for name, value in checkpoint.metrics.items()},
    }


def model_card(
    request: TrainModelRequest, name: str, dataset: CodeDataset, checkpoint: CheckpointMetadata, baselines: Mapping[str, float], *, alias: str = "challenger"
) -> str:
    """The description of a version, in Markdown: task, data, configuration, figures beside the baselines, how to load, what it cannot do."""
    is_classification = dataset.task.is_classification
    classes = f"\n\nClasses: {', '.join(dataset.label_mapping)}." if is_classification else ""
    rows = [(key, value) for key, value in checkpoint.metrics.items() if not key.startswith("eval_f1_")] + list(baselines.items())
    figures = "\n".join(f"| {key} | {value:.4f} |" for key, value in rows)
    labels = " The labels of this source are Bandit's opinions, not verified flaws." if is_classification and request.dataset_path == "stdlib" else ""
    return (
        f"# {name}\n\n"
        f"Task `{request.task}`, trained from `{request.model_name}` on {len(dataset):,} records of `{request.dataset_path}` "
        f"(digest `{dataset.digest[:12]}`).{labels}{classes}\n\n"
        f"| figure | value |\n|---|---|\n{figures}\n\n"
        f"Learning rate {request.learning_rate}, {request.batch_size} x {request.gradient_accumulation_steps} examples a step, at most {request.epochs} epochs, "
        f"{request.max_length} tokens, seed {request.seed}; the weights are those of step {checkpoint.step}.\n\n"
        f'```python\nimport mlflow\nmodel = mlflow.pyfunc.load_model("models:/{name}@{alias}")\nmodel.predict(["..."])\n```\n\n'
        f"{CANNOT[is_classification]}\n"
    )


def check_name(name: str | None) -> None:
    """Refuse a name that the registry would refuse at the end of the training.

    Raises:
        ConfigurationError: it has a slash, a colon or a control character.
    """
    if name is not None and (not name.strip() or set(name) & set("/:\\\n\r\t\0")):
        raise ConfigurationError(f"registered_model_name: seen {name!r}; accepted: a name without '/', ':' and '\\\\'")


def local_folder(uri: str, tracking_uri: str | None = None) -> str:
    """A local folder with the files of `models:/name@alias` or `models:/name/version`.

    Raises:
        TrackingError: no such model; the message says where it was looked for.
    """
    return str(store.resolve(connect_existing(tracking_uri, uri), uri))


def connect_existing(tracking_uri: str | None, wanted: str) -> store.Store:
    """The store to read from; a database that is not there is not made.

    Raises:
        TrackingError: there is no such database; the message names MLFLOW_TRACKING_URI.
    """
    address = store.default_tracking_uri(tracking_uri)
    if address.startswith("sqlite:///") and not Path(address.removeprefix("sqlite:///").partition("?")[0]).exists():
        raise TrackingError(f"no {wanted}: there is no database {address}; if it is elsewhere, set MLFLOW_TRACKING_URI or give --tracking-uri")
    return store.connect(address)


def predict(uri: str, texts: Sequence[str], tracking_uri: str | None = None, params: Mapping[str, Any] | None = None) -> list[Any]:
    """What a registered model says of texts: {label, score, scores} for a classification, the completion for a generation."""
    given = dict(params) if params else None
    if uri.startswith("models:/"):
        found = store.load_pyfunc(connect_existing(tracking_uri, uri), uri).predict(list(texts), params=given)
    elif (Path(uri) / "config.json").is_file():
        found = store.load_folder(uri).predict(list(texts), given)
    else:
        raise ConfigurationError(f"model_uri: seen '{uri}'; accepted: models:/name@alias, models:/name/version, or a folder with config.json")
    return found.to_dict("records") if hasattr(found, "to_dict") else list(found)


def promote(name: str, version: str, tracking_uri: str | None = None, *, alias: str = "champion") -> str | None:
    """Move an alias by hand; returns the version that had it before.

    Raises:
        TrackingError: no such model or version.
    """
    connected = connect_existing(tracking_uri, name)
    versions = {one["version"] for one in store.list_versions(connected, name)}
    if version not in versions:
        raise TrackingError(f"{name}: seen version '{version}'; accepted: {', '.join(sorted(versions, key=int))}")
    before = store.get_alias(connected, name, alias)
    store.set_alias(connected, name, alias, version)
    return before


def folder_task(folder: str | Path) -> str:
    """The task that a model folder of mltrack was trained for.

    Raises:
        TrackingError: the folder's config.json does not say.
    """
    import json

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    try:
        return str(config["mltrack"]["task"])
    except (KeyError, TypeError):
        raise TrackingError(f"{folder}/config.json: has no mltrack.task; accepted: a model that mltrack trained") from None
