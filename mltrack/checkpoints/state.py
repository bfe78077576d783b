"""State as tensors and JSON, and back: models, optimizers, random number generators, whatever else is resumable.

Invariant: what comes back is `torch.equal` and `==` to what went in; nothing is pickled.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mltrack.errors import CheckpointError

_TENSOR, _TUPLE = "__tensor__", "__tuple__"
_WRAPPERS = ("module", "_orig_mod")
"""Attributes by which DataParallel, DistributedDataParallel and torch.compile hold the model."""

Tensors = dict[str, torch.Tensor]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself inside of DataParallel, DistributedDataParallel and torch.compile."""
    for name in _WRAPPERS:
        if isinstance(inner := getattr(model, name, None), nn.Module) and len(list(model.children())) == 1:
            return unwrapped(inner)
    return model


def split_model(model: nn.Module) -> tuple[Tensors, dict[str, str]]:
    """The weights without repetition, and which names share them.

    Returns:
        {name: tensor} with each storage once, {other name: name} of tied weights.
    """
    tensors: Tensors = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in unwrapped(model).state_dict().items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        first = seen.setdefault(place, name) if tensor.numel() else name
        if first != name:
            aliases[name] = first
        else:
            tensors[name] = tensor.detach().contiguous()
    return tensors, aliases


def join_model(tensors: Tensors, aliases: Mapping[str, str]) -> Tensors:
    """A state dict that `load_state_dict` takes, from what `split_model` gave."""
    return {**tensors, **{name: tensors[first] for name, first in aliases.items()}}


def flatten(value: Any, where: str, tensors: Tensors) -> Any:
    """A nested value as JSON; tensors go into `tensors` under their place.

    Args:
        value: None, bool, int, float, str, numpy scalar, tensor, or lists, tuples and string- or int-keyed dicts of these.
        where: name of the value, for keys and messages.

    Raises:
        CheckpointError: something else; the message names the key.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        tensors[where] = value.detach().contiguous()
        return {_TENSOR: where}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return {_TUPLE: [flatten(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [flatten(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, (str, int)) for key in value):
        return {str(key): flatten(item, f"{where}.{key}", tensors) for key, item in value.items()}
    raise CheckpointError(f"{where}: seen {type(value).__name__}; accepted: JSON values and tensors")


def unflatten(value: Any, tensors: Tensors) -> Any:
    """What `flatten` was given; the keys of dicts are strings."""
    if isinstance(value, list):
        return [unflatten(item, tensors) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        if value.keys() == {_TUPLE}:
            return tuple(unflatten(item, tensors) for item in value[_TUPLE])
        return {key: unflatten(item, tensors) for key, item in value.items()}
    return value


def split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Any], Tensors]:
    """`optimizer.state_dict()` as JSON and tensors."""
    tensors: Tensors = {}
    return flatten(dict(state), "optimizer", tensors), tensors


def join_optimizer(content: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """What `optimizer.load_state_dict` takes: parameter numbers are integers again."""
    state = unflatten(content, tensors)
    return {**state, "state": {int(number): held for number, held in state["state"].items()}}


def capture_rng() -> dict[str, Any]:
    """The state of every global random number generator: Python, numpy, torch on the CPU and on each GPU."""
    version, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    python_version, python_state, python_gauss = random.getstate()
    return {
        "python": [python_version, list(python_state), python_gauss],
        "numpy": [version, torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Set every global random number generator to what `capture_rng` saw."""
    python_version, python_state, python_gauss = state["python"]
    random.setstate((python_version, tuple(python_state), python_gauss))
    version, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    for number, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, number)
