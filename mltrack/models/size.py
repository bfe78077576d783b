"""The size of the model that a configuration describes, checked before anything of that size is made.

Invariant: no memory is allocated and no loop runs for a size that the weights' files do not confirm. A configuration
may describe slightly more than they hold (a new head, a table of positions), never what they cannot fill."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mltrack.errors import ConfigurationError

MAX_PARTS = 1024
"""Layers, experts and the like beyond the number of tensors; each takes objects in memory, before any weight."""
MAX_CLASSES = 1_000_000
_PARTS = re.compile(r"(^|_)(layers?|blocks|experts|stages|codebooks|hidden_groups|group_num)$")
_CLASSES = ("num_labels", "_num_labels")
_NEW_NUMBERS = 1 << 26
"""Numbers that a model may have beyond its weights: masks and tables of a small model."""


def check_size(name: str, folder: Path, config: Mapping[str, Any], *, tensors: int, numbers: int) -> None:
    """Refuse a configuration that describes another size than the weights have.

    Args:
        name: the model's, for messages.
        folder: with config.json.
        config: its content.
        tensors: number of tensors in the weights' files.
        numbers: how many numbers these hold.

    Raises:
        ConfigurationError: with the described count or size and the one that the weights allow.
    """
    for key, value in members(config):
        most = max(MAX_PARTS, tensors) if _PARTS.search(key) else (MAX_CLASSES if key in _CLASSES else None)
        if (
            most is not None
            and isinstance(value, (int, float))
            and not (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most)
        ):
            raise ConfigurationError(
                f"{name}: {key} in its config.json must be a whole number from 0 to {most:,}, not {str(value)[:40]}"
            )
    described = _numbers_of(name, folder, config)
    if described is not None and described > 2 * numbers + _NEW_NUMBERS:  # twice: tied weights count twice
        raise ConfigurationError(
            f"{name}: its config.json describes {described:,} numbers, but its weights hold {numbers:,}; use the"
            " config.json that was saved with the weights"
        )


def _numbers_of(name: str, folder: Path, config: Mapping[str, Any]) -> int | None:
    """How many numbers the model's body has; None for an architecture without code in transformers."""
    from mltrack.models.foreign_errors import one_line

    with one_line(name):
        import torch
        from transformers import AutoConfig, AutoModel
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        if config.get("model_type") not in CONFIG_MAPPING:
            return None
        described = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if type(described) not in AutoModel._model_mapping:
            return None
        with torch.device("meta"):
            body = AutoModel.from_config(described, trust_remote_code=False)
        return sum(tensor.numel() for tensor in (*body.parameters(), *body.buffers()))


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) pairs of a JSON object and of the objects in it."""
    waiting = [value]
    while waiting:
        held = waiting.pop()
        if isinstance(held, dict):
            yield from held.items()
            waiting.extend(held.values())
        elif isinstance(held, list):
            waiting.extend(held)
