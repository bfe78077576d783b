"""Secrets that a run held before mltrack began: `mlflow run` logs its parameters, even a tracking URI with a password.

Invariant: no line contains the secret itself.
"""

from __future__ import annotations

from mltrack.addresses import redact
from mltrack.store import RunInfo, credentials_place


def exposed_secrets(run: RunInfo) -> list[str]:
    """One line for each param and tag of the run that holds a password or a token, with the remedy."""
    remedies = {
        "param": (
            "MLflow never changes a param: change the password, or delete the run for good (mlflow runs delete"
            f" --run-id {run.run_id}, then mlflow gc)"
        ),
        "tag": f"change the password, and the tag (MlflowClient().set_tag('{run.run_id}', ...))",
    }
    place = credentials_place("http")
    return [
        f"the {kind} {name} of run {run.run_id} holds a password or a token that was logged before mltrack began;"
        f" {remedies[kind]}; the place for it is {place}"
        for kind, values in (("param", run.params), ("tag", run.tags))
        for name, value in values.items()
        if redact(value) != value
    ]
