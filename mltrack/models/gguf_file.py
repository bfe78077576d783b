"""A `.gguf` file (llama.cpp) as a Hugging Face folder: dequantized once and kept in the cache of models.

Invariant: a cached model is named by the digest of the file's bytes and the versions of the packages that read it. It
is plain float32 safetensors without any quantization. Nothing in the file is executed.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from mltrack.errors import ConfigurationError
from mltrack.extras import missing
from mltrack.models.foreign_errors import one_line
from mltrack.models.size import check_size

_MAGIC = b"GGUF"
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_MOST_NUMBERS_A_BYTE = 8
"""Of quantized weights: every GGUF format has at least one bit per weight."""


def is_gguf(path: Path) -> bool:
    """True for a file name of GGUF, even if there is no such file, and for a file that begins as one."""
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def dequantized(name: str, path: Path) -> tuple[str, str]:
    """The model of a GGUF file as a folder with config.json, float32 safetensors and tokenizer.

    Made if the cache of models does not hold it, which takes about twice the memory of the float32 weights.

    Args:
        name: the model's, for messages.

    Returns:
        (folder, sha256 of the file).

    Raises:
        ConfigurationError: no such file, no GGUF file, one part of several, an architecture that transformers cannot
            read, or a missing package.
        TrackingError: the cache folder has no room.
    """
    from mltrack.store.model_cache import made_once

    where = f"model_name: {name}"
    _check(where, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    read_by = "-".join(version(package) for package in ("transformers", "gguf"))
    key = f"gguf-{hashlib.sha256(f'{digest} {read_by}'.encode()).hexdigest()[:16]}"
    folder = made_once(key, f"{path.absolute()}, dequantized", lambda into, reserve: _write(where, path, into, reserve))
    return str(folder), digest


def _check(where: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            begin = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise ConfigurationError(f"{where}: there is no such file; use the path of a .gguf file") from None
    except OSError as error:
        raise ConfigurationError(f"{where} cannot be read: {error.strerror}") from None
    if begin != _MAGIC:
        raise ConfigurationError(f"{where} is no GGUF file: it begins with {begin!r}; download it again")
    if _PART.search(path.stem):
        raise ConfigurationError(
            f"{where} is one part of a GGUF model; merge the parts first (llama.cpp: llama-gguf-split --merge)"
        )
    if absent := missing("gguf"):
        raise ConfigurationError(f"{where} is a GGUF file, and {absent}")


def _write(where: str, path: Path, into: Path, reserve: Callable[[int], None]) -> None:
    """Write the folder.

    The file is read from a folder of its own, so that the files beside it do not matter. Transformers writes a progress
    bar to stderr that no switch turns off.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    dequantize = {}
    if hasattr(transformers, "GgufConfig"):  # without it transformers may keep the weights packed
        dequantize = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    with tempfile.TemporaryDirectory(prefix="mltrack-gguf-") as alone, one_line(where), redirect_stderr(StringIO()):
        (Path(alone) / "model.gguf").symlink_to(path.absolute())
        given: dict[str, Any] = {"gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False}
        AutoConfig.from_pretrained(alone, **given).save_pretrained(into)
        numbers = path.stat().st_size * _MOST_NUMBERS_A_BYTE
        described = json.loads((into / "config.json").read_text(encoding="utf-8"))
        check_size(where, into, described, tensors=0, numbers=numbers)
        AutoTokenizer.from_pretrained(alone, **given).save_pretrained(into)
        _drop_invented_tokens(into / "tokenizer.json", described["vocab_size"])
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            alone, dtype=torch.float32, output_loading_info=True, **dequantize, **given
        )
        model, info = loaded
        if not_held := sorted(info["missing_keys"]):
            raise ConfigurationError(
                f"{where} does not hold {len(not_held)} weights of a {type(model).__name__}, such as {not_held[0]};"
                " use a file of a whole model"
            )
        _detach_quantizer(model)
        reserve(sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()))
        model.save_pretrained(into)


def _drop_invented_tokens(file: Path, vocab_size: int) -> None:
    """Remove special tokens that transformers added behind the vocabulary: they have no weights."""
    if not file.is_file():
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"] = [one for one in content["added_tokens"] if one["id"] < vocab_size]
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _detach_quantizer(model: Any) -> None:
    """Make it a plain model: transformers does not save a model that a GGUF quantizer has read."""
    model.hf_quantizer, model.is_quantized = None, False
    for config in (model.config, getattr(model, "generation_config", None)):
        for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            if name in getattr(config, "__dict__", {}):
                delattr(config, name)
