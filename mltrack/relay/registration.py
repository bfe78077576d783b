"""Registers a model of the journal, with tags that only its run has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mltrack import registry
from mltrack.store import Store, runs


def registered(store: Store, run_id: str, model_id: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Register the record's model; returns name, version, aliases and decision."""
    commit = runs.get_run(store, run_id).tags.get("mlflow.source.git.commit")
    tags = {
        "mltrack.promote": record["promote"],
        **({"mltrack.git_commit": commit} if commit else {}),
        **record["tags"],
    }
    outcome = registry.register(store, record["registered_name"], model_id, tags, record["description"])
    return {"name": record["registered_name"], **asdict(outcome), "version": str(outcome.version)}
