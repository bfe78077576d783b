"""The training loop and nothing else.

It takes a tracker, a checkpoint manager and a parallel strategy, and knows neither MLflow nor ranks nor file locations.

Invariants: the gradient of an optimizer step is that of its summed losses over its number of targets, however it is
split into micro-batches; whatever is due after a step is done exactly once, even if the training was stopped in
between; a value that is not finite never reaches the weights.

    trainer = AdvancedTrainer(model=model, train_dataset=train_ds, eval_dataset=eval_ds, output_dir="out", num_epochs=3)
    results = trainer.train()
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mltrack.checkpoints import CheckpointManager
from mltrack.checkpoints.state import capture_rng, restore_rng
from mltrack.config import TrainingConfig
from mltrack.data import CodeDataset, TrainingDataset
from mltrack.data.batches import MicroBatch, TrainingBatches, check_budget
from mltrack.data.own_dataset import completed
from mltrack.errors import DatasetError, Interrupted
from mltrack.evaluation.evaluate import Metrics, OnBatch, check_metric_name, evaluate
from mltrack.evaluation.metrics import metric_mode, without_classes
from mltrack.hardware import choose_device, choose_precision
from mltrack.hardware.precision import Precision, steps_on_condition
from mltrack.shortage import shortages_named
from mltrack.tracking import TrainingMetricsTracker
from mltrack.training.callback import Callback
from mltrack.training.defaults import configure, local_checkpoints, local_tracker
from mltrack.training.early_stopping import EarlyStopping
from mltrack.training.evaluating import evaluate_and_judge
from mltrack.training.fingerprint import compare_fingerprints, fingerprint_of
from mltrack.training.gradient import GradientAccumulator, Step
from mltrack.training.non_finite import refuse_or_skip
from mltrack.training.parallel import Parallel, choose_parallel
from mltrack.training.preparation import prepared
from mltrack.training.resume import Metric, continue_from, newest_checkpoint, resume_from
from mltrack.training.saving import Saving, whole_state
from mltrack.training.schedule import Every, Plan, adamw, linear_warmup_decay
from mltrack.training.speed import training_context, uses_cls_only
from mltrack.training.training_state import TrainingState


class AdvancedTrainer:
    """Trains a model on a data set.

    Args:
        model: gives logits for input_ids and attention_mask; it is moved to the device and trained in place.
        train_dataset: a `CodeDataset`, or an object that implements `TrainingDataset`; its task decides the loss.
        eval_dataset: None: no evaluation, no best checkpoint, no early stopping.
        config: all options; `options` are its fields by name, and take precedence.
        tracker: records the metrics; default: a local one in `output_dir`.
        checkpoint_manager: keeps the checkpoints; default: a local one in `output_dir`.
        parallel: how a micro-batch is computed; default: as `config.parallel` says.
        output_dir: folder of the default tracker and checkpoint manager.
        resume: continue from the newest checkpoint there, or of `checkpoint_manager`; a given tracker must have been
            opened with `resume=True`.
        callbacks: follow the training; see `Callback`.
        metrics: of an evaluation, by name: `function(predictions, labels)` returns a number; see `evaluate`. Logged as
            `eval_<name>`, which may be `metric_name`.
        stop_requested: called between micro-batches and evaluation batches; a signal number ends the training with a
            checkpoint.

    Raises:
        ConfigurationError: an invalid option, a missing device, a data set that lacks something, or nothing to resume.
    """

    def __init__(
        self,
        model: nn.Module,
        train_dataset: TrainingDataset,
        eval_dataset: TrainingDataset | None = None,
        *,
        config: TrainingConfig | None = None,
        tracker: TrainingMetricsTracker | None = None,
        checkpoint_manager: CheckpointManager | None = None,
        parallel: Parallel | None = None,
        output_dir: str | Path | None = None,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
        metrics: Metrics | None = None,
        stop_requested: Callable[[], int | None] = lambda: None,
        **options: Any,
    ):
        self.config, training = configure(config, options), completed(train_dataset)
        evaluation = None if eval_dataset is None else completed(eval_dataset)
        self.device = choose_device(self.config.device)
        self.precision = Precision(choose_precision(self.config.precision, self.device), self.device)
        objective = training.task.objective(self.config, training)
        self.parallel = parallel or choose_parallel(
            self.config.parallel, self.device, objective, compiled=self.config.compile
        )
        self.model = prepared(model, self.config, self.device)
        self.train_dataset, self.eval_dataset = training, evaluation
        on_gpu, rank, world = self.device.type == "cuda", self.parallel.rank, self.parallel.world
        self.batches = TrainingBatches(training, self.config, rank=rank, world=world, pin=on_gpu)
        if not len(training):
            raise DatasetError("the training set is empty; at least one record is needed", path=training.source)
        replicated = self.parallel.replicates
        self.cls_only = uses_cls_only(self.model, self.config, replicated=replicated)
        how: dict[str, Any] = {"world": world, "replicated": replicated, "cls_only": self.cls_only}
        self.fingerprint = fingerprint_of(self.config, training, self.model, self.device, self.precision.mode, **how)
        """What decides the bits of the result besides weights, data order and position."""
        self.plan = Plan.of(self.config, self.batches.num_batches)
        self.optimizer = adamw(self.model, self.config)
        self.scheduler = linear_warmup_decay(self.optimizer, self.plan)
        if evaluation is not None:
            check_metric_name(evaluation, self.config.metric_name, metrics)
            check_budget(evaluation, self.config)
        self.metric = Metric(self.config.metric_name, self.config.metric_mode or metric_mode(self.config.metric_name))
        self.early_stopping = EarlyStopping(
            self.config.early_stopping_patience, self.config.early_stopping_min_delta, self.metric.mode
        )
        self.eval_every, self.save_every = Every(self.config.eval_every), Every(self.config.save_every)
        self.state = TrainingState()
        local = (output_dir, self.config, self.metric.mode, training.tokenizer)
        checkpoint = None
        if resume:  # refused before anything is written
            checkpoint_manager = checkpoint_manager or local_checkpoints(*local, resume=True)
            checkpoint = newest_checkpoint(checkpoint_manager, self.fingerprint, strict=self.config.strict_resume)
        self.tracker = tracker or local_tracker(output_dir, resume=resume)
        self.checkpoint_manager = checkpoint_manager or local_checkpoints(*local)
        on_disk_full = self.config.on_disk_full
        self.saving = Saving(
            self.checkpoint_manager,
            self.tracker,
            partial(whole_state, self),
            metric_name=self.metric.name,
            on_disk_full=on_disk_full,
        )
        self.callbacks, self.metrics = list(callbacks), dict(metrics or {})
        self._stop_asked = False
        self._owns_tracker = tracker is None
        self._stop_requested = stop_requested
        self.gradient = GradientAccumulator(
            self.model,
            self.optimizer,
            self.parallel,
            self.precision,
            max_grad_norm=self.config.max_grad_norm,
            check_stop=self.check_stop,
            location=training.location,
            on_halved=self._remember_micro_batch_size,
        )
        self.reads_late = on_gpu and steps_on_condition(self.optimizer)
        """A step's loss is read while the next gradient is computed, so that a GPU never waits for the host."""
        self._in_flight: Step | None = None
        self._rng: dict[str, Any] | None = None
        self.resume_notices: list[str] = []  # what changed with the resume, one line each
        self._data_wait_ms = 0.0
        self._last_settled = time.perf_counter()
        if checkpoint is not None:
            resume_from(self, checkpoint)

    def train(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            best_metric, best_epoch (0-based), best_step, epochs_run, steps_run, training_time (seconds in the loop),
            tokens_per_second, stopped_early, history (one entry an evaluation).

        Raises:
            NonFiniteLossError: a loss or gradient is NaN or infinite; the weights are those of the step before.
            Interrupted: `stop_requested` gave a signal; a checkpoint is written.
            CheckpointError: a checkpoint could not be written. TrainingError: the machine ran out of memory or the
                like.
        """
        self._begin()
        try:
            for callback in self.callbacks:
                callback.on_train_begin(self)
            with (
                shortages_named(lambda: f"step {self.state.step + 1}"),
                training_context(self.model, self.config, self.device, cls_only=self.cls_only),
            ):
                while True:
                    self._after_step()
                    if self._is_over():
                        break
                    self._take_step(self._next_group())
            self.saving.finish()
            for callback in self.callbacks:
                callback.on_train_end(self)
        except Interrupted:
            self._save_where_it_stands()
            raise
        finally:
            self._groups.close()
            if self._owns_tracker:
                self.tracker.close()
        return self.results()

    def results(self) -> dict[str, Any]:
        """The result of `train`, so far."""
        return self.state.results()

    def load_checkpoint(self, checkpoint: Mapping[str, Any]) -> list[str]:
        """Continue from a checkpoint when `train` is called.

        Returns:
            The changes since then that affect the result; empty with `strict_resume`.

        Raises:
            ConfigurationError: there are such changes and `strict_resume` is on.
            CheckpointError: it is of another model or optimizer.
        """
        changed = compare_fingerprints(
            checkpoint["extra_state"]["decisive"], self.fingerprint, strict=self.config.strict_resume
        )
        self.plan, self.resume_notices = continue_from(self, checkpoint)
        self.gradient.micro_batch_size = self.state.micro_batch_size
        self._rng = checkpoint["extra_state"]["rng"]
        return changed

    def stop(self) -> None:
        """End the training after the last step, with a checkpoint, as early stopping does. For callbacks."""
        self._stop_asked = True

    def reset_best(self) -> None:
        """Forget earlier evaluations: a fork's best is among its own checkpoints, not its parent's."""
        self.state.reset_best()
        self.early_stopping.reset()

    # -- the steps of the loop

    def _begin(self) -> None:
        """Seed everything, or restore every random state from the checkpoint."""
        if self._rng is None:
            random.seed(self.config.seed)
            np.random.seed(self.config.seed % 2**32)
            torch.manual_seed(self.config.seed)
        else:
            restore_rng(self._rng)
            self._rng = None
        self.model.train()
        self._groups = self._groups_from_here()
        self._last_settled = time.perf_counter()

    def _next_group(self) -> list[MicroBatch]:
        """The micro-batches of the next step; records the time spent waiting for them."""
        started = time.perf_counter()
        group = next(self._groups)
        self._data_wait_ms = 1000 * (time.perf_counter() - started)
        return group

    def _take_step(self, group: Sequence[MicroBatch]) -> None:
        """One optimizer step with the group's gradient, checked and clipped."""
        self._rng = capture_rng()  # a step that is interrupted is taken again from here
        gradient = self.gradient.accumulate(group, self._rng)
        self._finish_step()
        if self._stop_asked:  # by a callback after the previous step: this one is not taken
            self.optimizer.zero_grad(set_to_none=True)
            return
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self.precision.step(self.optimizer, gradient.not_finite)
        self.optimizer.zero_grad(set_to_none=True)
        self._rng = None
        self._in_flight = Step(gradient, learning_rate, self._data_wait_ms)
        if not self.reads_late or self._something_is_due(gradient.examples):
            self._finish_step()

    def _finish_step(self) -> None:
        """Read the outcome of the last step: count and log it, or refuse it."""
        step, self._in_flight = self._in_flight, None
        if step is None:
            return
        gradient, state = step.gradient, self.state
        *losses, grad_norm = gradient.measured.wait()
        total = math.fsum(losses)
        now = time.perf_counter()
        seconds, self._last_settled = now - self._last_settled, now
        metrics: dict[str, float] = {
            "learning_rate": step.learning_rate,
            "tokens_per_second": gradient.tokens / seconds,
            "system/data_wait_ms": step.data_wait_ms,
        }
        if math.isfinite(total) and math.isfinite(grad_norm):
            self.scheduler.step()
            state.count_step(total, gradient.targets, gradient.examples, gradient.tokens, seconds)
            metrics = {"train_loss": total / gradient.targets, "grad_norm": grad_norm, **metrics}
        else:
            refuse_or_skip(self, gradient, losses, grad_norm)
            state.count_skipped(gradient.examples, gradient.tokens, seconds)
            metrics["skipped_steps"] = state.skipped_steps
        self.tracker.log_metrics(metrics, step=state.step, epoch=state.epoch)
        for callback in self.callbacks:
            callback.on_step(self, metrics)

    def _after_step(self) -> None:
        """Do what is due after the last step, unless already done: evaluate, end the epoch, save."""
        state = self.state
        if state.step == state.closed_step:
            return
        epoch_over = state.examples == len(self.train_dataset)
        last = state.step >= self.plan.total_steps
        metrics: dict[str, float] = {}
        best_before = state.best_step
        if self.eval_dataset is not None and (epoch_over or last or self.eval_every.due(state.step, epoch_over)):
            metrics = self._evaluate(self.eval_dataset)
        taken_in = state.epoch
        if epoch_over:
            of_epoch = {**state.epoch_aggregates(), **without_classes(metrics, self.metric.name)}
            self.tracker.log_epoch_metrics(of_epoch, epoch=state.epoch)
            for callback in self.callbacks:
                callback.on_epoch(self, of_epoch)
            state.next_epoch()
            gc.collect()  # while nothing is waiting for the next step
            self._groups = self._groups_from_here()
        state.closed_step = state.step
        state.stopped_early = (self.early_stopping.should_stop or self._stop_asked) and not last
        improved = state.best_step != best_before
        must_stay = last or improved or state.stopped_early
        if must_stay or self.save_every.due(state.step, epoch_over):
            seconds = self.saving.save(taken_in, metrics, required=must_stay)
            if seconds is not None:
                self._last_settled += seconds
                for callback in self.callbacks:
                    callback.on_save(self)

    def evaluated(self, dataset: TrainingDataset, on_batch: OnBatch | None = None) -> tuple[dict[str, float], Any]:
        """`mltrack.evaluation.evaluate` of the current model with this training's device, precision and limits."""
        return evaluate(
            self.model,
            completed(dataset),
            batch_size=self.config.effective_eval_batch_size,
            device=self.device,
            precision=self.precision,
            max_batch_tokens=self.config.max_batch_tokens,
            metrics=self.metrics,
            on_batch=on_batch,
        )

    def _evaluate(self, dataset: CodeDataset) -> dict[str, float]:
        """Metrics under their `eval_` names, logged and judged."""
        metrics, seconds = evaluate_and_judge(self, dataset)
        self._last_settled += seconds
        return metrics

    # -- what the steps are made of

    def _is_over(self) -> bool:
        done = self.state.step >= self.plan.total_steps
        self.state.stopped_early = self.state.stopped_early or (self._stop_asked and not done)
        return done or self.state.stopped_early

    def _groups_from_here(self) -> Generator[list[MicroBatch], None, None]:
        return self.batches.groups(self.state.epoch, self.state.examples)

    def check_stop(self) -> None:
        """Raise Interrupted if a stop was requested."""
        if (signal_number := self._stop_requested()) is not None:
            raise Interrupted(signal_number)

    def _something_is_due(self, examples: int) -> bool:
        """True if an evaluation, an epoch's end or a save follows the step in flight, which has this many examples."""
        step, epoch_over = self.state.step + 1, self.state.examples + examples == len(self.train_dataset)
        return (
            epoch_over
            or step >= self.plan.total_steps
            or self.eval_every.due(step, epoch_over)
            or self.save_every.due(step, epoch_over)
        )

    def _remember_micro_batch_size(self, size: int) -> None:
        self.state.micro_batch_size = size
        self.tracker.set_tags({"mltrack.micro_batch_size": size})

    def random_state(self) -> dict[str, Any]:
        """The state of all generators before the next step."""
        return self._rng or capture_rng()

    def _save_where_it_stands(self) -> None:
        """A checkpoint of the last whole step; the micro-batches after it are computed again."""
        self._finish_step()
        self.optimizer.zero_grad(set_to_none=True)
        self.saving.save_where_it_stands(self.state.epoch, self.state.step)
