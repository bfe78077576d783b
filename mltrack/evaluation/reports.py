"""The classification report as plain JSON values.

Invariant: rows of the confusion matrix are true classes, columns are predicted ones, both in the order of `label_names`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def classification_report(labels: Sequence[int], predictions: Sequence[int], label_names: Sequence[str]) -> dict[str, Any]:
    """Per class precision, recall, f1, support; the confusion matrix; the metrics over all classes.

    Returns:
        {"classes": {name: {...}}, "confusion_matrix": {"labels": [...], "matrix": [[...]]}, "overall": {...}, "records": n}
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    from mltrack.tasks.metrics import classification_metrics

    indices = list(range(len(label_names)))
    if not labels:
        matrix = [[0] * len(indices) for _ in indices]
        return {"classes": {}, "confusion_matrix": {"labels": list(label_names), "matrix": matrix}, "overall": {}, "records": 0}
    columns = precision_recall_fscore_support(labels, predictions, labels=indices, average=None, zero_division=0)
    classes = {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for name, precision, recall, f1, support in zip(label_names, *columns, strict=True)
    }
    overall = {name: value for name, value in classification_metrics(labels, predictions, label_names).items() if not name.startswith("f1_")}
    matrix = confusion_matrix(labels, predictions, labels=indices).tolist()
    return {"classes": classes, "confusion_matrix": {"labels": list(label_names), "matrix": matrix}, "overall": overall, "records": len(labels)}
