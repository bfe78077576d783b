"""An evaluation within a training, logged and judged."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mltrack.data import CodeDataset
from mltrack.evaluation.metrics import without_many_classes
from mltrack.journal.records import LOSS_PREFIX

if TYPE_CHECKING:
    from mltrack.training.trainer import AdvancedTrainer


def evaluate_and_judge(trainer: AdvancedTrainer, dataset: CodeDataset) -> tuple[dict[str, float], float]:
    """(metrics under their `eval_` names, seconds taken); updates the best and early stopping."""

    def on_batch(done: int, total: int) -> None:
        trainer.check_stop()
        for callback in trainer.callbacks:
            callback.on_evaluation_batch(trainer, done, total)

    started, state, metric = time.perf_counter(), trainer.state, trainer.metric
    own = [f"eval_{name}" for name in trainer.metrics]
    values, _ = trainer.evaluated(dataset, on_batch)
    metrics = without_many_classes({f"eval_{name}": value for name, value in values.items()}, metric.name, *own)
    seconds = time.perf_counter() - started
    train_loss = state.epoch_aggregates().get("train_loss")
    losses = {"train_loss": train_loss, "eval_loss": metrics.get("eval_loss")}
    curves = {f"{LOSS_PREFIX}{name}": loss for name, loss in losses.items() if loss is not None}
    logged = {**metrics, **curves, "system/eval_seconds": seconds}
    trainer.tracker.log_metrics(logged, step=state.step, epoch=state.epoch)
    state.offer_best(metrics[metric.name], metric.mode)
    trainer.early_stopping.update(metrics[metric.name])
    state.history.append({"epoch": state.epoch, "step": state.step, "train_loss": train_loss, **metrics})
    for callback in trainer.callbacks:
        callback.on_evaluation(trainer, metrics)
    return metrics, seconds
