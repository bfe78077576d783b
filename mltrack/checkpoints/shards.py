"""Weights in files of bounded size, named and indexed as Transformers reads them.

Invariant: each weight is in exactly one file; a single file is called `model.safetensors` and has no index.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

import torch

from mltrack.checkpoints.tensor_file import Tensors, data_bytes

MAX_SHARD_BYTES = 5_000_000_000
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def model_files(tensors: Tensors, max_shard_bytes: int) -> dict[str, Tensors | bytes]:
    """{file name: its tensors, or its text} of the weights; a weight larger than a shard gets its own."""
    total = sum([data_bytes(tensor) for tensor in tensors.values()])
    if total <= max_shard_bytes:
        return {SINGLE: tensors}
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = data_bytes(tensor)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    if len(shards) == 1:  # one weight that is larger than a shard
        return {SINGLE: tensors}
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return {**dict(zip(names, shards, strict=True)), INDEX: json.dumps(index, indent=1).encode()}


def weight_files(files: Mapping[str, object] | Iterable[str]) -> list[str]:
    """Which of a checkpoint's files hold weights."""
    return sorted(name for name in files if name == SINGLE or _SHARD.fullmatch(name))
