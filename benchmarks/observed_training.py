"""One training as `mltrack train` does it, watched from outside: when each step came, how large it was, and what its
parts took.

Invariant: the product has no hook for this and its command line is entered as a user enters it; what watches is put
around the trainer's parts when its module has been imported, and costs microseconds a step.

    found = run_mltrack(job)      # {"seconds", "steps", "real_tokens", "evaluated_tokens", "steady", "model"}
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from after_import import AfterImport
from training_job import Job, TokenCount, model_from, say

PROFILED = 12
"""Steps that the profiler sees."""


class Stopwatch:
    """Seconds spent in calls, since it was last read."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                self.add(time.perf_counter() - started)

        return timed

    def add(self, seconds: float) -> None:
        self._seconds += seconds

    def read(self) -> float:
        """Seconds, and from nothing again."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class Watch:
    """A listener of the trainer that times its parts.

    Attributes:
        steps: one entry an optimizer step: `seconds` without evaluation and saving, `tokens`, `targets`,
            `squared_lengths`, `padded`, and the seconds of its parts `gradient`, `optimizer`, `data`, `tracking`.
    """

    PARTS = ("gradient", "optimizer", "data", "tracking")

    def __init__(self, job: Job):
        self.job = job
        self.steps: list[dict[str, float]] = []
        self.between = {"evaluation": 0.0, "saving": 0.0}
        """Seconds of the whole training, for what is not a step."""
        self.seconds = 0.0
        self.profiled: list[dict[str, Any]] = []
        self._clocks = {name: Stopwatch() for name in (*self.PARTS, *self.between)}
        self._forward = Stopwatch()
        """Of the model in evaluation."""
        self._groups: deque[dict[str, float]] = deque()
        self._profiler: Any = None

    def attach(self, module: ModuleType) -> None:
        """Watch every trainer of this module of mltrack."""
        for name in self.job.patches:
            PATCHES[name](module)
        train = module.AdvancedTrainer.train

        def watched(trainer: Any) -> Any:
            self._begin(trainer)
            started = time.perf_counter()
            try:
                return train(trainer)
            finally:
                self._end(time.perf_counter() - started)

        module.AdvancedTrainer.train = watched  # type: ignore[attr-defined]

    def _begin(self, trainer: Any) -> None:
        self.trainer = trainer
        self.tokens = TokenCount(trainer.model, trainer.train_dataset.pad_token_id)
        self._time_evaluated(trainer.model)
        clocks, gradient = self._clocks, trainer.gradient
        gradient.accumulate = self._measuring(clocks["gradient"].around(gradient.accumulate))
        trainer.precision.step = clocks["optimizer"].around(trainer.precision.step)
        trainer.optimizer.zero_grad = clocks["optimizer"].around(trainer.optimizer.zero_grad)
        trainer._next_group = clocks["data"].around(trainer._next_group)
        trainer.tracker.log_metrics = clocks["tracking"].around(trainer.tracker.log_metrics)
        trainer._evaluate = clocks["evaluation"].around(trainer._evaluate)
        trainer.saving.save = clocks["saving"].around(trainer.saving.save)
        trainer.callbacks.append(self)

    def _end(self, seconds: float) -> None:
        """What comes later, such as the evaluation of the best weights, is no part of the training."""
        self.seconds = seconds
        self._end_profile(max(1, len(self.steps) - self.job.warm_up))  # an open profiler ends a process with a crash
        self.real_tokens, self.evaluated_tokens = self.tokens.trained, self.tokens.evaluated
        self.forward_s = self._forward.read()
        for name in self.between:
            self.between[name] += self._clocks[name].read()

    def _time_evaluated(self, model: Any) -> None:
        held = [0.0]

        def before(model: Any, *_: Any) -> None:
            held[0] = time.perf_counter()

        def after(model: Any, *_: Any) -> None:
            if not model.training:
                self._forward.add(time.perf_counter() - held[0])

        model.register_forward_pre_hook(before)
        model.register_forward_hook(after)

    def _measuring(self, gradient_of: Callable[..., Any]) -> Callable[..., Any]:
        lengths = self.trainer.train_dataset.lengths

        def of(group: Any, *given: Any) -> Any:
            if not self.steps and not self._groups:
                self.tokens.forget()
                self._forward.read()
            squared = sum(int((lengths[batch.records].astype("int64") ** 2).sum()) for batch in group)
            padded = sum(int(batch.tensors["input_ids"].numel()) for batch in group)
            size = {"tokens": sum(batch.tokens for batch in group), "targets": sum(batch.targets for batch in group)}
            self._groups.append({**size, "squared_lengths": squared, "padded": padded})
            return gradient_of(group, *given)

        return of

    # -- as a listener

    def on_train_begin(self, *_: Any) -> None:
        say("start")
        self._last = time.perf_counter()

    def on_step(self, trainer: Any, metrics: Any) -> None:
        state = trainer.state
        now = time.perf_counter()
        between = {name: self._clocks[name].read() for name in self.between}
        parts = {name: self._clocks[name].read() for name in self.PARTS}
        for name, seconds in between.items():
            self.between[name] += seconds
        self.steps.append({**self._groups.popleft(), "seconds": now - self._last - sum(between.values()), **parts})
        self._last = now
        if state.step == 1:
            say("first_step")
        if self.job.profile:
            self._profile(state.step)

    def __getattr__(self, name: str) -> Any:
        """The other methods of a callback do nothing."""
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *_: None

    def _profile(self, step: int) -> None:
        from torch import profiler

        if step == self.job.warm_up:
            kinds = [profiler.ProfilerActivity.CPU] + (
                [profiler.ProfilerActivity.CUDA] if self.job.device == "cuda" else []
            )
            self._profiler = profiler.profile(activities=kinds)
            self._profiler.start()
        elif step == self.job.warm_up + PROFILED:
            self._end_profile(PROFILED)

    def _end_profile(self, steps: int) -> None:
        if self._profiler is None:
            return
        self._profiler.stop()
        attribute = "self_device_time_total" if self.job.device == "cuda" else "self_cpu_time_total"
        spent = sorted(
            ((getattr(one, attribute), one.key, one.count) for one in self._profiler.key_averages()), reverse=True
        )
        total = sum(microseconds for microseconds, _, _ in spent)
        self.profiled = [
            {
                "operator": name,
                "ms_a_step": microseconds / 1000 / steps,
                "share": microseconds / total,
                "calls_a_step": count / steps,
            }
            for microseconds, name, count in spent[:15]
        ]
        self._profiler = None

    # -- what it saw

    def first_epoch_rate(self) -> float | None:
        """Real tokens/s of the first epoch's steps behind the warm-up, as `training_job.Pace` has it of the peers."""
        steps = self.steps[self.job.warm_up : self.trainer.plan.steps_per_epoch]
        return sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps) if steps else None

    def steady(self) -> dict[str, float]:
        """Sums and medians of the steps behind the warm-up."""
        steps = self.steps[self.job.warm_up :]
        if not steps:
            return {}
        sums = {name: sum(step[name] for step in steps) for name in steps[0]}
        rest = sums["seconds"] - sums["gradient"] - sums["optimizer"]
        return {
            **{f"{name}_sum": value for name, value in sums.items()},
            "steps": len(steps),
            "step_ms": 1000 * sums["seconds"] / len(steps),
            "median_step_ms": 1000 * statistics.median(step["seconds"] for step in steps),
            "tokens_per_second": sums["tokens"] / sums["seconds"],
            "padding_share": 1 - sums["tokens"] / sums["padded"],
            "rows": statistics.median(step["padded"] for step in steps),
            "rest_share": rest / sums["seconds"],
            "data_share": sums["data"] / sums["seconds"],
            "tracking_share": sums["tracking"] / sums["seconds"],
            "saving_s": self.between["saving"],
            "evaluation_s": self.between["evaluation"],
            "evaluation_forward_s": self.forward_s,
        }


