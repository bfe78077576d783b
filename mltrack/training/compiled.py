"""torch.compile, for the layers that a model repeats.

They share one compilation, so it takes as long as that of a single layer, however deep the model is. What surrounds them stays as it is: embeddings,
the output layer for the tokens that a loss is taken of (whose number changes from batch to batch), the loss.

Invariant: the names of the weights stay as they are, and afterwards the layers are as before; lengths and batch sizes are no reason to compile again.

    with compiled_layers(model, config.compile):
        ...
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mltrack.errors import ConfigurationError


def check_compiler(device: torch.device) -> None:
    """Look for what a compilation needs before the training begins.

    Raises:
        ConfigurationError: a machine that cannot compile.
    """
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise ConfigurationError("compile: seen true, but torch.compile needs a C++ compiler here and finds none; accepted: false, or with g++ installed")


@contextmanager
def compiled_layers(model: nn.Module, wanted: bool = True, *, all_but_last: bool = False) -> Iterator[None]:
    """Inside, where wanted, each of them is compiled when it is first called; of a model without such layers, all of it.

    Args:
        all_but_last: the last layer is computed otherwise.
    """
    layers = repeated_layers(model)
    parts = (layers[: len(layers) - all_but_last] if layers else [model]) if wanted else []
    for part in parts:
        part.compile(dynamic=True)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None  # what nn.Module.compile sets, and has no call to take back


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The list of layers of one class that holds most of the model's parameters; empty where there is none."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) > 1 and len({type(layer) for layer in part}) == 1]
    return list(max(lists, key=lambda part: sum(weight.numel() for weight in part.parameters()), default=[]))
