"""`mltrack runs show`: one run in a terminal."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mltrack.cli.chart import can_draw_blocks, chart
from mltrack.cli.run_table import age, run_row
from mltrack.config import OPTIONS
from mltrack.errors import ConfigurationError, printable
from mltrack.journal import RunDirectory, find_run_directory, read_journal, read_json
from mltrack.journal.run_index import FEWEST_CHARACTERS

CHART_HEIGHT, WIDEST_CHART = 6, 100


def show_run(run: str, output_dir: str, output: str) -> None:
    """Print what a run is, how good, on which data, its curves and checkpoints.

    Args:
        run: an id, a prefix of one, or a run directory.

    Raises:
        ConfigurationError: there is no such run, or several begin so.
    """
    OPTIONS["output"].check(output)
    directory = find_run_directory(output_dir, run)
    if directory is None:
        short = "; the beginning of an id needs 4 characters" if len(run) < FEWEST_CHARACTERS else ""
        where = Path(output_dir).absolute()
        raise ConfigurationError(f"there is no run '{run}' in {where}{short}; `mltrack runs` lists them")
    row, summary = run_row(directory), read_json(directory.summary_file) or {}
    curves, checkpoints = _curves(directory, summary.get("metric")), _checkpoints(directory)
    if output == "json":
        print(json.dumps({**row, "summary": summary, "checkpoints": checkpoints}))
        return
    lines = [
        f"{row['task'] or row['kind']} {row['model'] or ''}".rstrip() + f"  {row['state']}, {row['steps']:,} steps",
        f"run         {row['run']} in {directory.path}, begun {age(row['created_ms']) or 'long'} ago",
        *_result(summary),
        *_facts(summary),
        f"delivery    {row['delivery']} in {row['tracking_uri'] or 'no store yet'}",
        *(f"checkpoint  step {one['step']:,}: {one['metric']}, {one['bytes'] / 1e6:,.1f} MB" for one in checkpoints),
    ]
    width = min(WIDEST_CHART, shutil.get_terminal_size().columns - 12)
    blocks = can_draw_blocks(sys.stdout.encoding)
    for name, points in curves.items():
        steps = f"steps {points[0][0]:,} to {points[-1][0]:,}"
        if len(points) > width:
            steps += f", a column is the mean of {len(points) / width:.0f} or so"
        drawn = chart([value for _, value in points], width, CHART_HEIGHT, blocks=blocks)
        lines += ["", f"{name}, {steps}, last {points[-1][1]:.4f}", *drawn]
    lines += [f"warning     {line}" for line in [*summary.get("findings", []), *summary.get("warnings", [])]]
    print(printable("\n".join(lines), but="\n"))


def _result(summary: Mapping[str, Any]) -> list[str]:
    best = next((one for one in summary.get("evaluations", []) if one["step"] == summary["best_step"]), None)
    if best is None:
        return []
    name = summary["metric"]
    lines = [f"best        {name} {best[name]:.4f} at step {best['step']:,} (epoch {best['epoch'] + 1})"]
    return lines + ([f"            {summary['verdict']}"] if summary["verdict"] else [])


def _facts(summary: Mapping[str, Any]) -> list[str]:
    if not summary:
        return []
    data = summary["data"]
    splits = " and ".join(f"{data[name]['records']:,} {name}" for name in ("training", "evaluation"))
    classes = ", ".join(f"{name} {count:,}" for name, count in list(data["training"]["classes"].items())[:10])
    options = ", ".join(f"{name}={value}" for name, value in summary["options"].items())
    return [
        f"data        {data['source']}: {splits} records" + (f"; {classes}" if classes else ""),
        f"model       {summary['model']}, {summary['parameters']:,} parameters",
        f"options     {options or 'the defaults'}",
    ]


def _curves(directory: RunDirectory, metric: str | None) -> dict[str, list[tuple[int, float]]]:
    """Training loss and the metric that the run is judged by; of each step the last value."""
    found: dict[str, dict[int, float]] = {name: {} for name in ("train_loss", metric) if name}
    for record in read_journal(directory.journal) if directory.journal.exists() else ():
        if record["type"] == "metrics":
            for name in found.keys() & record["values"].keys():
                found[name][record["step"]] = record["values"][name]
    return {name: sorted(points.items()) for name, points in found.items() if points}


def _checkpoints(directory: RunDirectory) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(directory.checkpoints.glob("step-*/metadata.json")):
        held = read_json(path)
        if held is not None:
            rows.append(
                {
                    "step": held.get("step", 0),
                    "metric": _figure(held),
                    "bytes": sum(file.stat().st_size for file in path.parent.iterdir()),
                    "path": str(path.parent),
                    "age_s": time.time() - path.stat().st_mtime,
                }
            )
    return rows


def _figure(held: Mapping[str, Any]) -> str:
    value = held.get("metric_value")
    return f"{held.get('metric_name')} {value:.4f}" if isinstance(value, int | float) else "not evaluated"
