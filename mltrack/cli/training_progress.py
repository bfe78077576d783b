"""How a training looks: a live view of a few lines on a terminal, plain lines at a calm rate elsewhere.

Invariant: what is not a terminal gets no control characters; a step costs no more than a comparison of clocks; a
terminal or a pipe that was closed costs its lines and never the training. rich is imported after the first step, when
nothing waits for it.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mltrack.cli.chart import can_draw_blocks, sparkline
from mltrack.errors import printable
from mltrack.training import AdvancedTrainer, Callback, Plan, TrainingState

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

LIVE_INTERVAL_S, PLAIN_INTERVAL_S = 0.2, 15.0
DELIVERY_INTERVAL_S = 2.0
LOSSES_SHOWN = 512
"""Latest steps that the sparkline is drawn from."""
NARROW = 70
"""Columns below which the live view leaves out what is not vital."""


class TrainingProgress(Callback):
    """Writes to stderr how a training goes."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._live: Live | None = None
        self._plan: Plan | None = None
        self._shown_at = 0.0
        self._line = ""
        self._rate = 0.0
        self._losses: deque[float] = deque(maxlen=LOSSES_SHOWN)
        self._step: Mapping[str, float] = {}
        """Metrics of the step that is shown."""
        self._warning = self._evaluating = ""
        self._delivery, self._delivery_read_at = "", 0.0

    def notice(self, line: str) -> None:
        """One line that stays."""
        with suppress(OSError):
            if self._live is not None:
                from rich.text import Text

                self._live.console.print(Text(printable(line)))
            else:
                self._erase()
                print(printable(line), file=sys.stderr, flush=True)

    def warn(self, line: str) -> None:
        """One line that stays, and is the last line of the live view."""
        self._warning = printable(line)
        self.notice(line)

    def preparing(self, what: str, done: int, total: int) -> None:
        """Something long before the training."""
        self._show(f"{what}: {done:,} of {total:,}", finished=done >= total)

    def on_train_begin(self, trainer: AdvancedTrainer) -> None:
        self._plan = plan = trainer.plan
        self.notice(f"training: {plan.total_steps:,} optimizer steps, {plan.steps_per_epoch:,} an epoch")

    def on_step(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        rate = metrics["tokens_per_second"]
        self._rate = rate if not self._rate else 0.95 * self._rate + 0.05 * rate
        self._losses.append(metrics.get("train_loss", math.nan))
        if time.monotonic() - self._shown_at < (LIVE_INTERVAL_S if self.is_terminal else PLAIN_INTERVAL_S):
            return
        if self.is_terminal:
            self._step = metrics
            self._show_live(trainer)
        else:
            self._show(self._step_line(trainer.state, metrics))

    def on_evaluation_batch(self, trainer: AdvancedTrainer, done: int, total: int) -> None:
        self._evaluating = f"evaluating: batch {done + 1:,} of {total:,}"
        if self._live is None and self.is_terminal:
            self._show(self._evaluating)
        elif self.is_terminal and time.monotonic() - self._shown_at >= LIVE_INTERVAL_S:
            self._show_live(trainer)

    def on_evaluation(self, trainer: AdvancedTrainer, metrics: Mapping[str, float]) -> None:
        state, self._evaluating = trainer.state, ""
        shown = [(name, value) for name, value in metrics.items() if not name.startswith("eval_f1_")]
        figures = ", ".join(f"{name} {_short(value)}" for name, value in shown)
        star = " (best)" if state.best_step == state.step else ""
        self.notice(f"epoch {state.epoch + 1}, step {state.step:,}: {figures}{star}")

    def on_train_end(self, trainer: AdvancedTrainer) -> None:
        self.close()

    def delivering(self, delivery: Mapping[str, Any]) -> None:
        """The end waits for MLflow."""
        self._show(f"waiting for MLflow: {delivery.get('uploading') or _points(delivery)}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        with suppress(OSError):
            if self._live is not None:
                self._live.stop()
                self._live = None
            self._erase()

    def _step_line(self, state: TrainingState, metrics: Mapping[str, float]) -> str:
        assert self._plan is not None
        parts = [
            f"epoch {state.epoch + 1}",
            f"step {state.step:,}/{self._plan.total_steps:,}",
            f"loss {_short(metrics.get('train_loss', math.nan))}",
            f"lr {metrics['learning_rate']:.2e}",
            f"{self._rate:,.0f} tokens/s",
            f"ETA {_duration(self._seconds_left(state))}",
        ]
        if state.best_metric is not None:
            parts.append(f"best {_short(state.best_metric)}")
        return "  ".join(parts)

    def _seconds_left(self, state: TrainingState) -> float:
        assert self._plan is not None
        return (self._plan.total_steps - state.step) * (state.seconds / max(1, state.step))

    def _show(self, line: str, *, finished: bool = False) -> None:
        """One line: replaced by the next one on a terminal, at a calm rate elsewhere."""
        now = time.monotonic()
        interval_s = LIVE_INTERVAL_S if self.is_terminal else PLAIN_INTERVAL_S
        if line == self._line or (now - self._shown_at < interval_s and not finished):
            return
        self._shown_at = now
        if not self.is_terminal:
            self.notice(line)
            self._line = line
            return
        with suppress(OSError):
            shown = printable(line)[: _columns() - 1]
            print(f"\r\x1b[2K{shown}", end="", file=sys.stderr, flush=True)
            self._line = line

    def _erase(self) -> None:
        if self.is_terminal and self._line:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._line = ""

    def _show_live(self, trainer: AdvancedTrainer) -> None:
        self._shown_at = time.monotonic()
        with suppress(OSError):
            if self._live is None:
                from rich.console import Console
                from rich.live import Live

                self._erase()
                console = Console(stderr=True, highlight=False)
                self._live = Live(console=console, transient=True, auto_refresh=False, redirect_stdout=False)
                self._live.start()
            self._live.update(self._view(trainer), refresh=True)

    def _view(self, trainer: AdvancedTrainer) -> Group:
        """Position and time left; loss, learning rate and speed; the best so far and what MLflow has; a warning."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        assert self._plan is not None
        assert self._live is not None
        state, total, columns = trainer.state, self._plan.total_steps, self._live.console.width
        position = f" {state.step / total:4.0%}  step {state.step:,}/{total:,}  epoch {state.epoch + 1}"
        first = Table.grid()
        first.add_column(width=max(10, min(40, columns - len(position) - 16)))
        first.add_column(no_wrap=True, overflow="ellipsis")
        left = Text(f"{position}  ETA {_duration(self._seconds_left(state))}")
        first.add_row(ProgressBar(total=total, completed=state.step), left)
        loss = f"loss {_short(self._step.get('train_loss', math.nan))} "
        if columns >= NARROW:
            blocks = can_draw_blocks(self._live.console.encoding)
            loss += sparkline(list(self._losses), min(40, columns - 50), blocks=blocks) + "  "
        second = f"{loss}lr {self._step['learning_rate']:.2e}  {self._rate:,.0f} tokens/s"
        lines = [self._evaluating or second]
        if columns >= NARROW:
            lines.append("  ".join(part for part in (self._best(trainer), self._delivered(trainer)) if part))
        lines += [self._warning] if self._warning else []
        return Group(first, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines if line))

    def _best(self, trainer: AdvancedTrainer) -> str:
        state = trainer.state
        if state.best_metric is None or state.best_step is None:
            return "not evaluated yet"
        return f"best {trainer.metric.name} {_short(state.best_metric)} at step {state.best_step:,}"

    def _delivered(self, trainer: AdvancedTrainer) -> str:
        """What MLflow has; looked up now and then."""
        if time.monotonic() - self._delivery_read_at > DELIVERY_INTERVAL_S:
            self._delivery_read_at = time.monotonic()
            directory = trainer.tracker.directory
            delivery = directory.read_delivery()
            if not delivery and directory.read_run().offline:
                return ""
            waiting = f", waiting: {printable(str(delivery['waiting']))}" if delivery.get("waiting") else ""
            self._delivery = f"MLflow has {_points(delivery)}{waiting}" if delivery else "MLflow has nothing yet"
        return self._delivery


def _points(delivery: Mapping[str, Any]) -> str:
    return f"{delivery.get('sent', 0):,} points"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def _short(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
