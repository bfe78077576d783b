"""What the steps of one training hand on to each other, and what is logged of it before the first optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mltrack
from mltrack import registry
from mltrack.checkpoints import CheckpointManager, CheckpointMetadata
from mltrack.config import TaskType, TrainModelRequest, TrainModelResponse
from mltrack.data import CodeDataset
from mltrack.data.check import DataReport
from mltrack.data.requested import RequestedRecords
from mltrack.errors import ConfigurationError
from mltrack.evaluation import baselines
from mltrack.hardware import facts
from mltrack.journal import JournalLock, RunDirectory, RunInfo, write_json
from mltrack.models import ModelSource
from mltrack.relay import trainer_tags
from mltrack.runs.record import inputs_of, params_of
from mltrack.store.connection import without_autologging
from mltrack.tracking import TrainingMetricsTracker
from mltrack.training import AdvancedTrainer


@dataclass
class TrainingRun:
    """What the steps hand on to each other."""

    request: TrainModelRequest
    at_once: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside, an interruption need not wait: nothing is open that it would leave half done."""
    response: TrainModelResponse = field(default_factory=TrainModelResponse)
    resumed: RunDirectory | None = None
    lock: JournalLock | None = None
    """Of the run directory, until the tracker has it."""
    source: ModelSource | None = None
    parent: registry.Parent | None = None
    train_dataset: CodeDataset | None = None
    eval_dataset: CodeDataset | None = None
    records: RequestedRecords | None = None
    data_check: DataReport | None = None
    data_figures: Mapping[str, float] = field(default_factory=dict)
    """What is logged of the data at step 0."""
    model: Any = None
    directory: RunDirectory | None = None
    info: RunInfo | None = None
    tracker: TrainingMetricsTracker | None = None
    began_at: int | None = None
    """Bytes of the journal before what this trainer records of its training."""
    checkpoints: CheckpointManager | None = None
    trainer: AdvancedTrainer | None = None
    checkpoint: dict[str, Any] | None = None
    damaged: list[Path] = field(default_factory=list)
    """Checkpoints of the resumed run that are not to be kept."""

    @property
    def task(self) -> TaskType:
        return TaskType(self.request.task)


def go_on_from_checkpoint(run: TrainingRun, notice: Callable[[str], None]) -> None:
    """Let the trainer go on from the resumed run's checkpoint, and say how; nothing where no run is resumed.

    Raises:
        ConfigurationError: a fork would train nothing.
    """
    if run.resumed is None:
        return
    assert run.trainer is not None
    assert run.tracker is not None
    assert run.checkpoints is not None
    assert run.checkpoint is not None
    changed = run.trainer.load_checkpoint(run.checkpoint)
    if run.request.new_run:
        run.trainer.forget_best()
    if changed:
        run.tracker.set_tags({"mltrack.inexact_resume": "; ".join(changed)})
    state, total_steps = run.trainer.state, run.trainer.plan.total_steps
    run.tracker.resume_from(state.step, state.epoch)
    if not run.request.new_run:
        run.checkpoints.settle()
    notice(f"resumed at step {state.step:,} (epoch {state.epoch + 1}) of {run.resumed.path}")
    for line in run.trainer.resume_notices:
        notice(line)
    run.response.warnings += run.trainer.resume_notices
    if state.stopped_early:
        notice("it had stopped early and stays stopped")
    elif state.step >= total_steps:
        remedy = (
            f"step {state.step:,} of {total_steps:,} is reached already: nothing is left to train; accepted: larger"
            f" {_what_ends(run)}"
        )
        if run.request.new_run:
            raise ConfigurationError(f"resume: {remedy}")
        notice(remedy)


def _what_ends(run: TrainingRun) -> str:
    """The option that says how long the run is."""
    assert run.trainer is not None
    if run.request.max_steps is None:
        return "epochs or max_steps"
    return "epochs and max_steps" if run.trainer.plan.as_in_0_1 else "max_steps"


def log_what_is_known(run: TrainingRun, tracker: TrainingMetricsTracker) -> None:
    """Params, tags, data sets, the report on the data and the baselines, before the first step."""
    request, train_dataset, eval_dataset = run.request, run.train_dataset, run.eval_dataset
    assert train_dataset is not None
    assert eval_dataset is not None
    assert run.directory is not None
    tracker.log_params(params_of(request))
    tracker.set_tags(
        {
            "mltrack.version": mltrack.__version__,
            "mltrack.data_digest": train_dataset.digest,
            **facts(),
            **trainer_tags(),
        }
    )
    if run.resumed is None or request.new_run:
        tracker.set_tags(run.info.tags if run.info is not None else {})
    if run.parent is not None:
        tracker.set_tags(run.parent.tags)
    tracker.log_inputs(inputs_of(request, train_dataset, eval_dataset))
    tracker.log_artifact(run.directory.path / "config.json")
    assert run.records is not None
    assert run.data_check is not None
    write_json(run.directory.path / "data_check.json", run.data_check.to_dict())
    tracker.log_artifact(run.directory.path / "data_check.json", "data")
    tracker.set_tags({"mltrack.data_check": ", ".join(finding.name for finding in run.data_check.findings) or "ok"})
    for path in run.records.keep_bad_records(run.directory.path):
        tracker.log_artifact(path, "data")
    _log_baselines(run, tracker)


def _log_baselines(run: TrainingRun, tracker: TrainingMetricsTracker) -> None:
    train_dataset, eval_dataset = run.train_dataset, run.eval_dataset
    assert train_dataset is not None
    assert eval_dataset is not None
    if run.task.is_classification:
        with run.at_once(), without_autologging():
            values = baselines.classification_baselines(
                train_dataset.records, eval_dataset.records, train_dataset.label_mapping
            )
    else:
        with run.at_once():
            values = baselines.unigram_loss(train_dataset, eval_dataset, len(train_dataset.tokenizer))
    run.response.baselines = {f"baseline_{name}": value for name, value in values.items()}
    if run.resumed is None or run.request.new_run:
        tracker.log_metrics({**run.data_figures, **run.response.baselines}, step=0)


def log_writing(tracker: TrainingMetricsTracker, written: CheckpointMetadata, milliseconds: float) -> None:
    """What a checkpoint cost behind the training."""
    tracker.log_metrics({"checkpoint_write_ms": milliseconds, "checkpoint_bytes": written.num_bytes}, step=written.step)
