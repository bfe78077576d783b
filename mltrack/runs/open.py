"""The second stage of a training: opens its run and puts the trainer at its starting position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import mltrack
from mltrack.checkpoints import CheckpointManager, CheckpointMetadata
from mltrack.config import TrainModelResponse
from mltrack.errors import ConfigurationError
from mltrack.hardware import environment
from mltrack.journal import write_json
from mltrack.relay import trainer_tags
from mltrack.runs.description import inputs_of, params_of
from mltrack.runs.prepare import Prepared, Resumed
from mltrack.runs.provenance import undelivered
from mltrack.runs.run_summary import RunSummary
from mltrack.runs.tracked import TrackedRun
from mltrack.store.connection import without_autologging
from mltrack.tracking import TrainingMetricsTracker, deliver_in_background
from mltrack.training import AdvancedTrainer


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run whose training can begin."""

    prepared: Prepared
    tracked: TrackedRun
    checkpoints: CheckpointManager
    trainer: AdvancedTrainer


def open_run(tracked: TrackedRun) -> OpenRun:
    """Steps 4 to 6: log what is known, make checkpoints and trainer, start the relay.

    Raises:
        ConfigurationError: a fork would train nothing, or an option does not fit the model or the data.
        Interrupted: a signal requested a stop.
    """
    prepared, tracker, request = tracked.prepared, tracked.tracker, tracked.prepared.request
    if tracked.restarted:
        tracker.resume_from(0, 0)
    _log_what_is_known(tracked)
    deliver_in_background(undelivered(request.output_dir), request.tracking_uri)

    tracked.frontend.begin("open_checkpoints")
    checkpoints = _open_checkpoints(tracked)
    tracked.on_failure.append(("the checkpoint in flight was not saved", checkpoints.close))
    tracked.results.append(partial(_list_checkpoints, checkpoints))

    tracked.frontend.begin("build_trainer")
    summary = RunSummary(tracked)
    trainer = AdvancedTrainer(
        prepared.model,
        prepared.train_dataset,
        prepared.eval_dataset,
        config=request.training_config(),
        tracker=tracker,
        checkpoint_manager=checkpoints,
        callbacks=[summary, *tracked.frontend.callbacks],
        metrics=tracked.frontend.metrics,
        stop_requested=tracked.stop_requested,
    )
    tracked.results.insert(0, partial(_tell_results, trainer))
    tracked.results.append(summary.finish)
    run = OpenRun(prepared=prepared, tracked=tracked, checkpoints=checkpoints, trainer=trainer)
    if prepared.resumed is not None:
        _go_on_from(prepared.resumed, run)
    tracked.began_at = tracked.directory.journal.stat().st_size
    if not request.offline:
        tracker.start_delivery()
    tracker.set_tags(
        {
            "mltrack.device": str(trainer.device),
            "mltrack.precision": trainer.precision.mode,
            "mltrack.parameters": sum(parameter.numel() for parameter in prepared.model.parameters()),
        }
    )
    return run


def _log_what_is_known(tracked: TrackedRun) -> None:
    """Params, tags, data sets, the report on the data and the baselines, before the first step."""
    prepared, tracker, folder = tracked.prepared, tracked.tracker, tracked.directory.path
    machine = environment()
    tracker.set_tags(  # first of all: by them the relay finds out whether the run is another training's
        {
            "mltrack.version": mltrack.__version__,
            "mltrack.data_digest": prepared.train_dataset.digest,
            **({"mltrack.gpus": machine["gpus"]} if "gpus" in machine else {}),
            **trainer_tags(),
        }
    )
    trainer = {name.removeprefix("mltrack.").removeprefix("trainer_"): text for name, text in trainer_tags().items()}
    write_json(folder / "environment.json", {"mltrack": mltrack.__version__, **machine, "trainer": trainer})
    tracker.log_artifact(folder / "environment.json")
    tracker.log_params(params_of(prepared.request))
    if prepared.continued is None:
        tracker.set_tags(tracked.info.tags)
    tracker.set_tags(prepared.origin_tags)
    if prepared.parent is not None:
        tracker.set_tags(prepared.parent.tags)
    tracker.log_inputs(inputs_of(prepared.request, prepared.train_dataset, prepared.eval_dataset))
    tracker.log_artifact(folder / "config.json")
    if prepared.request.config_text is not None:
        (folder / "mltrack.yaml").write_text(prepared.request.config_text, encoding="utf-8")
        tracker.log_artifact(folder / "mltrack.yaml")
    write_json(folder / "data.json", prepared.data_summary)
    tracker.log_artifact(folder / "data.json", "data")
    if prepared.data_check is not None:
        write_json(folder / "data_check.json", prepared.data_check.to_dict())
        tracker.log_artifact(folder / "data_check.json", "data")
        findings = ", ".join(finding.name for finding in prepared.data_check.findings)
        tracker.set_tags({"mltrack.data_check": findings or "ok"})
    for path in prepared.records.keep_bad_records(folder) if prepared.records is not None else ():
        tracker.log_artifact(path, "data")
    tracked.response.baselines = _baselines(tracked)
    if prepared.continued is None:
        tracker.log_params({name: f"{value:.6g}" for name, value in tracked.response.baselines.items()})


