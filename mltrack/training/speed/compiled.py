"""torch.compile, for the layers that a model repeats.

Layers of one class share one compilation, so it takes as long as a single layer's, however deep the model is. The rest
is not compiled: embeddings, the output layer for the tokens with a loss (whose number changes with each batch), the
loss.

Invariant: the names of the weights do not change, and afterwards the layers are as before; other lengths, and batch
sizes beyond a single row, need no new compilation.

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
"""Compilations of one function, instead of torch's 8, after which it would run uncompiled with only a warning. One
function calls all layers of transformers: a training has up to eight compilations (training and evaluation, with and
without a mask, one row and more), and a process may train several models."""
LEAST_SHARE = 0.1
"""Least share of a model's parameters in a list of layers; smaller lists, such as heads or norms, are not compiled."""


def fingerprint(config: TrainingConfig) -> dict[str, Any]:
    """Whether layers are compiled, which changes rounding."""
    return {"compiled": "layer by layer" if config.compile else False}


def check_compiler(device: torch.device) -> None:
    """Check before the training that this machine can compile.

    Raises:
        ConfigurationError: it cannot.
    """
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise ConfigurationError(
            "compile=true needs a C++ compiler on a CPU, and none was found; install g++ or use compile=false"
        )


@contextmanager
def compiled_layers(model: nn.Module, wanted: bool = True, *, without: nn.Module | None = None) -> Iterator[None]:
    """Inside, if wanted, each repeated layer is compiled at its first call; a model without such layers is compiled
    whole.

    Args:
        without: a layer that is not compiled.
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
            part._compiled_call_impl = call  # set by nn.Module.compile, which has no inverse


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the outermost lists that each hold a good part of the model: an encoder's and a decoder's, but not
    the experts inside a layer.
    """
    least = LEAST_SHARE * sum(weight.numel() for weight in model.parameters())

    def layers_below(module: nn.Module) -> Iterator[nn.Module]:
        for part in module.children():
            if not isinstance(part, nn.ModuleList) or any(isinstance(layer, nn.ModuleList) for layer in part):
                yield from layers_below(part)
            elif sum(weight.numel() for weight in part.parameters()) >= least:
                yield from part

    return list(layers_below(model))
