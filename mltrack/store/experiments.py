"""Experiments: their tags, among them what MLflow's page of an experiment shows."""

from __future__ import annotations

from mltrack.store.connection import Store
from mltrack.store.refusal import translated


def tags_of(store: Store, experiment_id: str) -> dict[str, str]:
    """The experiment's tags.

    Raises:
        StoreRejected: there is no such experiment.
    """
    with translated(store, f"reading experiment {experiment_id}"):
        return dict(store.client.get_experiment(experiment_id).tags)


def set_tag(store: Store, experiment_id: str, name: str, value: str) -> None:
    """One tag; what it was before is replaced."""
    with translated(store, f"tagging experiment {experiment_id}"):
        store.client.set_experiment_tag(experiment_id, name, value)
