"""The files beside the weights that make a checkpoint a Hugging Face folder: configuration and tokenizer.

Invariant: they are serialized in the caller's thread, never in the background: a tokenizer that is used meanwhile would
write something else. As they rarely change, they are made again only when the configuration or the vocabulary did."""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from mltrack.checkpoints.directory import METADATA, TEMPORARY_PREFIX
from mltrack.errors import CheckpointError


class ModelFolder:
    """Makes the files, in a temporary folder below `checkpoint_dir`."""

    def __init__(self, checkpoint_dir: Path):
        self._folder = checkpoint_dir / f"{TEMPORARY_PREFIX}model-folder-{os.getpid()}"
        self._made_from: list[Any] = []
        self._files: dict[str, bytes] = {}

    def files(self, model: nn.Module, tokenizer: Any) -> dict[str, bytes]:
        """{name: content} as `save_pretrained` of the model's configurations and the tokenizer writes it.

        Raises:
            CheckpointError: the disk is full, or one of them cannot be saved.
        """
        config: Any = getattr(model, "config", None)
        if config is not None:
            config.architectures = [type(model).__name__]
        described = [
            one
            for one in (config, getattr(model, "generation_config", None), tokenizer)
            if hasattr(one, "save_pretrained")
        ]
        made_from = [_distinctive(one) for one in described]
        if self._made_from != made_from:
            self._files = self._saved(described)
            self._made_from = copy.deepcopy(made_from)
        return self._files

    def _saved(self, described: list[Any]) -> dict[str, bytes]:
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            for one in described:
                _save(one, self._folder)
            found = {
                path.relative_to(self._folder).as_posix(): path.read_bytes()
                for path in self._folder.rglob("*")
                if path.is_file()
            }
            return {name: content for name, content in found.items() if name != METADATA}
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self._folder.parent}: configuration or tokenizer could not be saved:"
                f" {str(error).partition(chr(10))[0]}"
            ) from error
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _save(described: Any, folder: Path) -> None:
    """Save it; leave out a generation configuration that transformers refuses, rather than lose the checkpoint."""
    from transformers import GenerationConfig

    try:
        described.save_pretrained(folder)
    except ValueError as error:
        if not isinstance(described, GenerationConfig):
            raise
        said = " ".join(str(error).split())[:200]
        warnings.warn(f"{folder.parent}: generation_config.json is left out of the checkpoints: {said}", stacklevel=2)


def _distinctive(described: Any) -> Any:
    """A value that changes when the files would: a whole configuration; a tokenizer's identity, size and template."""
    if hasattr(described, "get_vocab"):
        return [
            id(described),
            len(described),
            getattr(described, "chat_template", None),
            dict(described.special_tokens_map),
        ]
    return [id(described), vars(described)]
