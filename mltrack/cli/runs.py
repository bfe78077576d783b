"""`mltrack runs` and `mltrack sync`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from mltrack.cli.options import as_bool
from mltrack.errors import ConfigurationError, MltrackError
from mltrack.journal import JournalReader, RunDirectory, find_run_directories, find_run_directory


def list_runs(output_dir: str, output: str) -> None:
    """Print the local runs, the oldest first."""
    rows = [_row(directory) for directory in find_run_directories(output_dir)]
    if output == "json":
        print(json.dumps(rows))
        return
    if not rows:
        print(f"no runs in {Path(output_dir).absolute()}")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def sync_runs(runs: list[str], follow: str | None, all_runs: str | None, output_dir: str, tracking_uri: str | None) -> int:
    """Deliver; returns the exit code."""
    from mltrack import relay

    if follow is not None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        relay.follow(RunDirectory(Path(follow).absolute()))
        return 0
    directories = find_run_directories(output_dir) if all_runs is not None and as_bool(all_runs) else [_named(run, output_dir) for run in runs]
    if not directories:
        raise ConfigurationError("sync: accepted: run directories or run ids, or --all true")
    failed = 0
    for directory in directories:
        try:
            progress = relay.sync(directory, tracking_uri)
        except MltrackError as error:
            failed += 1
            print(f"mltrack: {directory.path.name}: {error}", file=sys.stderr)
            continue
        state = "complete" if progress.complete else "still running"
        print(f"{directory.path.name}: {state}, {progress.sent:,} points sent, {len(progress.failed)} refused, run {progress.run_id}")
        for line in progress.failed:
            print(f"  refused: {line}")
    return 1 if failed else 0


def _named(run: str, output_dir: str) -> RunDirectory:
    found = find_run_directory(output_dir, run)
    if found is None:
        raise ConfigurationError(f"sync: seen '{run}'; accepted: a run directory, or the id of a run in {Path(output_dir).absolute()}")
    return found


def _row(directory: RunDirectory) -> dict[str, Any]:
    from mltrack.relay import WatchedProcess

    info = directory.read_run()
    end, step = None, 0
    for record in JournalReader(directory.journal).read_new():
        if record["type"] == "end":
            end = record["status"]
        elif record["type"] == "resumed":
            end = None
        elif record["type"] == "metrics" and "train_loss" in record["values"]:
            step = max(step, record["step"])
    alive = WatchedProcess(info.trainer_pid, info.trainer_started).is_alive()
    delivery = directory.read_delivery()
    undelivered = directory.journal.stat().st_size - delivery.get("offset", 0) if directory.journal.exists() else 0
    return {
        "run": directory.path.name,
        "task": info.task,
        "state": end or ("RUNNING" if alive else "FAILED"),
        "steps": step,
        "delivery": "complete" if delivery.get("complete") and not undelivered else f"pending ({undelivered:,} bytes)",
        "tracking_uri": info.tracking_uri,
    }
