"""What a finished training leaves: the model and its registration, and then everything that describes it.

Invariant: once `register` has returned the training has succeeded, whatever becomes of the process, the disk or the
memory afterwards; each report, picture and export behind it fails alone and leaves a line in the response's `warnings`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mltrack import registry
from mltrack.checkpoints import CheckpointMetadata
from mltrack.checkpoints.state import load_model
from mltrack.errors import Interrupted, TrainingError, alone, described
from mltrack.evaluation.outcome import outcome_parts
from mltrack.models import save_pretrained
from mltrack.runs.training_run import TrainingRun

StopRequested = Callable[[], int | None]

AFTER_SIGNAL_S = 2.0
"""A second signal, or SIGKILL, follows soon: the relay delivers the rest without this process."""


def save_best(run: TrainingRun, notice: Callable[[str], None]) -> CheckpointMetadata:
    """Put the best weights into the model, and the model into the run directory; returns the checkpoint that they are
    of.

    Raises:
        TrainingError: no complete checkpoint is left.
    """
    assert run.checkpoints is not None
    assert run.trainer is not None
    assert run.source is not None
    assert run.directory is not None
    best = run.checkpoints.load_best_checkpoint(weights_only=True) or run.checkpoints.load_latest_checkpoint(
        weights_only=True
    )
    if best is None:
        raise TrainingError(f"{run.checkpoints.checkpoint_dir}: no complete checkpoint is left")
    info: CheckpointMetadata = best["metadata"]
    best_step = run.trainer.state.best_step
    if best_step is not None and info.step != best_step:  # it could not be written, or was damaged since
        notice(
            f"model: the weights are those of step {info.step}, the best checkpoint there is; the best evaluation was"
            f" at step {best_step}"
        )
    load_model(run.trainer.model, best["model_state_dict"])
    save_pretrained(run.trainer.model, run.source.tokenizer, run.directory.model)
    return info


def register(run: TrainingRun, info: CheckpointMetadata) -> None:
    """Record the model to be registered, where it is wanted, and that the training has finished."""
    directory, trainer, tracker, checkpoints, eval_dataset = (
        run.directory,
        run.trainer,
        run.tracker,
        run.checkpoints,
        run.eval_dataset,
    )
    assert directory is not None
    assert trainer is not None
    assert tracker is not None
    assert checkpoints is not None
    assert eval_dataset is not None
    if tracker.lost_records:  # of a disk that was full; what stays may have been among them
        checkpoints.settle()
    tracker.repeat_checkpoints()
    name = run.request.registered_model_name or f"mltrack-{run.request.task}"
    if run.request.register == "best":
        tracker.log_model(
            step=info.step,
            path=str(info.path.relative_to(directory.path)),
            registered_name=name,
            promote=run.request.promote,
            promote_margin=run.request.promote_margin,
            metrics=info.metrics,
            tags=registry.version_tags(
                run.request, trainer.train_dataset, eval_dataset, info, mode=checkpoints.mode, parent=run.parent
            ),
            description=registry.model_card(
                run.request, name, trainer.train_dataset, eval_dataset, info, run.response.baselines, parent=run.parent
            ),
        )
    tracker.settle("FINISHED", 0)
    run.response.success = True
    run.response.status, run.response.exit_code = "FINISHED", 0


def describe(run: TrainingRun, info: CheckpointMetadata, stop_requested: StopRequested) -> None:
    """Write reports, pictures, samples and exports, as far as they can be written; a signal leaves out the rest of the
    reports.
    """
    tracker, warnings = run.tracker, run.response.warnings
    assert tracker is not None
    assert run.trainer is not None
    assert run.directory is not None

    def check(*_: int) -> None:
        signal_number = stop_requested()
        if signal_number is not None:
            raise Interrupted(signal_number)

    parts = outcome_parts(run.trainer, run.directory.path, step=info.step, check=check)
    for number, (what, write) in enumerate(parts):
        try:
            check()
            for path, folder in write():
                tracker.log_artifact(path, folder)
        except (Interrupted, KeyboardInterrupt) as error:
            left_out = ", ".join(name for name, _ in parts[number:])
            warnings.append(f"the training had finished when it was {described(error)}; left out: {left_out}")
            break
        except BaseException as error:
            warnings.append(f"{what} could not be made: {described(error)}")
    exports: dict[str, Callable[..., Any]] = {
        "metrics.json": tracker.export_to_json,
        "metrics.csv": tracker.export_to_csv,
    }
    for name, write in exports.items():
        with alone(warnings, f"{name} could not be written"):
            tracker.log_artifact(write(name))


def delivered(
    run: TrainingRun,
    *,
    stopped: bool,
    stop_requested: StopRequested,
    on_progress: Callable[[dict[str, Any]], None] | None,
) -> str:
    """Close the tracker and wait for MLflow to have everything; a signal ends the wait and nothing else.

    Args:
        stopped: a signal has arrived before; the wait is short and not ended by it.

    Returns:
        "complete" or "pending".
    """
    assert run.tracker is not None

    def report(delivery: dict[str, Any]) -> None:
        signal_number = None if stopped else stop_requested()
        if signal_number is not None:
            raise Interrupted(signal_number)
        if on_progress is not None:
            on_progress(delivery)

    wait_s = min(run.request.exit_wait, AFTER_SIGNAL_S) if stopped else run.request.exit_wait
    try:
        found = run.tracker.close(exit_wait_s=wait_s, on_progress=report)
    except (Interrupted, KeyboardInterrupt) as error:
        run.response.warnings.append(
            f"the training had ended when it was {described(error)}; MLflow gets the rest in the background"
        )
        return "pending"
    return "pending" if run.request.offline else found
