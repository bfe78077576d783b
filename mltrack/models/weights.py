"""Which of a model's files hold its weights, and whether they may be read.

Invariant: a file that can run code when read is only opened by a reader that does not run it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from mltrack.errors import CheckpointError, ConfigurationError

_LOG = logging.getLogger("mltrack.models")
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_BIN = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_OTHER = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".gguf", ".safetensors")


def find_weights(name: str, files: Iterable[str], location: str) -> bool:
    """True for safetensors; False if there is only a pytorch_model.bin, to be read with `weights_only=True`.

    Args:
        name: the model's, for messages.
        files: names of the files in its folder or repository.
        location: the folder or repository.

    Raises:
        CheckpointError: the weights have a format that is refused.
        ConfigurationError: there are no weights.
    """
    there = set(files)
    if there.intersection(_SAFE):
        return True
    if there.intersection(_BIN):
        _LOG.warning(
            "%s has no safetensors: reading pytorch_model.bin as plain tensors (weights_only); it will be saved as"
            " safetensors",
            name,
        )
        return False
    others = sorted(file for file in there if file.endswith(_OTHER) and file != "training_args.bin")
    if others:
        raise CheckpointError(
            f"model_name: {name} has its weights in {others[0]}, which mltrack does not read; convert them to"
            " model.safetensors, or to a pytorch_model.bin that holds tensors only"
        )
    raise ConfigurationError(f"model_name: no weights in {location}; put model.safetensors beside config.json")
