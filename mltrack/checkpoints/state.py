"""State as tensors and JSON, and back: models, optimizers, random number generators and anything else to resume.

Invariant: the restored state is `torch.equal` and `==` to the saved one; nothing is pickled.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mltrack.errors import CheckpointError

_TENSOR, _TUPLE = "__tensor__", "__tuple__"
_SCALARS = {type(None), bool, int, float, str}
_WRAPPERS = ("module", "_orig_mod")
"""Attributes by which DataParallel, DistributedDataParallel and torch.compile hold the model."""

_STATE_DICT, _SAVE, _EXTRA_STATE = nn.Module.state_dict, nn.Module._save_to_state_dict, nn.Module.get_extra_state
"""Methods that a module overrides to change what is saved of it."""

Tensors = dict[str, torch.Tensor]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel and torch.compile."""
    for name in _WRAPPERS:
        if isinstance(inner := getattr(model, name, None), nn.Module) and len(list(model.children())) == 1:
            return unwrapped(inner)
    return model


def split_model(model: nn.Module) -> tuple[Tensors, dict[str, str]]:
    """The weights without duplicates, and the names that share them.

    Returns:
        {name: tensor} with each storage once, {other name: name} of tied weights.
    """
    held = _named_state(unwrapped(model))
    if len({tensor.data_ptr() for tensor in held.values()}) == len(held):
        return held, {}
    tensors: Tensors = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, tensor in held.items():
        first = seen.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if first != name and _same_view(tensor, tensors[first]):
            aliases[name] = first
        else:
            tensors[name] = tensor
    return tensors, aliases


def _named_state(model: nn.Module) -> Tensors:
    """`model.state_dict(keep_vars=True)`, by a walk that takes half the time with a cold cache; by that call if a
    module customizes it.
    """
    held: Tensors = {}
    return held if _collect(model, "", held) else dict(model.state_dict(keep_vars=True))


def _collect(module: nn.Module, prefix: str, held: Tensors) -> bool:
    """Add what `module` and its children would save; False if one of them customizes that."""
    kind = type(module)
    overridden = (
        kind.state_dict is not _STATE_DICT
        or kind._save_to_state_dict is not _SAVE
        or kind.get_extra_state is not _EXTRA_STATE
    )
    if overridden or "state_dict" in vars(module) or module._state_dict_hooks or module._state_dict_pre_hooks:
        return False
    for name, parameter in module._parameters.items():
        if parameter is not None:
            held[prefix + name] = parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            held[prefix + name] = buffer
    return all(
        _collect(child, f"{prefix}{name}.", held) for name, child in module._modules.items() if child is not None
    )


def _same_view(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.shape, one.stride(), one.dtype, one.device) == (other.shape, other.stride(), other.dtype, other.device)


def join_model(tensors: Tensors, aliases: Mapping[str, str]) -> Tensors:
    """A state dict for `load_state_dict`, from the result of `split_model`.

    Raises:
        CheckpointError: a weight is tied to one that is not there.
    """
    for name, first in aliases.items():
        if first not in tensors:
            raise CheckpointError(f"weights: {name} is tied to {first}, which is not there")
    return {**tensors, **{name: tensors[first] for name, first in aliases.items()}}


def load_model(model: nn.Module, held: Mapping[str, torch.Tensor]) -> None:
    """Set the weights of the unwrapped model; each must be there in its shape and type.

    Raises:
        CheckpointError: a weight is missing or unknown, or has another shape or type; the model is unchanged.
    """
    target = unwrapped(model)
    expected = target.state_dict()
    if differing := sorted(expected.keys() ^ held.keys()):
        which = "missing" if differing[0] in expected else "not in this model"
        raise CheckpointError(
            f"weights: {differing[0]} is {which} ({len(differing)} such); use the weights of the same"
            f" {type(target).__name__}"
        )
    for name, tensor in expected.items():
        given = held[name]
        if given.shape != tensor.shape or given.dtype != tensor.dtype:
            raise CheckpointError(
                f"weights: {name} must be {list(tensor.shape)} of {tensor.dtype}, not {list(given.shape)} of"
                f" {given.dtype}"
            )
    target.load_state_dict(held)


def load_optimizer(optimizer: torch.optim.Optimizer, held: Mapping[str, Any]) -> None:
    """Set the optimizer's state; each tensor must have its parameter's shape, or a part of it (a single number, a row,
    a column).

    Raises:
        CheckpointError: the state has other parameters, or a tensor of another shape; the optimizer is unchanged.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in held["state"].items():
        if not 0 <= number < len(parameters) or not isinstance(values, Mapping):
            raise CheckpointError(
                f"optimizer: its state names parameter {number}; the parameters are 0 to {len(parameters) - 1}"
            )
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and not _broadcasts(value.shape, parameters[number].shape):
                raise CheckpointError(
                    f"optimizer: {name} of parameter {number} must have the shape {list(parameters[number].shape)}, or"
                    f" a part of it, not {list(value.shape)}"
                )
    try:
        optimizer.load_state_dict({**held, "param_groups": _as_implemented(optimizer, held["param_groups"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = str(error).partition("\n")[0]
        raise CheckpointError(f"optimizer: {problem}; use the state of the same {type(optimizer).__name__}") from error


def _as_implemented(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All held groups, with this optimizer's own choice of kernels, which is not part of the state."""
    own: list[dict[str, Any]] = [
        {name: group[name] for name in ("fused", "foreach") if name in group} for group in optimizer.param_groups
    ]
    surplus: list[dict[str, Any]] = [{}] * (len(groups) - len(own))  # torch refuses them
    return [{**group, **kernels} for group, kernels in zip(groups, own + surplus, strict=False)]


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, target) == target
    except RuntimeError:
        return False