def _whole_mask(module: Any) -> None:
    """A mask also where nothing is padded."""
    to = module.MicroBatch.to

    def with_mask(batch: Any, device: Any) -> dict[str, Any]:
        return {
            **to(batch, device),
            **(
                {"attention_mask": batch.tensors["attention_mask"].to(device)}
                if "attention_mask" in batch.tensors
                else {}
            ),
        }

    module.MicroBatch.to = with_mask


def _unsorted_evaluation(_: Any) -> None:
    """Evaluation batches as the records come."""
    holder: Any = sys.modules["mltrack.evaluation.evaluate"]

    def in_turn(lengths: Any, *_: Any, batch_size: int, **__: Any) -> list[list[int]]:
        return [
            list(range(start, min(start + batch_size, len(lengths)))) for start in range(0, len(lengths), batch_size)
        ]

    holder.Sampler = in_turn


def _padding(multiple: int, module: Any) -> None:
    """Another multiple that a batch's length is padded to."""
    holder: Any = sys.modules["mltrack.data.dataset"]
    holder.collate = partial(holder.collate, pad_to_multiple_of=multiple)


PATCHES: dict[str, Callable[[Any], None]] = {
    "whole_mask": _whole_mask,
    "unsorted_evaluation": _unsorted_evaluation,
    "padding_1": partial(_padding, 1),
    "padding_32": partial(_padding, 32),
    "padding_64": partial(_padding, 64),
}
"""What has no option, because nobody should have to choose it."""


def words_of(job: Job) -> list[str]:
    """The job as a command line of mltrack."""
    options = {
        "task": job.task,
        "dataset_path": job.train,
        "validation_path": job.valid,
        "model_name": job.weights,
        "batch_size": job.batch_size,
        "gradient_accumulation_steps": job.accumulation,
        "max_length": job.max_length,
        "epochs": job.epochs,
        "learning_rate": job.learning_rate,
        "seed": job.seed,
        "device": job.device,
        "use_mixed_precision": job.precision,
        "output_dir": job.folder,
        "tracking_uri": job.uri,
        "experiment_name": "mltrack",
        "resume": "never",
        **({"max_steps": job.max_steps} if job.max_steps > 0 else {}),
        **job.options,
    }
    return ["train", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def run_mltrack(job: Job) -> dict[str, Any]:
    """Train, and give what was seen; the model is the one of the last step, from its checkpoint."""
    watch = Watch(job)
    AfterImport("mltrack.training.trainer", watch.attach)
    from mltrack.cli import run

    code = run(words_of(job))
    if code:
        raise SystemExit(f"mltrack train ended with {code}")
    state = watch.trainer.state
    assert state.tokens == watch.real_tokens, (
        f"mltrack counted {state.tokens} tokens, its model got {watch.real_tokens}"
    )
    last = max(Path(job.folder).glob("*/checkpoints/step-*"))
    return {
        "seconds": watch.seconds,
        "steps": state.step,
        "real_tokens": watch.real_tokens,
        "evaluated_tokens": watch.evaluated_tokens,
        **watch.tokens.begun_with,
        "steady": watch.steady(),
        "steady_tokens_per_second": watch.first_epoch_rate(),
        "profile": watch.profiled,
        "precision": watch.trainer.precision.mode,
        "model": partial(model_from, last, job.task),  # loaded by who wants it: it does not belong to the peak
    }
