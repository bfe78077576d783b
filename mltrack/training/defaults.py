"""The defaults of `AdvancedTrainer`: options, a local tracker, local checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mltrack.checkpoints import CheckpointManager
from mltrack.config import TrainingConfig
from mltrack.config.former_names import current_names
from mltrack.errors import ConfigurationError, did_you_mean, one_of
from mltrack.hardware import prepare_to_repeat
from mltrack.tracking import TrainingMetricsTracker

OUTPUT_DIR = "mltrack-training"


def configure(config: TrainingConfig | None, options: Mapping[str, Any]) -> TrainingConfig:
    """The configuration with some options replaced; sets up the process for it before anything uses the device.

    Raises:
        ConfigurationError: an option of that name does not exist, or its value is not accepted.
    """
    options = current_names(options)
    known = [f.name for f in fields(TrainingConfig)]
    for name in options:
        if name not in known:
            raise ConfigurationError(f"unknown option '{name}'; use {one_of(known)}{did_you_mean(name, known)}")
    made = replace(config or TrainingConfig(), **options)
    prepare_to_repeat(made.deterministic)
    return made


def local_tracker(output_dir: str | Path | None, *, resume: bool = False) -> TrainingMetricsTracker:
    """A tracker in `output_dir`."""
    return TrainingMetricsTracker(output_dir or OUTPUT_DIR, resume=resume)


def local_checkpoints(
    output_dir: str | Path | None, config: TrainingConfig, mode: str, tokenizer: Any, *, resume: bool = False
) -> CheckpointManager:
    """Checkpoints in `output_dir` itself, beside the tracker's journal; without `resume`, an earlier training's are set
    aside, as its journal is.
    """
    manager = CheckpointManager(
        Path(output_dir or OUTPUT_DIR),
        max_checkpoints=config.max_checkpoints,
        metric_name=config.metric_name,
        mode=mode,
        keep_every=config.keep_every,
        tokenizer=tokenizer,
    )
    if not resume:
        manager.set_aside_all()
    return manager