def flatten(value: Any, where: str, tensors: Tensors) -> Any:
    """A nested value as JSON that shares nothing with it; its tensors go into `tensors`, named by their place.

    Args:
        value: None, bool, int, float, str, numpy scalar, tensor, or lists, tuples and string- or int-keyed dicts of
            these.
        where: name of the value, for keys and messages.

    Raises:
        CheckpointError: a value of another type; the message names the key.
    """
    if isinstance(value, torch.Tensor):
        key = where if where not in tensors else f"{where}#{len(tensors)}"
        tensors[key] = value
        return {_TENSOR: key}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return {_TUPLE: [flatten(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        if _SCALARS.issuperset(map(type, value)):
            return list(value)
        return [flatten(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, (str, int)) for key in value):
        flat = {str(key): flatten(item, f"{where}.{key}", tensors) for key, item in value.items()}
        if len(flat) != len(value) or flat.keys() in ({_TENSOR}, {_TUPLE}):
            raise CheckpointError(
                f"{where}: its keys must differ as text and be none of {_TENSOR}, {_TUPLE}; they are"
                f" {', '.join(map(repr, value))}"
            )
        return flat
    raise CheckpointError(f"{where} must be a JSON value or a tensor, not {type(value).__name__}")


def unflatten(value: Any, tensors: Tensors) -> Any:
    """Undo `flatten`, except that the keys of dicts are strings.

    Raises:
        CheckpointError: a named tensor is not there.
    """
    if isinstance(value, list):
        return [unflatten(item, tensors) for item in value]
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            name = value[_TENSOR]
            if not isinstance(name, str) or name not in tensors:
                raise CheckpointError(f"{str(name)[:80]}: this tensor is not there")
            return tensors[name]
        if value.keys() == {_TUPLE} and isinstance(value[_TUPLE], list):
            return tuple(unflatten(item, tensors) for item in value[_TUPLE])
        return {key: unflatten(item, tensors) for key, item in value.items()}
    return value


class OptimizerNames:
    """Splits one optimizer's state at each save. The tensors' names are made only when they change: making them takes
    longer than copying small tensors.
    """

    def __init__(self) -> None:
        self._made_from: tuple[list[Any], ...] = ()
        self._keys: list[str] = []
        self._rows: dict[str, Any] = {}

    def split(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], Tensors]:
        """`optimizer.state_dict()` as JSON and tensors; the JSON must not be changed."""
        tensors: Tensors = {}
        content = flatten({name: value for name, value in state.items() if name != "state"}, "optimizer", tensors)
        rows: Mapping[int, Mapping[str, Any]] = state["state"]
        values = [value for row in rows.values() for value in row.values()]
        if {*map(type, values)} - {torch.Tensor}:
            return {
                **content,
                "state": {
                    str(number): flatten(row, f"optimizer.state.{number}", tensors) for number, row in rows.items()
                },
            }, tensors
        made_from = ([*rows], [len(row) for row in rows.values()], [name for row in rows.values() for name in row])
        if made_from != self._made_from:
            self._made_from = made_from
            self._rows = {
                str(number): {name: {_TENSOR: f"optimizer.state.{number}.{name}"} for name in row}
                for number, row in rows.items()
            }
            self._keys = [place[_TENSOR] for row in self._rows.values() for place in row.values()]
        tensors.update(zip(self._keys, values, strict=True))
        return {**content, "state": self._rows}, tensors


def join_optimizer(content: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """State for `optimizer.load_state_dict`: parameter numbers are integers again.

    Raises:
        CheckpointError: it is not an optimizer's state.
    """
    state = unflatten(content, tensors)
    try:
        return {**state, "state": {int(number): held for number, held in state["state"].items()}}
    except (KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"optimizer: its state is not numbered by parameter ({error})") from error


def capture_rng() -> dict[str, Any]:
    """The state of every global random number generator: Python, numpy, torch on the CPU and on each GPU."""
    version, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    python_version, python_state, python_gauss = random.getstate()
    return {
        "python": [python_version, list(python_state), python_gauss],
        "numpy": [
            version,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Set every global random number generator to the state that `capture_rng` returned."""
    python_version, python_state, python_gauss = state["python"]
    random.setstate((python_version, tuple(python_state), python_gauss))
    version, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    for number, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, number)
