"""The description that MLflow shows of a run: `mlflow.note.content`, made of the run directory's `summary.json`.

Invariant: a description that a person wrote or changed stays. Each one made here ends with a mark that holds the digest
of its text, and nothing else is ever replaced.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

NOTE_TAG = "mlflow.note.content"
COLUMNS = 5
"""Of the table of evaluations."""
WARNINGS_SHOWN = 6
_MARK = "\n\n<!-- mltrack "


def marked(text: str) -> str:
    """The text with the mark by which `is_replaceable` knows it again."""
    return f"{text}{_MARK}{_digest(text)} -->"


def is_replaceable(note: str) -> bool:
    """True for an empty description, and for one made here that is unchanged."""
    text, mark, end = note.rpartition(_MARK)
    return not note.strip() or (bool(mark) and end == f"{_digest(text)} -->")


def description(
    summary: Mapping[str, Any], run_id: str, status: str, registered: Mapping[str, Any] | None = None
) -> str:
    """At most one screen of Markdown: the result beside its baselines, the best evaluations, data, model, commands,
    warnings.
    """
    blocks = [
        _result(summary, status),
        _table(summary["evaluations"], summary["metric"], summary["best_step"]),
        _data_and_model(summary),
        _commands(summary, run_id, status, registered),
        "\n".join(f"- {line}" for line in [*summary["findings"], *summary["warnings"]][:WARNINGS_SHOWN]),
    ]
    return "\n\n".join(block for block in blocks if block)


def _result(summary: Mapping[str, Any], status: str) -> str:
    steps = f"{summary['step']:,} of {summary['total_steps']:,} steps"
    begun = {"RUNNING": "Training", "FINISHED": "Finished"}.get(status, status.capitalize())
    best = next((one for one in summary["evaluations"] if one["step"] == summary["best_step"]), None)
    if best is None:
        return f"**{begun}**, {steps}, not evaluated yet."
    metric = summary["metric"]
    verdict = f"; {summary['verdict']}" if summary["verdict"] else ""
    return (
        f"**{begun}**, {steps}. Best {metric} **{best[metric]:.4f}** at step {best['step']:,}"
        f" (epoch {best['epoch'] + 1}){verdict}."
    )


def _table(evaluations: Sequence[Mapping[str, Any]], metric: str, best_step: int | None) -> str:
    if not evaluations:
        return ""
    others = [name for name in evaluations[0] if name.startswith("eval_") and not name.startswith("eval_f1_")]
    names = [name for name in ("train_loss", metric, *others) if name in evaluations[0]]
    names = list(dict.fromkeys(names))[:COLUMNS]
    rows = [["step", "epoch", *names], ["---:"] * (len(names) + 2)]
    for one in evaluations:
        step = f"**{one['step']:,}**" if one["step"] == best_step else f"{one['step']:,}"
        rows.append([step, str(one["epoch"] + 1), *(_number(one.get(name)) for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _data_and_model(summary: Mapping[str, Any]) -> str:
    data = summary["data"]
    splits = " and ".join(f"{data[name]['records']:,} {name}" for name in ("training", "evaluation"))
    classes = data["training"]["classes"]
    shown = f"; {_listed([f'{name} {count:,}' for name, count in classes.items()])}" if classes else ""
    options = _listed([f"`{name}={value}`" for name, value in summary["options"].items()])
    lines = [
        f"**Data**: `{data['source']}`, {splits} records{shown}.",
        f"**Model**: `{summary['model']}`, {summary['parameters']:,} parameters.",
    ]
    return "  \n".join(lines + ([f"**Options** that differ from the defaults: {options}."] if options else []))


def _listed(words: Sequence[str], most: int = 12) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _commands(summary: Mapping[str, Any], run_id: str, status: str, registered: Mapping[str, Any] | None) -> str:
    lines = []
    if registered:
        uri = f"models:/{registered['name']}/{registered['version']}"
        lines = [
            shlex.join(["mltrack", "predict", "--model-uri", uri, "--text", summary["example"]]),
            shlex.join(["mltrack", "evaluate", "--model-uri", uri, "--dataset-path", "FILE"]),
        ]
    more = ["--max-steps" if "max_steps" in summary["options"] else "--epochs", "N"] if status == "FINISHED" else []
    if status != "RUNNING":
        lines.append(shlex.join(["mltrack", "train", "--resume", run_id, *more]))
    return "```\n" + "\n".join(lines) + "\n```" if lines else ""


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
