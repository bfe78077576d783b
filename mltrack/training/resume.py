"""Continues from a checkpoint whose options, data or version may differ from the trainer's.

Invariant: if nothing has changed, the position, the schedule and the best are exactly those of the checkpoint. A
checkpoint of mltrack 0.1, which records less, keeps its order and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mltrack.checkpoints import CheckpointManager, CheckpointMetadata
from mltrack.checkpoints.state import load_model, load_optimizer
from mltrack.config import TrainingConfig
from mltrack.data.batches import TrainingBatches
from mltrack.errors import ConfigurationError
from mltrack.training.early_stopping import EarlyStopping
from mltrack.training.fingerprint import compare_fingerprints
from mltrack.training.schedule import Plan, apply_options, describe_change
from mltrack.training.training_state import TrainingState

if TYPE_CHECKING:
    from mltrack.training.trainer import AdvancedTrainer


class Metric(NamedTuple):
    """The metric that ranks checkpoints and decides early stopping."""

    name: str
    mode: str


def continue_from(trainer: AdvancedTrainer, checkpoint: Mapping[str, Any]) -> tuple[Plan, list[str]]:
    """Restore the weights, the optimizer, the state, the order, the schedule and the early stopping of a trainer from a
    checkpoint.

    Returns:
        The plan from here on, and a line for each thing that changes with the resume.
    """
    load_model(trainer.model, checkpoint["model_state_dict"])
    load_optimizer(trainer.optimizer, checkpoint["optimizer_state_dict"])
    trainer.scheduler.load_state_dict(checkpoint["scheduler_state_dict"])
    trainer.precision.load_state_dict(checkpoint["scaler_state_dict"] or {})
    extra, state, batches, scheduler = checkpoint["extra_state"], trainer.state, trainer.batches, trainer.scheduler
    state.load_state_dict(extra["training"])
    notices = restore_position(state, batches, extra, trainer.fingerprint)
    then = Plan(**extra["plan"]) if "plan" in extra else None
    plan = resumed_plan(trainer.config, state, batches, then)
    rate_then = float(scheduler.get_last_lr()[0])
    apply_options(trainer.optimizer, scheduler, trainer.config, plan)
    if line := describe_change(then, plan, state.step, (rate_then, float(scheduler.get_last_lr()[0]))):
        notices.append(line)
    trainer.early_stopping.load_state_dict(extra["early_stopping"])
    best = trainer.checkpoint_manager.get_best_checkpoint_info()
    notices += judge_by(trainer.metric, checkpoint, best, state, trainer.early_stopping)
    state.stopped_early = state.stopped_early and trainer.early_stopping.should_stop  # patience may have grown
    return plan, notices


def restore_position(
    state: TrainingState, batches: TrainingBatches, extra: Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> list[str]:
    """Continue the epoch with its remaining examples; on other records it begins anew.

    Args:
        state: loaded from `extra`.
        extra: the checkpoint's `extra_state`.
        fingerprint: of the training that continues.

    Returns:
        A line if the epoch begins anew.
    """
    then, order = extra["decisive"], extra.get("order")
    if order is None:
        order, state.examples = batches.state_of_0_1(then, state.epoch, extra["training"]["position"])
    same_records = order["records"] == len(batches.dataset) and then["training data"] == fingerprint["training data"]
    taken, state.examples = state.examples, state.examples if same_records else 0
    batches.load_state_dict(order if same_records else {"one_window": order["one_window"]}, state.epoch, state.examples)
    return [] if same_records or not taken else [f"epoch {state.epoch + 1} begins anew: the training data has changed"]


def resumed_plan(config: TrainingConfig, state: TrainingState, batches: TrainingBatches, then: Plan | None) -> Plan:
    """The plan from the position of `state`.

    Args:
        then: the checkpoint's plan; None: of mltrack 0.1.
    """
    end_of_epoch = state.step + batches.num_steps(state.epoch, state.examples)
    as_in_0_1 = then is None or then.as_in_0_1
    return Plan.of(config, batches.num_batches, step=end_of_epoch, whole_epochs=state.epoch + 1, as_in_0_1=as_in_0_1)


def judge_by(
    now: Metric,
    checkpoint: Mapping[str, Any],
    best: CheckpointMetadata | None,
    state: TrainingState,
    stopping: EarlyStopping,
) -> list[str]:
    """If the checkpoint's training was judged by another metric, forget its results and return a line that says so.

    Args:
        best: of the run's checkpoints, by the current metric.
    """
    recorded = checkpoint["extra_state"].get("metric")
    then = Metric(**recorded) if recorded is not None else _metric_of_0_1(checkpoint, state, now)
    if then == now:
        return []
    state.reset_best()
    stopping.reset()
    if best is not None and best.is_ranked:
        state.best_metric, state.best_epoch, state.best_step = best.metric_value, best.epoch, best.step
    return [
        f"the best is judged by {now.name} ({now.mode}) instead of {then.name} ({then.mode}); early stopping counts"
        " anew"
    ]


def _metric_of_0_1(checkpoint: Mapping[str, Any], state: TrainingState, now: Metric) -> Metric:
    name = checkpoint.get("metric_name", now.name)
    values = [entry[name] for entry in state.history if name in entry]
    extremes = {"min": min(values, default=None), "max": max(values, default=None)}
    modes = [mode for mode, value in extremes.items() if value is not None and value == state.best_metric]
    return Metric(name, modes[0] if len(modes) == 1 else now.mode)


def newest_checkpoint(manager: CheckpointManager, now: Mapping[str, Any], *, strict: bool) -> Mapping[str, Any]:
    """The newest checkpoint of a manager, compared with what decides the result now.

    Raises:
        ConfigurationError: there is none, or something changed and `strict` is on.
    """
    checkpoint = manager.load_latest_checkpoint()
    if checkpoint is None:
        raise ConfigurationError(
            f"cannot resume: {manager.checkpoint_dir} holds no complete checkpoint; leave resume out to start anew"
        )
    if not {"decisive", "training", "rng"} <= checkpoint["extra_state"].keys():
        raise ConfigurationError(
            f"cannot resume: {checkpoint['metadata'].path} is not a checkpoint of an AdvancedTrainer; load its parts"
            " yourself"
        )
    compare_fingerprints(checkpoint["extra_state"]["decisive"], now, strict=strict)
    return checkpoint


def resume_from(trainer: AdvancedTrainer, checkpoint: Mapping[str, Any]) -> None:
    """Make a trainer, its tracker and its checkpoints continue from a checkpoint of `newest_checkpoint`."""
    trainer.load_checkpoint(checkpoint)
    trainer.tracker.resume_from(trainer.state.step, trainer.state.epoch)
    trainer.checkpoint_manager.settle()
