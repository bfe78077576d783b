"""The classification report as plain JSON values.

Invariant: rows of the confusion matrix are true classes, columns are predicted ones, both in the order of
`label_names`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

MAX_MATRIX = 1000
"""Classes: a million cells."""


def classification_report(
    labels: Sequence[int], predictions: Sequence[int], label_names: Sequence[str]
) -> dict[str, Any]:
    """Per class precision, recall, f1, support; the confusion matrix; the metrics over all classes.

    Returns:
        {"classes": {name: {...}}, "confusion_matrix": {"labels": [...], "matrix": [[...]]}, "overall": {...},
        "records": n}. With more than `MAX_MATRIX` classes the matrix is {"labels": [...], "pairs": [{"true",
        "predicted", "count"}]} with the most frequent pairs of classes.
    """
    from sklearn.metrics import precision_recall_fscore_support

    from mltrack.evaluation.metrics import classification_metrics

    indices = list(range(len(label_names)))
    confusions = _confusions(labels, predictions, label_names)
    if not labels:
        return {"classes": {}, "confusion_matrix": confusions, "overall": {}, "records": 0}
    columns = precision_recall_fscore_support(labels, predictions, labels=indices, average=None, zero_division=0)
    classes = {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for name, precision, recall, f1, support in zip(label_names, *columns, strict=True)
    }
    overall = {
        name: value
        for name, value in classification_metrics(labels, predictions, label_names).items()
        if not name.startswith("f1_")
    }
    return {"classes": classes, "confusion_matrix": confusions, "overall": overall, "records": len(labels)}


def _confusions(labels: Sequence[int], predictions: Sequence[int], label_names: Sequence[str]) -> dict[str, Any]:
    pairs = Counter(zip(labels, predictions, strict=True))
    if len(label_names) > MAX_MATRIX:
        rows = [
            {"true": label_names[true], "predicted": label_names[predicted], "count": count}
            for (true, predicted), count in pairs.most_common(MAX_MATRIX)
        ]
        return {"labels": list(label_names), "pairs": rows}
    matrix = [[pairs[true, predicted] for predicted in range(len(label_names))] for true in range(len(label_names))]
    return {"labels": list(label_names), "matrix": matrix}
