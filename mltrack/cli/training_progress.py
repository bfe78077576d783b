"""How a training looks: a live line on a terminal, plain lines at a calm rate elsewhere.

Invariant: what is not a terminal gets no control characters; a step costs no more than a comparison of clocks; a
terminal or a pipe that was closed costs its lines and never the training."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mltrack.errors import printable
from mltrack.training import AdvancedTrainer, Callback, Plan, TrainingState

LIVE_INTERVAL_S, PLAIN_INTERVAL_S = 0.2, 15.0


class TrainingProgress(Callback):
    """Writes to stderr how a training goes."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._plan: Plan | None = None
        self._shown_at = 0.0
        self._rate = 0.0
        self._seconds_a_step = 0.0
        self._line = ""

    @property
    def _interval_s(self) -> float:
        return LIVE_INTERVAL_S if self._console.is_terminal else PLAIN_INTERVAL_S

    def notice(self, line: str) -> None:
        """One line that stays."""
        console = self._console if self._live is None else self._live.console
        with suppress(OSError):
            console.print(Text(printable(line)))

    def preparing(self, what: str, done: int, total: int) -> None:
        """Something long before the training."""
        self._show(f"{what}: {done:,} of {total:,}", finished=done >= total)

    def on_train_begin(self, trainer: AdvancedTrainer) -> None:
        """The loop begins."""
        self._plan = plan = trainer.plan
        self.notice(f"training: {plan.total_steps:,} optimizer steps, {plan.steps_per_epoch:,} an epoch")

    def on_step(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        """An optimizer step was taken."""
        rate = metrics["tokens_per_second"]
        self._rate = rate if not self._rate else 0.95 * self._rate + 0.05 * rate
        now = time.monotonic()
        if now - self._shown_at < self._interval_s:
            return
        self._show(self._step_line(trainer.state, metrics))

    def on_evaluation_batch(self, trainer: AdvancedTrainer, done: int, total: int) -> None:
        """An evaluation goes on."""
        if self._console.is_terminal and time.monotonic() - self._shown_at >= LIVE_INTERVAL_S:
            self._show(f"evaluating: batch {done + 1:,} of {total:,}")

    def on_evaluation(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        """An evaluation is done."""
        state = trainer.state
        shown = [(name, value) for name, value in metrics.items() if not name.startswith("eval_f1_")]
        figures = ", ".join(f"{name} {_short(value)}" for name, value in shown)
        star = " (best)" if state.best_step == state.step else ""
        self.notice(f"epoch {state.epoch + 1}, step {state.step:,}: {figures}{star}")

    def delivering(self, delivery: Mapping[str, Any]) -> None:
        """The end waits for MLflow."""
        what = delivery.get("uploading") or f"{delivery.get('sent', 0):,} points delivered"
        if time.monotonic() - self._shown_at >= self._interval_s:
            self._show(f"waiting for MLflow: {what}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            with suppress(OSError):
                self._live.update(Text(""))
                self._live.stop()
            self._live = None

    def _step_line(self, state: TrainingState, metrics: Mapping[str, float]) -> str:
        assert self._plan is not None
        left_s = (self._plan.total_steps - state.step) * (state.seconds / max(1, state.step))
        parts = [
            f"epoch {state.epoch + 1}",
            f"step {state.step:,}/{self._plan.total_steps:,}",
            f"loss {_short(metrics.get('train_loss', math.nan))}",
            f"lr {metrics['learning_rate']:.2e}",
            f"{self._rate:,.0f} tokens/s",
            f"ETA {_duration(left_s)}",
        ]
        if state.best_metric is not None:
            parts.append(f"best {_short(state.best_metric)}")
        return "  ".join(parts)

    def _show(self, line: str, *, finished: bool = False) -> None:
        now = time.monotonic()
        if not self._console.is_terminal:
            if (now - self._shown_at >= PLAIN_INTERVAL_S or finished) and line != self._line:
                self._shown_at, self._line = now, line
                self.notice(line)
            return
        if now - self._shown_at < LIVE_INTERVAL_S and not finished:
            return
        self._shown_at = now
        with suppress(OSError):
            if self._live is None:
                self._live = Live(console=self._console, transient=True, auto_refresh=False)
                self._live.start()
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)


def is_terminal() -> bool:
    """True where a person watches."""
    return sys.stderr.isatty()


def _short(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
