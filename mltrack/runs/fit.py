"""The third stage of a training: the loop, then the model and its registration, then the reports on it.

Invariant: once `_register` has returned the training has succeeded, whatever happens to the process, the disk or the
memory afterwards; each later report, figure or export fails alone and leaves a line in the response's `warnings`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mltrack import registry
from mltrack.checkpoints import CheckpointMetadata
from mltrack.checkpoints.state import load_model
from mltrack.errors import Interrupted, TrainingError, alone, described
from mltrack.hardware import give_back_freed_memory
from mltrack.models import save_pretrained
from mltrack.runs.open import OpenRun
from mltrack.runs.outcome import outcome_parts


def fit(run: OpenRun) -> None:
    """Steps 7 and 8.

    Raises:
        TrainingError, CheckpointError, TrackingError: the training has failed.
        Interrupted: a signal requested a stop; a checkpoint is written.
    """
    run.tracked.frontend.begin("train")
    run.trainer.train()
    give_back_freed_memory()
    run.tracked.frontend.begin("save_results")
    info = _save_best(run)
    _register(run, info)
    _describe(run, info)


def _save_best(run: OpenRun) -> CheckpointMetadata:
    """Put the best weights into the model, and the model into the run directory.

    Returns:
        The checkpoint of those weights.

    Raises:
        TrainingError: no complete checkpoint is left.
    """
    trainer, checkpoints, tracked = run.trainer, run.checkpoints, run.tracked
    best = checkpoints.load_best_checkpoint(weights_only=True)
    best = best or checkpoints.load_latest_checkpoint(weights_only=True)
    if best is None:
        raise TrainingError(f"{checkpoints.checkpoint_dir}: no complete checkpoint is left")
    info: CheckpointMetadata = best["metadata"]
    best_step = trainer.state.best_step
    if best_step is not None and info.step != best_step:  # it was not written, or was damaged later
        tracked.frontend.notice(
            f"model: the weights are those of step {info.step}, the best available checkpoint; the best evaluation was"
            f" at step {best_step}"
        )
    load_model(trainer.model, best["model_state_dict"])
    save_pretrained(trainer.model, run.prepared.source.tokenizer, tracked.directory.model)
    return info


def _register(run: OpenRun, info: CheckpointMetadata) -> None:
    """Record the model to be registered, if requested, and that the training has finished."""
    prepared, tracker, response = run.prepared, run.tracked.tracker, run.tracked.response
    request, train_dataset, eval_dataset = prepared.request, prepared.train_dataset, prepared.eval_dataset
    if tracker.lost_records:  # the disk was full; the kept checkpoints may have been in a lost record
        run.checkpoints.settle()
    tracker.repeat_checkpoints()
    name = request.registry_name
    if request.register == "best":
        tracker.log_model(
            step=info.step,
            path=str(info.path.relative_to(run.tracked.directory.path)),
            registered_name=name,
            promote=request.promote,
            promote_margin=request.promote_margin,
            metrics=info.metrics,
            tags=prepared.origin_tags
            | registry.version_tags(
                request, train_dataset, eval_dataset, info, mode=run.checkpoints.mode, parent=prepared.parent
            ),
            description=registry.model_card(
                request,
                name,
                train_dataset,
                eval_dataset,
                info,
                response.baselines,
                parent=prepared.parent,
                base=prepared.source.origin,
            ),
        )
    tracker.settle("FINISHED", 0)
    response.success, response.status, response.exit_code = True, "FINISHED", 0


def _describe(run: OpenRun, info: CheckpointMetadata) -> None:
    """Write reports, figures, samples and exports, as far as possible; a signal leaves out the remaining reports."""
    tracker, warnings = run.tracked.tracker, run.tracked.response.warnings
    check_stop = run.tracked.frontend.check_stop
    parts = outcome_parts(run.trainer, run.tracked.directory.path, step=info.step, check=lambda *_: check_stop())
    for number, (what, write) in enumerate(parts):
        try:
            check_stop()
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
