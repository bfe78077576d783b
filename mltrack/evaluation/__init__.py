"""Metrics of a model, with baselines, reports, samples and figures to compare them.

Invariant: a baseline is measured on the same split and in the same way as its model.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "classification_baselines": "baselines",
    "unigram_loss": "baselines",
    "classification_report": "reports",
    "confusion_matrix_figure": "figures",
    "learning_curves_figure": "figures",
    "Sample": "samples",
    "generate_samples": "samples",
    "syntax_valid_share": "samples",
    "fixed_prompts": "samples",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mltrack.evaluation' has no attribute '{name}'")
    return getattr(import_module(f"mltrack.evaluation.{_HOME[name]}"), name)
