"""Writes an MLflow model from a Hugging Face folder: MLmodel and its companions, the weights once.

Invariant: torch, transformers and mlflow are not imported and nothing is inferred, so it takes milliseconds. The model
contains no training state. The source folder is never written to.

The folder loads with mlflow.transformers.load_model, with mlflow.pyfunc.load_model (by the task's serving file in
`code/`, which needs no mltrack), and with Transformers' own from_pretrained."""

from __future__ import annotations

import json
import platform
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata as distributions
from pathlib import Path
from typing import Any

from mltrack.errors import CheckpointError
from mltrack.store import placement

_STATE_STEMS = ("optimizer", "state", "metadata")
"""Names, up to the first '.' or '-', of files that only a resumed training needs."""
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.vocab", "*.jinja")
_NOT_TOKENIZER = ("model", "config.json", "generation_config.json")


@dataclass(frozen=True)
class Serving:
    """How a saved model answers without mltrack: plain JSON values and a file.

    The file is copied beside the model. `mlflow.pyfunc.load_model` imports it and calls its `_load_pyfunc(path)`.
    """

    file: Path
    """A Python module that imports neither mltrack nor the files beside it."""
    inputs: Sequence[Mapping[str, Any]]
    """Of MLflow's signature: one unnamed string; MLflow refuses a list of plain strings if the column has a name."""
    outputs: Sequence[Mapping[str, Any]]
    params: Sequence[Mapping[str, Any]] | None
    example: str
    """A text that the model can answer."""
    pipeline: str
    """The class of transformers' pipeline."""
    pipeline_task: str
    """The name of that pipeline."""


def write_model_folder(
    checkpoint_dir: str | Path,
    out_dir: str | Path,
    *,
    task: str,
    serving: Serving,
    hf_config: Mapping[str, Any],
    requirements: Sequence[str],
    model_type: str | None = None,
    tokenizer_type: str | None = None,
    source_model_name: str = "",
    metadata: Mapping[str, Any] | None = None,
    immutable: bool = False,
) -> Path:
    """Write `out_dir`, which must not exist or be empty, and return it.

    Args:
        checkpoint_dir: model.safetensors, config.json and tokenizer files; training state beside them is left out.
        task: its name.
        serving: how the model answers.
        hf_config: overrides keys of the folder's config.json; the loader reads its key "mltrack" ({"task",
            "max_length", "prompt_template"}).
        requirements: pip requirements of a process that loads the model, pinned by the caller.
        model_type, tokenizer_type: class names in transformers; None means the config's first architecture, and
            AutoTokenizer.
        source_model_name: what the model was fine-tuned from.
        metadata: JSON values for the key `metadata` of MLmodel.
        immutable: the files of `checkpoint_dir` are never rewritten in place: the large ones may become hard links.

    Raises:
        CheckpointError: no weights or no config.json in `checkpoint_dir`, or `out_dir` is not empty.
        FileNotFoundError: `checkpoint_dir` is gone, as an evicted checkpoint is.
    """
    import yaml

    source, out = Path(checkpoint_dir), Path(out_dir)
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist")
    files = _model_files(source)
    if not any(path.name.startswith("model") and path.suffix == ".safetensors" for path in files):
        raise CheckpointError(f"{source}: no model.safetensors; use a Hugging Face folder with safetensors weights")
    if not (source / "config.json").is_file():
        raise CheckpointError(f"{source}: no config.json; use a Hugging Face folder")
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty; use a new folder")
    tokenizer_dir = out / "components" / "tokenizer"
    tokenizer_dir.mkdir(parents=True, exist_ok=True)
    for path in files:
        if path.name != "config.json":
            placement.link_or_copy(path, out / path.name, immutable=immutable)
        if not path.name.startswith(_NOT_TOKENIZER):
            placement.link_or_copy(path, tokenizer_dir / path.name, immutable=immutable)
    config = {**json.loads((source / "config.json").read_text(encoding="utf-8")), **hf_config}
    config["mltrack"] = {"task": task, **config.get("mltrack", {})}
    model_type = model_type or next(iter(config.get("architectures") or []), None)
    if model_type is None:
        raise CheckpointError(f"{source}: config.json names no architecture and no model_type was given")
    _write_json(out / "config.json", config)
    (out / "code").mkdir()
    shutil.copyfile(serving.file, out / "code" / serving.file.name)
    _write_environment(out, requirements)
    example = _write_example(out, serving.example)
    model = {
        "flavors": {
            "python_function": {
                "loader_module": serving.file.stem,
                "code": "code",
                "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
                "python_version": platform.python_version(),
            },
            "transformers": _transformers_flavor(
                serving, model_type, tokenizer_type or "AutoTokenizer", source_model_name
            ),
        },
        "is_signature_from_type_hint": False,
        "type_hint_from_example": False,
        "mlflow_version": distributions.version("mlflow"),
        "model_size_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "model_uuid": uuid.uuid4().hex,
        "saved_input_example_info": example,
        "signature": {
            name: None if columns is None else json.dumps(columns)
            for name, columns in (("inputs", serving.inputs), ("outputs", serving.outputs), ("params", serving.params))
        },
        "utc_time_created": str(datetime.now(UTC).replace(tzinfo=None)),
    }
    if metadata:
        model["metadata"] = dict(metadata)
    (out / "MLmodel").write_text(yaml.safe_dump(model, default_flow_style=False), encoding="utf-8")
    return out


