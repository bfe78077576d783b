"""The name of a run: MLflow's own made-up one, or another."""

from __future__ import annotations

import re

from mltrack.store.connection import Store
from mltrack.store.refusal import translated
from mltrack.store.runs import MAX_NAME_LENGTH, RunInfo, legal_text


def rename_run(store: Store, run_id: str, name: str) -> None:
    """Gives the run another name."""
    with translated(store, f"naming run {run_id}"):
        store.client.update_run(run_id, name=legal_text(name, MAX_NAME_LENGTH))


def has_random_name(run: RunInfo) -> bool:
    """True if MLflow made up the name, such as "sneaky-fox-732", because no name was given."""
    from mlflow.utils import name_utils

    match = re.fullmatch(r"([a-z]+)-([a-z]+)-\d+", run.run_name)
    words = {*getattr(name_utils, "_GENERATOR_PREDICATES", ()), *getattr(name_utils, "_GENERATOR_NOUNS", ())}
    return match is not None and (not words or set(match.groups()) <= words)
