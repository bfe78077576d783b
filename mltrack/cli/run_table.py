"""The table of `mltrack runs`: one row a run, read from its run directory alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrack import relay
from mltrack.errors import printable
from mltrack.journal import RunDirectory, find_run_directories, read_json, read_tail
from mltrack.journal.records import EPOCH_PREFIX

if TYPE_CHECKING:
    from rich.table import Table

_UNENDED = {relay.Life.ALIVE: "RUNNING", relay.Life.ELSEWHERE: "UNKNOWN"}
"""State of a run whose journal has no end; UNKNOWN: its trainer is, or was, on another machine."""
_TAIL_BYTES = 8192
WATCH_INTERVAL_S = 2.0
SHORTEST_ID = 8


def print_runs(output_dir: str, output: str, most: int, kind: str | None) -> None:
    """Print the newest runs in ascending order.

    Args:
        output: text or json; json has whole ids and more facts.
        most: number of runs; 0 for all.
    """
    rows, left_out = _rows(output_dir, most, kind)
    if output == "json":
        print(json.dumps(rows), flush=True)
        print(left_out, end="\n" if left_out else "", file=sys.stderr)
        return
    if not rows:
        print(f"no runs{f' of the kind {kind}' if kind else ''} in {Path(output_dir).absolute()}")
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(_table(rows))
    console.print(left_out, end="\n" if left_out else "")


def watch_runs(output_dir: str, most: int, kind: str | None) -> None:
    """Show the table anew every few seconds until Ctrl-C; without a terminal once."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if not console.is_terminal:
        print_runs(output_dir, "text", most, kind)
        return
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            live.update(_table(_rows(output_dir, most, kind)[0]), refresh=True)
            time.sleep(WATCH_INTERVAL_S)


def run_row(directory: RunDirectory) -> dict[str, Any]:
    """What `mltrack runs` says of a run."""
    info, delivery = directory.read_run(), directory.read_delivery()
    last, step = _last_words(directory.journal)
    if delivery.get("complete"):
        last.end = last.end or delivery.get("end")
    life = relay.Life.GONE if last.end is not None else relay.trainer_of(directory).life()
    undelivered = directory.journal.stat().st_size - delivery.get("offset", 0) if directory.journal.exists() else 0
    settled = next(
        (word for field, word in (("elsewhere", "resumed elsewhere"), ("deleted", "deleted")) if delivery.get(field)),
        "pending",
    )
    summary = read_json(directory.summary_file) or {}
    state = "complete" if delivery.get("complete") and not undelivered else settled
    return {
        "run": info.run_id if info.run_id and directory.path.name == info.local_id else directory.name,
        "task": info.task,
        "kind": info.kind,
        "model": summary.get("model") or (read_json(directory.path / "config.json") or {}).get("model_name"),
        "state": relay.verdict_on(last, directory).status if life is relay.Life.GONE else _UNENDED[life],
        "steps": step,
        "best": _best(summary),
        "created_ms": info.created_ms,
        "delivery": state if state == "complete" else f"{state} ({undelivered:,} bytes)",
        "tracking_uri": info.address,
    }


def shortened(ids: Sequence[str]) -> list[str]:
    """Each id cut to a prefix that no other one begins with, of at least `SHORTEST_ID` characters."""
    cut = []
    for one in ids:
        length = SHORTEST_ID
        while length < len(one) and any(other != one and other.startswith(one[:length]) for other in ids):
            length += 1
        cut.append(one[:length])
    return cut


def age(created_ms: int) -> str:
    """How long ago, in one unit: 5 s, 3 min, 2 h, 4 d; empty if it is not known."""
    seconds = time.time() - created_ms / 1000
    if not created_ms:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _rows(output_dir: str, most: int, kind: str | None) -> tuple[list[dict[str, Any]], str]:
    """(rows, a line about the runs that are left out)."""
    directories = find_run_directories(output_dir, kind)
    rows = [run_row(directory) for directory in directories[-most:]]
    left_out = f"the newest {len(rows):,} of {len(directories):,} runs; --limit 0 lists all"
    return rows, left_out if len(rows) < len(directories) else ""


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("run", "task", "model", "state", "steps", "best", "age", "delivery"):
        table.add_column(column, justify="right" if column in ("steps", "age") else "left", no_wrap=column == "run")
    for row, run in zip(rows, shortened([row["run"] for row in rows]), strict=True):
        shown = {**row, "run": run, "steps": f"{row['steps']:,}", "age": age(row["created_ms"])}
        shown["task"] = row["task"] if row["kind"] == "train" else f"{row['kind']} {row['task'] or ''}"
        table.add_row(*(Text(printable(str(shown[str(column.header)] or ""))) for column in table.columns))
    return table


def _best(summary: Mapping[str, Any]) -> str | None:
    """The metric that the run is judged by, at its best."""
    evaluations = summary.get("evaluations") or []
    best = next((one for one in evaluations if one.get("step") == summary.get("best_step")), None)
    value = best.get(summary.get("metric")) if best is not None else None
    return f"{summary['metric']} {value:.4f}" if isinstance(value, int | float) else None


def _last_words(journal: Path) -> tuple[relay.Progress, int]:
    """The recorded outcome and end, and the optimizer steps; reads only as much of the journal as that needs."""
    num_bytes, size = _TAIL_BYTES, journal.stat().st_size if journal.exists() else 0
    while size:
        last, steps = relay.Progress(), []
        for record in read_tail(journal, num_bytes):
            if record["type"] in ("outcome", "end"):
                setattr(last, record["type"], record)
            elif record["type"] == "resumed":
                last = relay.Progress()
            elif record["type"] == "metrics" and not all(name.startswith(EPOCH_PREFIX) for name in record["values"]):
                steps.append(record["step"])
        if steps or num_bytes >= size:
            return last, max(steps, default=0)
        num_bytes *= 8
    return relay.Progress(), 0
