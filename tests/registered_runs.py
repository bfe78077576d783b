"""Finished runs as the registry sees them: a logged model with a few bytes, and the record that ends a journal.

Invariant: what is registered went through the relay's own code; only the training is left out.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from hf_folders import encoder_folder

from mltrack import registry
from mltrack.registry import gate
from mltrack.registry.champion import Outcome
from mltrack.store import Store, create_run, publish, write_model_folder

DIGEST = "d" * 64


def model_folder(parent: Path) -> Path:
    """A small classifier as MLflow keeps it."""
    source = encoder_folder(parent / "encoder")
    config = json.loads((source / "config.json").read_text())
    return write_model_folder(source, parent / "model", task="text_classification", hf_config={"mltrack": config["mltrack"]}, requirements=["mlflow"])


def logged_model(store: Store, folder: Path) -> str:
    """A READY logged model of a run of its own."""
    run = create_run(store, experiment_name=None, run_name="r", tags={}, idempotency_key=uuid.uuid4().hex, start_time_ms=1000)
    return publish(store, run.run_id, folder, name="step-1", step=1, tags={}, metrics={}, timestamp_ms=2000)


def intent(value: float | str, *, policy: str = "auto", margin: float = 0.0, digest: str = DIGEST, **more: str) -> dict[str, str]:
    """The tags that a version is registered with, as far as the gate reads them."""
    tags = {gate.VALUE: str(value), gate.POLICY: policy, gate.MARGIN: str(margin), gate.EVAL_DIGEST: digest, gate.METRIC: "eval_loss", gate.MODE: "min"}
    return {**tags, **more}


def finish(store: Store, folder: Path, name: str, value: float | str, **options: Any) -> Outcome:
    """A run that ends with this figure."""
    return registry.register(store, name, logged_model(store, folder), intent(value, **options), "made by a test, version {version}")
