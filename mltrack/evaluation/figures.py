"""Figures for the run's artifacts: confusion matrix, learning curves, lengths of the records.

Invariant: only matplotlib's object interface with the Agg canvas; no global state, no display, and an existing file is
complete. Names of classes and metrics are untrusted: any is drawn literally, characters without a glyph as boxes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from mltrack.errors import printable

_INK, _GRID = "#333333", "#dddddd"
_LINES = ("#1f6fb2", "#d1602f", "#3a8f5c", "#8a5bb0", "#b08a1f", "#5b6b7b")
_DPI = 120
MAX_CLASSES = 50
"""More rows would be illegible in a picture of bounded size; the report has every number."""
_MOST_NUMBERED = 20
"""Most classes for which each cell shows its count."""
_MOST_POINTS = 2000
"""Per curve: more than its panel has pixels."""


def confusion_matrix_figure(
    matrix: Sequence[Sequence[int]] | None, labels: Sequence[str], path: str | Path
) -> Path | None:
    """Write a PNG: counts, coloured by share of the true class (rows are true classes, columns predicted ones).

    Returns:
        None, and nothing is written, if there are more than `MAX_CLASSES` classes.
    """
    if len(labels) > MAX_CLASSES:
        return None
    import numpy as np

    counts = np.asarray(matrix, dtype=float)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    numbered = len(labels) <= _MOST_NUMBERED
    side = max(4.0, 1.6 + 0.75 * min(len(labels), _MOST_NUMBERED))
    figure, axes = _figure(side + 1.2, side)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in product(range(len(labels)), repeat=2) if numbered else ():
        ink = "white" if shares[row, column] > 0.55 else _INK
        size = 10 if len(labels) <= 8 else 7
        axes.text(
            column,
            row,
            f"{counts[row, column]:.0f}\n{shares[row, column]:.0%}",
            ha="center",
            va="center",
            color=ink,
            fontsize=size,
        )
    names = [_label(label, 24) for label in labels]
    tilt = 0 if len(labels) <= 2 else 35 if numbered else 90
    size = 10 if numbered else 7
    axes.set_xticks(range(len(labels)), names, rotation=tilt, ha="right" if tilt == 35 else "center", fontsize=size)
    axes.set_yticks(range(len(labels)), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right = counts.trace() / counts.sum() if counts.sum() else 0.0
    axes.set_title(f"{counts.sum():.0f} records, {right:.1%} right", fontsize=11)
    bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.04)
    bar.set_label("share of the true class")
    return _write(figure, path)


def learning_curves_figure(history: Mapping[str, Sequence[tuple[int, float]]], path: str | Path) -> Path:
    """Write a PNG of metrics over optimizer steps.

    Args:
        history: metric -> [(step, value)]. Losses share the first panel, every other metric family its own; at most six
            panels.
        path: of the PNG.
    """
    panels: dict[str, list[str]] = {}
    for metric, points in history.items():
        if any(math.isfinite(value) for _, value in points):
            panels.setdefault(
                "loss" if metric.endswith("loss") else metric.removeprefix("eval_").removeprefix("train_"), []
            ).append(metric)
    names = sorted(panels, key=lambda name: (name != "loss", name))[:6]
    columns = min(2, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure, grid = _figure(4.4 * columns, 2.9 * rows, rows, columns)
    spots = list(grid.flat) if hasattr(grid, "flat") else [grid]
    for axes, name in zip(spots, names, strict=False):
        for colour, metric in zip(_LINES, panels[name], strict=False):
            _curve(
                axes,
                _thinned([(step, value) for step, value in history[metric] if math.isfinite(value)]),
                metric,
                colour,
            )
        axes.set_title(_label(name.replace("_", " ")), fontsize=11, loc="left")
        axes.set_xlabel("optimizer step")
        axes.grid(True, color=_GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    for axes in spots[len(names) :]:
        axes.axis("off")
    if not names:
        spots[0].text(0.5, 0.5, "no points yet", ha="center", va="center", color=_INK)
    return _write(figure, path)


def token_lengths_figure(lengths: Mapping[str, Any], max_length: int, path: str | Path) -> Path:
    """Write a PNG: a histogram of the records' tokens, one panel per split, with a line at `max_length`.

    Args:
        lengths: split -> tokens of each record before truncation, int [N]; N is at least 1.
        max_length: tokens.
        path: of the PNG.
    """
    import numpy as np

    from mltrack.data.overview import histogram

    figure, grid = _figure(6.4, 2.6 * len(lengths), len(lengths), 1)
    for axes, colour, (name, tokens) in zip(np.ravel(grid), _LINES, lengths.items(), strict=False):
        counted = np.asarray(tokens)
        bins = histogram(counted, bins=64)
        width = bins[0].last - bins[0].first + 1
        axes.bar([one.first for one in bins], [one.count for one in bins], width=width, align="edge", color=colour)
        axes.axvline(max_length, color=_INK, linewidth=1.2, linestyle="--")
        cut = float((counted > max_length).mean())
        beyond = f" (the last bar: all up to {bins[-1].last:,})" if bins[-1].last - bins[-1].first >= width else ""
        axes.set_title(
            f"{_label(name)}: {len(counted):,} records, {cut:.1%} longer than max_length={max_length}",
            fontsize=10,
            loc="left",
        )
        axes.set_xlabel(f"tokens{beyond}")
        axes.set_ylabel("records")
        axes.grid(True, axis="y", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return _write(figure, path)


def _curve(axes: Any, points: Sequence[tuple[int, float]], metric: str, colour: str) -> None:
    """A few points as a line with marks; many as a pale line under their running mean."""
    steps, values = [step for step, _ in points], [value for _, value in points]
    if len(points) <= 40:
        axes.plot(steps, values, color=colour, marker="o", markersize=4, linewidth=1.6, label=_label(metric))
        return
    if metric.endswith("learning_rate"):  # exact; a mean would distort its peak
        axes.plot(steps, values, color=colour, linewidth=1.8, label=_label(metric))
        return
    smooth, weight, mean = [], max(0.9, 1 - 20 / len(points)), 0.0
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        smooth.append(mean / (1 - weight**count))  # without the start's pull to zero, as Adam corrects its moments
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth, color=colour, linewidth=1.8, label=f"{_label(metric)} (running mean)")


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most `_MOST_POINTS`, evenly spread, including the last."""
    every = -(-len(points) // _MOST_POINTS)
    return points if every <= 1 else points[(len(points) - 1) % every :: every]


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _write(figure: Any, path: str | Path) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".tmp")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from|Matplotlib currently does not support")
        figure.savefig(unfinished, format="png")
    unfinished.replace(target)
    return target


def _label(text: str, longest: int = 60) -> str:
    """A name for matplotlib: on one line, with dollar signs escaped."""
    shown = printable(text)
    shown = shown if len(shown) <= longest else shown[: longest - 3] + "..."
    return shown.replace("$", r"\$")
