"""Reads the data sets of a run from MLflow.

Invariant: fields have the names that `runs.log_inputs` wrote; a text that is no JSON is returned unchanged.
"""

from __future__ import annotations

import json
from typing import Any

from mltrack.store.connection import Store
from mltrack.store.refusal import translated
from mltrack.store.runs import parsed


def data_sets_of(store: Store, run_id: str) -> list[dict[str, Any]]:
    """name, digest, context, source, schema and profile of each data set of the run, training first; a source of only a
    URI is given as text.
    """
    with translated(store, f"reading the data sets of run {run_id}"):
        held = store.client.get_run(run_id).inputs.dataset_inputs
    found = []
    for one in held:
        source = _parsed(one.dataset.source)
        found.append(
            {
                "name": one.dataset.name,
                "digest": one.dataset.digest,
                "context": next((tag.value for tag in one.tags if tag.key == "mlflow.data.context"), ""),
                "source": source["uri"] if isinstance(source, dict) and set(source) == {"uri"} else source,
                "schema": _parsed(one.dataset.schema),
                "profile": parsed(one.dataset.profile or "", dict),
            }
        )
    return sorted(found, key=lambda one: (one["context"] != "training", one["context"], one["name"]))


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return text
