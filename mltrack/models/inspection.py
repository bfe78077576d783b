"""Checks of a model folder before anything loads it.

Invariant: nothing is unpickled, nothing outside the folder is opened, no code of the folder runs, and a fault becomes
an error of one line. The folder's files may be links, as in the hub's cache, but their names may not lead out of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mltrack.errors import CheckpointError, ConfigurationError
from mltrack.models.size import check_size, members

MAX_JSON_BYTES = 256 << 20
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LEAST_TENSOR_BYTES, _LEAST_NUMBER_BYTES = 64, 2
"""In a .bin: each tensor has a name, and each number has at least half precision."""
_MOST_NUMBERS_A_BYTE = 2
"""Of quantized weights."""
_FLOATS = ("F16", "BF16", "F32", "F64")
_CODE_CHOICES = ("_implementation", "_implementation_internal")
"""Ends of the keys that may name a kernel on the hub, which is code: as text, or as an object with one text per part of
the model.
"""


def inspect_folder(name: str, folder: str | Path, *, trust_remote_code: bool = False) -> None:
    """Refuse a folder that is damaged or malicious.

    Args:
        name: the model's, for messages.
        folder: with config.json and weights.
        trust_remote_code: allow the folder to name code.

    Raises:
        ConfigurationError: the configuration cannot be read, names code elsewhere, or has another size than the
            weights.
        CheckpointError: the weights are no safetensors of floating point numbers, or an index leads out of the folder.
    """
    path = Path(folder)
    config = read_object(path / "config.json", name)
    if not trust_remote_code:
        _check_code(name, path, config)
    _check_class_maps(name, config)
    weights = {"model.safetensors"}
    for index in _INDEXES:
        if (path / index).is_file():
            weights |= _check_index(name, path, path / index)
    quantized = "quantization_config" in config
    tensors = numbers = 0
    for file in sorted(path / weight for weight in weights | {"pytorch_model.bin"}):
        if not file.is_file():
            continue
        if file.suffix == ".safetensors":
            held = _check_tensors(name, file, quantized=quantized)
            tensors += len(held)
            numbers += file.stat().st_size * _MOST_NUMBERS_A_BYTE if quantized else sum(held.values())
        else:  # it is not opened here
            tensors += file.stat().st_size // _LEAST_TENSOR_BYTES
            numbers += file.stat().st_size // _LEAST_NUMBER_BYTES
    if not trust_remote_code:
        check_size(name, path, config, tensors=tensors, numbers=numbers)


def inspect_trained(name: str, folder: str | Path) -> dict[str, Any]:
    """Refuse a folder that mltrack did not train; returns the key `mltrack` of its config.json.

    Raises:
        ConfigurationError: config.json does not name the task and the length of a sequence.
    """
    inspect_folder(name, folder)
    config = read_object(Path(folder) / "config.json", name)
    if not isinstance(config.get("model_type"), str):  # transformers would guess it from the folder's name
        raise ConfigurationError(
            f"{name}: its config.json has no model_type; use the config.json of a Hugging Face model"
        )
    settings = config.get("mltrack")
    wanted = (("task", str, True), ("max_length", int, False), ("prompt_template", str, False))
    fits = isinstance(settings, dict) and all(
        isinstance(settings.get(key), kind) or (not needed and key not in settings) for key, kind, needed in wanted
    )
    length = settings.get("max_length", 1) if isinstance(settings, dict) else 0
    if not isinstance(settings, dict) or not fits or isinstance(length, bool) or length < 1:
        raise ConfigurationError(
            f"{name}: mltrack in its config.json must name the task that it was trained for, not be {_short(settings)};"
            " use a model that mltrack trained"
        )
    _check_classes(name, config)
    _check_class_names(name, config)
    return settings


def read_object(file: Path, name: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ConfigurationError(
                f"{name}: {file.name} must have at most {MAX_JSON_BYTES:,} bytes, not {file.stat().st_size:,}"
            )
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{name}: no {file.name} in {file.parent}; use a Hugging Face folder with config.json, weights and"
            " tokenizer"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{name}: {file.name} cannot be read as JSON ({type(error).__name__}); use the one that was saved with the"
            " model"
        ) from None
    if not isinstance(content, dict):
        missing = "model_type" if file.name == "config.json" else "weight_map"
        raise ConfigurationError(
            f"{name}: {file.name} must be a JSON object with {missing}, not a {type(content).__name__}"
        )
    return content


def _check_code(name: str, folder: Path, config: Mapping[str, Any]) -> None:
    for key, value in members(config):
        if key.endswith(_CODE_CHOICES) and any("/" in text or "\\" in text for text in _texts_in(value)):
            raise ConfigurationError(
                f"{name}: its config.json has {key}={_short(value)}, code from elsewhere; use a name without '/'"
            )
    if (folder / "custom_generate").exists():
        raise ConfigurationError(f"{name} brings Python code of its own in custom_generate/; use a model without any")


def _texts_in(value: object) -> Iterator[str]:
    """All texts of a JSON value except the names in its objects."""
    waiting = [value]
    while waiting:
        held = waiting.pop()
        if isinstance(held, str):
            yield held
        elif isinstance(held, (dict, list)):
            waiting.extend(held.values() if isinstance(held, dict) else held)


def _check_class_maps(name: str, config: Mapping[str, Any]) -> None:
    """Transformers must be able to read them. A base model's numbers do not matter: the data's maps replace them."""
    for key in ("label2id", "id2label"):
        mapping = config.get(key)
        fits = mapping is None or (
            isinstance(mapping, dict)
            and (key == "label2id" or all(re.fullmatch(r"-?[0-9]+", number) for number in mapping))
        )
        if not fits:
            raise _classes_refused(name, key, mapping)


def _check_classes(name: str, config: Mapping[str, Any]) -> None:
    """A trained model answers with its maps, so they must number the classes from 0."""
    for key in ("label2id", "id2label"):
        mapping = config.get(key)
        if mapping is None:
            continue
        held, kind = (list(mapping.values()), int) if key == "label2id" else (list(mapping), str)
        if any(type(number) is not kind for number in held) or {*map(str, held)} != {*map(str, range(len(held)))}:
            raise _classes_refused(name, key, mapping)


def _classes_refused(name: str, key: str, mapping: object) -> ConfigurationError:
    return ConfigurationError(
        f"{name}: {key} in its config.json must give each class a number of its own, from 0, not {_short(mapping)}"
    )


def _check_class_names(name: str, config: Mapping[str, Any]) -> None:
    """Names must be distinct: in an answer each class has its own score."""
    classes = list((config.get("id2label") or {}).values())
    if not all(isinstance(one, str) for one in classes) or len(set(classes)) < len(classes):
        raise ConfigurationError(
            f"{name}: id2label in its config.json must have a name for each class, each name once, not"
            f" {_short(config['id2label'])}"
        )


def _check_index(name: str, folder: Path, index: Path) -> set[str]:
    """The files that an index names, after checking that they are there."""
    weight_map = read_object(index, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{name}: {index.name} has no weight_map, which must name a file for each weight")
    for weight, file in weight_map.items():
        if not isinstance(file, str) or file in ("", ".", "..") or any(character in file for character in "/\\\0"):
            raise CheckpointError(
                f"{name}: {index.name} must name files beside it, not {_short(file)} for {_short(weight)}"
            )
    files = set(weight_map.values())
    missing = sorted(file for file in files if not (folder / file).is_file())
    if missing:
        raise CheckpointError(
            f"{name}: {index.name} names {_short(missing[0])}, which is not there; all {len(files)} files are needed"
        )
    return files


def _check_tensors(name: str, file: Path, *, quantized: bool) -> dict[str, int]:
    """{weight: how many numbers it has}"""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as held:
            parts = {key: held.get_slice(key) for key in held.keys()}  # noqa: SIM118
            kinds = {key: part.get_dtype() for key, part in parts.items()}
            sizes = {key: math.prod(part.get_shape()) for key, part in parts.items()}
    except (SafetensorError, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{name}: its weights are damaged ({file.name}: {said[:120]}); use an intact copy"
        ) from None
    wrong = {
        key: kind
        for key, kind in kinds.items()
        if kind not in _FLOATS and key.endswith((".weight", ".bias")) and not key.endswith("attn.bias")
    }
    if wrong and not quantized:
        key, kind = next(iter(wrong.items()))
        raise CheckpointError(f"{name}: {_short(key)} in {file.name} must be of type {', '.join(_FLOATS)}, not {kind}")
    return sizes


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