def _baselines(tracked: TrackedRun) -> dict[str, float]:
    if tracked.prepared.records is None:  # a baseline reads records
        return {}
    train_dataset, eval_dataset = tracked.prepared.train_dataset, tracked.prepared.eval_dataset
    with tracked.frontend.at_once(), without_autologging():
        values = train_dataset.task.baselines(train_dataset, eval_dataset, len(train_dataset.tokenizer))
    return {f"baseline_{name}": value for name, value in values.items()}


def _open_checkpoints(tracked: TrackedRun) -> CheckpointManager:
    prepared, request = tracked.prepared, tracked.prepared.request
    checkpoints = CheckpointManager(
        tracked.directory.checkpoints,
        max_checkpoints=request.max_checkpoints,
        metric_name=request.metric_name,
        mode=request.metric_mode,
        keep_every=request.keep_every,
        run_id=tracked.directory.path.name,
        on_change=tracked.tracker.log_checkpoints,
        tokenizer=prepared.source.tokenizer,
        background=True,
        when_busy=request.save_when_busy,
        on_written=partial(_log_writing, tracked.tracker),
    )
    if prepared.continued is not None:
        for folder in prepared.continued.damaged:
            checkpoints.set_aside(folder)
    return checkpoints


def _log_writing(tracker: TrainingMetricsTracker, written: CheckpointMetadata, milliseconds: float) -> None:
    """What a checkpoint cost behind the training."""
    costs = {"system/checkpoint_write_ms": milliseconds, "system/checkpoint_bytes": written.num_bytes}
    tracker.log_metrics(costs, step=written.step)


def _list_checkpoints(checkpoints: CheckpointManager, response: TrainModelResponse) -> None:
    response.checkpoints = [
        {
            "step": one.step,
            "epoch": one.epoch,
            "metric_value": one.metric_value,
            "metrics": one.metrics,
            "path": str(one.path),
        }
        for one in checkpoints.list_checkpoints()
    ]


def _tell_results(trainer: AdvancedTrainer, response: TrainModelResponse) -> None:
    for name, value in trainer.results().items():
        if hasattr(response, name):
            setattr(response, name, value)


def _go_on_from(resumed: Resumed, run: OpenRun) -> None:
    """Make the trainer continue from the resumed run's checkpoint, and report how.

    Raises:
        ConfigurationError: a fork would train nothing.
    """
    trainer, tracker, is_fork = run.trainer, run.tracked.tracker, run.prepared.request.fork
    notice = run.tracked.frontend.notice
    changed = trainer.load_checkpoint(resumed.checkpoint)
    if is_fork:
        trainer.reset_best()
    if changed:
        tracker.set_tags({"mltrack.inexact_resume": "; ".join(changed)})
    state, total_steps = trainer.state, trainer.plan.total_steps
    tracker.resume_from(state.step, state.epoch)
    if not is_fork:
        run.checkpoints.settle()
    notice(f"resumed at step {state.step:,} (epoch {state.epoch + 1}) of {resumed.directory.path}")
    for line in trainer.resume_notices:
        notice(line)
    run.tracked.response.warnings += trainer.resume_notices
    if state.stopped_early:
        notice("it had stopped early and stays stopped")
    elif state.step >= total_steps:
        remedy = (
            f"step {state.step:,} of {total_steps:,} is reached already, so nothing is left to train; use larger"
            f" {_what_ends(run)}"
        )
        if is_fork:
            raise ConfigurationError(f"resume: {remedy}")
        notice(remedy)


def _what_ends(run: OpenRun) -> str:
    """The option that limits the run's length."""
    if run.prepared.request.max_steps is None:
        return "epochs or max_steps"
    return "epochs and max_steps" if run.trainer.plan.as_in_0_1 else "max_steps"
