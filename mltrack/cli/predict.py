"""`mltrack predict` and `mltrack evaluate`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from mltrack.config import OPTIONS, Option
from mltrack.errors import ConfigurationError

_NUMBERS = {
    "max_new_tokens": Option(name="max_new_tokens", kind="int", minimum=1, help=""),
    "temperature": Option(name="temperature", kind="float", minimum=0, help=""),
    "batch_size": Option(name="batch_size", kind="int", minimum=1, help=""),
}


def predict(
    model_uri: str,
    text: str | None,
    input_path: str | None,
    max_new_tokens: str | None,
    temperature: str | None,
    stop: list[str],
    output: str,
    tracking_uri: str | None,
) -> None:
    """Print one answer a text; with `json`, one JSON list."""
    OPTIONS["output"].check(output)
    texts = _texts(text, input_path)
    params: dict[str, Any] = {
        name: _NUMBERS[name].parse(word) for name, word in (("max_new_tokens", max_new_tokens), ("temperature", temperature)) if word is not None
    }
    if stop:
        params["stop"] = stop
    quiet()
    from mltrack import registry

    found = registry.predict(model_uri, texts, tracking_uri, params)
    if output == "json":
        print(json.dumps(found))
        return
    for answer in found:
        print(f"{answer['label']}  {answer['score']:.4f}" if isinstance(answer, dict) else answer)


def evaluate(model_uri: str, dataset_path: str, batch_size: str, output: str, tracking_uri: str | None) -> None:
    """Print the metrics of a model on a data set."""
    OPTIONS["output"].check(output)
    size = _NUMBERS["batch_size"].parse(batch_size)
    quiet()
    from mltrack import registry
    from mltrack.evaluation.folder import evaluate_folder

    folder = registry.local_folder(model_uri, tracking_uri) if model_uri.startswith("models:/") else model_uri
    if not (Path(folder) / "config.json").is_file():
        raise ConfigurationError(f"model_uri: seen '{model_uri}'; accepted: models:/name@alias, models:/name/version, or a folder with config.json")
    metrics = evaluate_folder(folder, dataset_path, task=registry.folder_task(folder), batch_size=size)
    if output == "json":
        print(json.dumps(metrics))
        return
    for name, value in metrics.items():
        print(f"{name}  {value:.4f}")


def quiet() -> None:
    """No progress bars and no reports of transformers between the lines of ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _texts(text: str | None, input_path: str | None) -> list[str]:
    if (text is None) == (input_path is None):
        raise ConfigurationError("predict: accepted: exactly one of --text and --input-path")
    if text is not None:
        return [text]
    assert input_path is not None
    if input_path == "-":
        return [sys.stdin.read()]
    path = Path(input_path)
    if not path.is_file():
        raise ConfigurationError(f"input_path: seen '{input_path}', which is no file; accepted: a file, or - for standard input")
    if path.suffix in (".jsonl", ".json"):
        return [_text_of(record, number, path) for number, record in enumerate(_json_records(path), start=1)]
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _json_records(path: Path) -> list[Any]:
    content = path.read_text(encoding="utf-8")
    try:
        return json.loads(content) if path.suffix == ".json" else [json.loads(line) for line in content.splitlines() if line.strip()]
    except ValueError as error:
        raise ConfigurationError(f"{path}: not JSON: {error}; accepted: a JSON array, or JSON Lines with the ending .jsonl") from error


def _text_of(record: Any, number: int, path: Path) -> str:
    if isinstance(record, str):
        return record
    for name in ("description", "code", "text"):
        if isinstance(record, dict) and isinstance(record.get(name), str):
            return str(record[name])
    raise ConfigurationError(f"{path}, record {number}: accepted: text, or an object with one of description, code, text")
