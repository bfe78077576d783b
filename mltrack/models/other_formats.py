"""What a folder or file without a whole Hugging Face model holds, and what to use instead.

Invariant: only file names and two small JSON files are read. Names in them are not trusted and are shown escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mltrack.errors import printable

WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files that hold or list the weights of a whole model."""
_ADAPTERS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
)
_GGUF = "*.gguf"
_FORMATS = {
    _GGUF: "GGUF (llama.cpp)",
    "*.ggml": "GGML (llama.cpp)",
    "*.onnx": "ONNX",
    "openvino_model.xml": "OpenVINO",
    "*.mlpackage": "Core ML",
    "*.tflite": "TensorFlow Lite",
    "tf_model.h5": "TensorFlow",
    "*.keras": "Keras",
    "saved_model.pb": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "*.npz": "MLX",
    "*.engine": "TensorRT",
    "model.bin": "CTranslate2",
    "consolidated.*": "original Llama or Mistral",
}
"""Formats whose folders cannot be trained, by file name; a GGUF file itself can."""
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_ORIGINAL = "the model that they were made from, in safetensors"
_MAX_JSON_BYTES = 1 << 20
_LONGEST = 200


def other_file(path: Path) -> str:
    """What to do about a model name that is a file, as the end of a sentence that begins with the name."""
    kind = next((said for pattern, said in _FORMATS.items() if fnmatch(path.name, pattern)), None)
    if kind is not None:
        return f"is a file of {kind} weights, which cannot be trained here; use {_ORIGINAL}"
    return "is a file; use a folder with config.json, weights and tokenizer"


def content_of(folder: Path) -> str | None:
    """`other_content` of a local folder."""
    inside = [one.relative_to(folder).as_posix() for pattern in ("*", "*/*") for one in folder.glob(pattern)]

    def read(name: str) -> bytes:
        with (folder / name).open("rb") as file:
            return file.read(_MAX_JSON_BYTES)

    return other_content(inside, read, lambda name: str(folder / name))


def other_content(names: Iterable[str], read: Callable[[str], bytes], path_of: Callable[[str], str]) -> str | None:
    """What a folder or repository without a whole model holds instead.

    Args:
        names: its files, relative to it.
        read: name -> content; may raise OSError.
        path_of: name of a folder in it -> what a user would type.

    Returns:
        The end of a sentence that begins with its name; None if nothing is known.
    """
    there = sorted(names)
    if found := [name for name in _ADAPTERS if name in there]:
        return _adapter(found[0], read)
    if "modules.json" in there and (said := _sentence_transformer(there, read, path_of)):
        return said
    if "model_index.json" in there:
        return "is a diffusers pipeline (model_index.json), which makes pictures; use a text model"
    for pattern, kind in _FORMATS.items():
        if file := next((name for name in there if fnmatch(name, pattern) or fnmatch(name, f"o*/{pattern}")), None):
            if pattern == _GGUF:
                return f"holds {kind} weights alone; use the file, {printable(path_of(file))}"
            return f"holds {kind} weights alone ({printable(file)}), which cannot be trained here; use {_ORIGINAL}"
    if "config.json" not in there and (found := [name for name in _TOKENIZERS if name in there]):
        return f"holds a tokenizer alone ({found[0]}), no model; use the folder that holds config.json and weights too"
    return None


def _adapter(file: str, read: Callable[[str], bytes]) -> str:
    base = _json("adapter_config.json", read, dict).get("base_model_name_or_path")
    advice = "merge it into that one (PEFT: merge_and_unload) and use the result"
    if not isinstance(base, str) or not base:
        return f"is an adapter ({file}), not a whole model, and does not name its base model; {advice}"
    named = printable(base if len(base) <= _LONGEST else base[: _LONGEST - 3] + "...")
    return f"is an adapter ({file}) of the base model {named}, not a whole model; {advice}, or use {named}"


def _sentence_transformer(there: list[str], read: Callable[[str], bytes], path_of: Callable[[str], str]) -> str | None:
    """For a model whose parts have folders of their own. A Transformer beside modules.json is a model itself: None."""
    beginning = "is a sentence-transformers model (modules.json)"
    parts = [part for part in _json("modules.json", read, list) if isinstance(part, dict)]
    for part in parts:
        inside = part.get("path")
        if (
            str(part.get("type", "")).endswith(".Transformer")
            and isinstance(inside, str)
            and f"{inside}/config.json" in there
        ):
            return f"{beginning}; use its Transformer, {printable(path_of(inside))}"
    if "config.json" in there:
        return None
    kinds = printable(", ".join(str(part.get("type", "")).rpartition(".")[2] for part in parts)[:_LONGEST])
    return f"{beginning} without a Transformer that can be trained ({kinds}); use a folder with config.json and weights"


def _json(name: str, read: Callable[[str], bytes], kind: type) -> Any:
    """Content of a small JSON file; an empty `kind` if it is not one."""
    try:
        content = json.loads(read(name))
    except (OSError, ValueError, RecursionError):
        return kind()
    return content if isinstance(content, kind) else kind()