def files_beside_model(checkpoint_dir: str | Path) -> list[str]:
    """Names (with '/' below a folder) of a checkpoint's files that its model folder does not hold byte for byte;
    metadata.json is the last.

    Together with a READY model they are the whole checkpoint; without config.json, and so without a model, all files.

    Raises:
        FileNotFoundError: `checkpoint_dir` is gone, as an evicted checkpoint is.
    """
    source = Path(checkpoint_dir)
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist")
    held = (
        {path.name for path in _model_files(source)} - {"config.json"} if (source / "config.json").is_file() else set()
    )
    names = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()} - held
    return sorted(names, key=lambda name: (name == "metadata.json", name))


def identified(ml_model: str, *, run_id: str, model_id: str | None = None, path: str | None = None) -> str:
    """The text of an MLmodel file with its run, and its logged model or its place among the run's artifacts."""
    import yaml

    known = (
        {"artifact_path": path} if model_id is None else {"model_id": model_id, "artifact_path": f"models:/{model_id}"}
    )
    return yaml.safe_dump({**yaml.safe_load(ml_model), "run_id": run_id, **known}, default_flow_style=False)


def _model_files(source: Path) -> list[Path]:
    files = {path for pattern in _MODEL_FILES for path in source.glob(pattern)}
    return sorted(path for path in files if re.split(r"[.-]", path.name)[0] not in _STATE_STEMS)


def _transformers_flavor(
    serving: Serving, model_type: str, tokenizer_type: str, source_model_name: str
) -> dict[str, Any]:
    return {
        "code": None,
        "components": ["tokenizer"],
        "instance_type": serving.pipeline,
        "model_binary": ".",
        "pipeline_model_type": model_type,
        "source_model_name": source_model_name,
        "task": serving.pipeline_task,
        "tokenizer_type": tokenizer_type,
        "torch_dtype": None,
        "transformers_version": distributions.version("transformers"),
    }


def _write_example(out: Path, text: str) -> dict[str, Any]:
    _write_json(out / "input_example.json", [text])
    _write_json(out / "serving_input_example.json", {"inputs": [text]})
    return {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "json_object",
    }


def _write_environment(out: Path, requirements: Sequence[str]) -> None:
    import yaml

    python = platform.python_version()
    (out / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    conda = {
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": list(requirements)}],
        "name": "mlflow-env",
    }
    virtualenv = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    (out / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False), encoding="utf-8")
    (out / "python_env.yaml").write_text(yaml.safe_dump(virtualenv, sort_keys=False), encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
