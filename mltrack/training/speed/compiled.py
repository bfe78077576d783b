"""torch.compile, for the layers that a model repeats.

Layers of one class share one compilation, so it takes as long as that of a single layer, however deep the model is.
What surrounds them stays as it is: embeddings, the output layer for the tokens that a loss is taken of (whose number
changes from batch to batch), the loss.

Invariant: the names of the weights stay as they are, and afterwards the layers are as before; lengths and batch sizes
beyond a single row are no reason to compile again.

    with compiled_layers(model, config.compile):
        ...
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mltrack.config import TrainingConfig
from mltrack.errors import ConfigurationError

LIMIT = 64
"""Compilations of one function, in place of torch's 8, behind which it would go on uncompiled with nothing but a
warning. All layers of transformers are called by one function: a training has up to eight (in training and evaluation,
with a mask and without, of one row and of more), and a process may train several models."""
LEAST_SHARE = 0.1
"""Of a model's parameters that a list of layers holds: shorter ones, of heads or norms, are not worth a compilation."""


def fingerprint(config: TrainingConfig) -> dict[str, Any]:
    """Compiled layers round otherwise."""
    return {"compiled": "layer by layer" if config.compile else False}


def check_compiler(device: torch.device) -> None:
    """Look for what a compilation needs before the training begins.

    Raises:
        ConfigurationError: a machine that cannot compile.
    """
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise ConfigurationError(
            "compile: seen true, but torch.compile needs a C++ compiler here and finds none; accepted: false, or with"
            " g++ installed"
        )


@contextmanager
def compiled_layers(model: nn.Module, wanted: bool = True, *, without: nn.Module | None = None) -> Iterator[None]:
    """Inside, where wanted, each of them is compiled when it is first called; of a model without such layers, all of
    it.

    Args:
        without: a layer that is computed otherwise.
    """
    if not wanted:
        yield
        return
    parts = [layer for layer in repeated_layers(model) or [model] if layer is not without]
    before = [part._compiled_call_impl for part in parts]
    for part in parts:
        part.compile(dynamic=True)
    try:
        with torch._dynamo.config.patch(recompile_limit=LIMIT):
            yield
    finally:
        for part, call in zip(parts, before, strict=True):
            part._compiled_call_impl = call  # what nn.Module.compile sets, and has no call to take back


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the outermost lists that hold a good part of the model each: of an encoder and a decoder both, of
    experts inside of a layer none.
    """
    least = LEAST_SHARE * sum(weight.numel() for weight in model.parameters())

    def layers_below(module: nn.Module) -> Iterator[nn.Module]:
        for part in module.children():
            if not isinstance(part, nn.ModuleList) or any(isinstance(layer, nn.ModuleList) for layer in part):
                yield from layers_below(part)
            elif sum(weight.numel() for weight in part.parameters()) >= least:
                yield from part

    return list(layers_below(model))
