"""Metrics of labels and predictions, and whether a higher or a lower value is better.

Invariant: an undefined metric of a class (no record, no prediction) is 0, never NaN. Importing this module loads
neither torch nor sklearn."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from mltrack.errors import ConfigurationError

MAX_CLASS_METRICS = 50
"""Each becomes a metric of the run and of every kept model, a tag of the version, and part of a checkpoint's state."""
_OF_A_CLASS = "eval_f1_"
_LOWER = {"loss", "perplexity", "ppl", "error", "errors", "mae", "mse", "rmse", "nll"}
_HIGHER = {"accuracy", "acc", "f1", "precision", "recall", "auc", "valid", "score", "bleu", "exact", "pass"}


def metric_mode(name: str) -> str:
    """ "min" or "max": whether lower or higher is better, by the words in a metric's name.

    Raises:
        ConfigurationError: the name does not say.
    """
    stem = re.sub(r"^(eval|test|train|val|validation|baseline)_", "", name.lower().rsplit("/", 1)[-1])
    if stem.startswith(("f1_", "precision_", "recall_")):  # of a class, which may be called "error"
        return "max"
    words = re.split(r"[^a-z0-9]+", stem)
    if _LOWER.intersection(words):
        return "min"
    if _HIGHER.intersection(words):
        return "max"
    raise ConfigurationError(
        f"metric_mode: the name '{name}' does not say whether lower or higher is better; give metric_mode=min or"
        " metric_mode=max"
    )


def without_many_classes(metrics: Mapping[str, float], *keep: str) -> dict[str, float]:
    """The metrics of an evaluation, without those of single classes if there are more than `MAX_CLASS_METRICS`; `keep`
    is kept.
    """
    single = [name for name in metrics if name.startswith(_OF_A_CLASS)]
    left_out = set(single) - set(keep) if len(single) > MAX_CLASS_METRICS else set()
    return {name: value for name, value in metrics.items() if name not in left_out}


def without_classes(metrics: Mapping[str, float], *keep: str) -> dict[str, float]:
    """The metrics of an evaluation without those of single classes; `keep` stays."""
    return {name: value for name, value in metrics.items() if name in keep or not name.startswith(_OF_A_CLASS)}


def classification_metrics(
    labels: Sequence[int], predictions: Sequence[int], label_names: Sequence[str]
) -> dict[str, float]:
    """accuracy, macro_f1, weighted_f1, macro_precision, macro_recall, f1_<class>.

    The macro averages run over the classes that occur in `labels` or `predictions`: a class that the split lacks is not
    counted as a failure.

    Args:
        labels: class index of each record.
        predictions: predicted class index of each record.
        label_names: name of each index.
    """
    from sklearn.metrics import precision_recall_fscore_support

    names = [f"f1_{name}" for name in label_names]
    if not labels:
        return dict.fromkeys(
            ("accuracy", "macro_f1", "weighted_f1", "macro_precision", "macro_recall", *names), math.nan
        )
    indices = list(range(len(label_names)))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=indices, average=None, zero_division=0
    )
    seen = sorted({*labels, *predictions})
    total = len(labels)
    return {
        "accuracy": sum(a == b for a, b in zip(labels, predictions, strict=True)) / total,
        "macro_f1": float(f1[seen].mean()),
        "weighted_f1": float((f1 * support).sum() / total),
        "macro_precision": float(precision[seen].mean()),
        "macro_recall": float(recall[seen].mean()),
        **{name: float(value) for name, value in zip(names, f1, strict=True)},
    }
