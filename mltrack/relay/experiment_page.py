"""What MLflow's page of an experiment opens with: a description that names its tasks and metrics, and a saved view for
each task with its columns and charts.

Invariant: a view that is there stays as it is, and so does a description that a person wrote or changed.

MLflow 3.16 and later list saved views in the menu "Views". A view is a tag of the experiment,
`mlflow.sharedViewState.<id>`, and `?viewStateShareKey=<id>` opens it. MLflow presets neither the charts of a run's page
nor the columns of an experiment that is opened without a view.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mltrack.journal import records
from mltrack.relay.note import NOTE_TAG, is_replaceable, marked
from mltrack.store import Store, experiments

_PREFIX = "mlflow.sharedViewState."
_OF_MLTRACK = "mltrack-"
"""Begins the ids of the views made here; the task's name follows."""
STEP_METRICS = ("train_loss", "learning_rate", "grad_norm", "tokens_per_second")
COLUMNS_OF_OPTIONS = ("model_name", "learning_rate", "batch_size", "epochs", "seed")
MOST_CHARTS = 12


def describe_experiment(store: Store, experiment_id: str, summary: Mapping[str, Any]) -> None:
    """Add the view of the run's task if it is missing, and bring the description up to date.

    Args:
        summary: of a run that has been evaluated (`summary.json`).

    Raises:
        StoreUnavailable, StoreRejected: by MLflow.
    """
    held = experiments.tags_of(store, experiment_id)
    key, task = f"{_PREFIX}{_OF_MLTRACK}{summary['task']}", summary["task"]
    new: dict[str, str] = {}
    if key not in held:
        metrics = [name for name in summary["evaluations"][0] if name.startswith("eval_")]
        new[key] = json.dumps(
            {
                "name": f"{task} by {summary['metric']}",
                "createdAt": records.now_ms(),
                "state": json.dumps(view(task, summary["metric"], metrics, ascending=summary["mode"] == "min")),
            }
        )
    text = marked(_description(experiment_id, {**held, **new}))
    if text != held.get(NOTE_TAG) and is_replaceable(held.get(NOTE_TAG, "")):
        new[NOTE_TAG] = text
    for name, value in new.items():
        experiments.set_tag(store, experiment_id, name, value)


def view(task: str, metric: str, metrics: Sequence[str], *, ascending: bool) -> dict[str, Any]:
    """The state of MLflow's runs page that compares the runs of one task: the best first, then loss, evaluation,
    learning rate, gradient norm and speed.

    Args:
        metric: that the runs are judged by.
        metrics: of an evaluation.
        ascending: lower is better.
    """
    shown = [metric, *(name for name in metrics if name != metric and not name.startswith("eval_f1_"))]
    charts = ["train_loss", *shown, *STEP_METRICS[1:]][:MOST_CHARTS]
    columns = [f"metrics.`{name}`" for name in [*shown[:4], "train_loss"]]
    columns += [f"params.`{name}`" for name in COLUMNS_OF_OPTIONS]
    return {
        "searchFilter": f"tags.`mltrack.task` = '{task}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "compareRunSections": [_section()],
        "compareRunCharts": [_line_chart(name) for name in charts],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
    }


def _section() -> dict[str, Any]:
    return {
        "uuid": _OF_MLTRACK,
        "name": "Training",
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def _line_chart(metric: str) -> dict[str, Any]:
    return {
        "uuid": f"{_OF_MLTRACK}{metric}",
        "type": "LINE",
        "metricSectionId": _OF_MLTRACK,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 10,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "range": {},
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "selectedXAxisMetricKey": "",
        "selectedYAxisMetricKey": "metric",
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _description(experiment_id: str, tags: Mapping[str, str]) -> str:
    """Markdown of the views that the tags hold."""
    lines = ["Trainings by mltrack. Compare the runs of one task:"]
    for key in sorted(tags):
        if key.startswith(_PREFIX + _OF_MLTRACK):
            address = f"#/experiments/{experiment_id}/runs?viewStateShareKey={key.removeprefix(_PREFIX)}"
            lines.append(f"- [{_name_of_view(tags[key])}]({address}&compareRunsMode=CHART)")
    return (
        "\n".join(lines)
        + "\n\nMetrics by optimizer step: train_loss, learning_rate, grad_norm, tokens_per_second, and at"
        " evaluations eval_...; epoch/ by finished epoch; system/ is what it cost. The parameters baseline_... are"
        " baselines on the same evaluation set. Figures of different tasks or data sets do not compare."
    )


def _name_of_view(value: str) -> str:
    try:
        return str(json.loads(value)["name"])
    except (ValueError, LookupError, TypeError):  # a person saved it in another form
        return "a view"
