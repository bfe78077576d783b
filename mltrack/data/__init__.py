"""Records, data sets, splits and batches.

Invariant: importing this package loads neither torch nor bandit; a public name is imported when it is first used,
so that the command line and the scanning workers start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mltrack.data.dataset import CodeDataset
    from mltrack.data.loader import DatasetLoader
    from mltrack.data.records import PROMPT_TEMPLATE, SECURITY_LEVELS, Record
    from mltrack.data.sampler import Sampler

_HOME = {
    "PROMPT_TEMPLATE": "records",
    "SECURITY_LEVELS": "records",
    "Record": "records",
    "CodeDataset": "dataset",
    "DatasetLoader": "loader",
    "Sampler": "sampler",
}

__all__ = ["PROMPT_TEMPLATE", "SECURITY_LEVELS", "CodeDataset", "DatasetLoader", "Record", "Sampler"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mltrack.data' has no attribute '{name}'")
    return getattr(import_module(f"mltrack.data.{_HOME[name]}"), name)
