"""Splits a checkpoint's objects into tensors and JSON documents by file name, and joins them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mltrack.checkpoints import directory, state
from mltrack.checkpoints.metadata import CheckpointMetadata
from mltrack.checkpoints.model_folder import ModelFolder
from mltrack.checkpoints.shards import MAX_SHARD_BYTES, model_files, weight_files
from mltrack.checkpoints.snapshot import Content
from mltrack.checkpoints.tensor_file import Tensors, read_tensors


@dataclass(frozen=True)
class Split:
    """The content of the files; nothing is copied."""

    content: Content
    documents: Mapping[str, Any]
    """Converted to JSON once the tensors are copied."""
    aliases: dict[str, str]
    """{name: name} of tied weights."""


class Parts:
    """Splits the same objects at each save; makes only once what does not change between saves.

    Args:
        folder: of the checkpoints.
        max_shard_bytes: larger weights are written in several files.
    """

    def __init__(self, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES):
        self._model_folder, self._max_shard_bytes = ModelFolder(folder), max_shard_bytes
        self._optimizer_names = state.OptimizerNames()

    def split(
        self, model: nn.Module, optimizer: Mapping[str, Any] | None, others: Mapping[str, Any], tokenizer: Any
    ) -> Split:
        """The parts of a checkpoint.

        Args:
            optimizer: its state.
            others: more states by name, of JSON values and tensors.
            tokenizer: saved beside the model.

        Raises:
            CheckpointError: a value that cannot be saved, named by its key.
        """
        tensors, aliases = state.split_model(model)
        content: dict[str, Tensors | bytes] = {
            **model_files(tensors, self._max_shard_bytes),
            **self._model_folder.files(state.unwrapped(model), tokenizer),
        }
        documents: dict[str, Any] = {}
        if optimizer is not None:
            documents[directory.OPTIMIZER_JSON], content[directory.OPTIMIZER] = self._optimizer_names.split(optimizer)
        state_tensors: state.Tensors = {}
        documents[directory.STATE] = {name: state.flatten(value, name, state_tensors) for name, value in others.items()}
        if state_tensors:
            content[directory.STATE_TENSORS] = state_tensors
        return Split(content, documents, aliases)


def load_directory(info: CheckpointMetadata, *, weights_only: bool = False) -> dict[str, Any]:
    """The content of a verified checkpoint folder; only files that its metadata names are read.

    Args:
        weights_only: read only the model's weights.

    Raises:
        CheckpointError: a file has another format than its name says.
    """

    def tensors_in(name: str) -> dict[str, torch.Tensor]:
        return read_tensors(info.path / name) if name in info.files else {}

    content = {} if weights_only else directory.read_json(info.path / directory.STATE)
    tensors = {} if weights_only else tensors_in(directory.STATE_TENSORS)
    held = {name: state.unflatten(value, tensors) for name, value in content.items()}
    has_optimizer = not weights_only and directory.OPTIMIZER_JSON in info.files
    optimizer_content = directory.read_json(info.path / directory.OPTIMIZER_JSON) if has_optimizer else None
    weights = {name: tensor for file in weight_files(info.files) for name, tensor in tensors_in(file).items()}
    return {
        "model_state_dict": state.join_model(weights, info.aliases),
        "optimizer_state_dict": state.join_optimizer(optimizer_content, tensors_in(directory.OPTIMIZER))
        if optimizer_content
        else None,
        "scheduler_state_dict": held.get("scheduler"),
        "scaler_state_dict": held.get("scaler"),
        "epoch": info.epoch,
        "step": info.step,
        "metric_name": directory.saved_for(info.path) or info.metric_name,
        "metric_value": info.metric_value,
        "extra_state": held.get("extra_state") or {},
        "metadata": info,
    }
