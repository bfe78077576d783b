"""`mltrack runs` and `mltrack sync`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mltrack import relay, store
from mltrack.cli.options import as_bool
from mltrack.config import OPTIONS
from mltrack.errors import ConfigurationError, MltrackError
from mltrack.journal import JournalReader, RunDirectory, find_run_directories, find_run_directory
from mltrack.store import StoreUnavailable


def list_runs(output_dir: str, output: str, reap: str, tracking_uri: str | None) -> None:
    """Print the local runs, the oldest first, then the MLflow runs that say RUNNING without a trainer."""
    OPTIONS["output"].check(output)
    reaps = as_bool(reap)
    _print_local(output_dir, output)
    if output == "json" and not reaps:
        return
    for uri in _tracking_uris(output_dir, tracking_uri):
        try:
            _print_orphans(uri, output_dir, reaps, file=sys.stderr if output == "json" else sys.stdout)
        except StoreUnavailable as error:
            print(f"mltrack: which runs say RUNNING is not known there: {error}", file=sys.stderr)


def _print_orphans(uri: str, output_dir: str, reap: bool, file: TextIO) -> None:
    connected = store.connect(uri)
    for run_id, directory in relay.orphans(connected, output_dir).items():
        if not reap:
            print(f"{run_id}: RUNNING in {connected.shown_uri}, but no trainer is behind it; --reap true sets it right", file=file)
            continue
        try:
            print(f"{run_id}: was RUNNING without a trainer, is {relay.reap(connected, run_id, directory)} now", file=file)
        except (relay.DeliveredElsewhere, relay.Settled) as error:
            print(f"{run_id}: left alone: {error}", file=file)


def _tracking_uris(output_dir: str, given: str | None) -> list[str]:
    """The servers to ask: the one that was given; else the default one and those of the local runs."""
    uris = [store.default_tracking_uri(given)]
    if given is None:
        uris += [relay.tracking_uri_of(directory) for directory in find_run_directories(output_dir) if directory.read_run().run_id]
    there = [uri for uri in uris if (file := store.database_file(uri)) is None or file.exists()]
    return list(dict.fromkeys(there))


def _print_local(output_dir: str, output: str) -> None:
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
    if follow is not None:
        relay.run(RunDirectory(Path(follow).absolute()))
        return 0
    directories = find_run_directories(output_dir) if all_runs is not None and as_bool(all_runs) else [_named(run, output_dir) for run in runs]
    if not directories:
        raise ConfigurationError("sync: accepted: run directories or run ids, or --all true")
    failed = 0
    for directory in directories:
        before = directory.read_delivery()
        try:
            with _bar(directory) as on_progress:
                progress = relay.sync(directory, tracking_uri, on_progress=on_progress)
        except MltrackError as error:
            failed += 1
            print(f"mltrack: {directory.path.name}: {error}", file=sys.stderr)
            continue
        state = "complete" if progress.complete else "still running"
        there = min(before.get("sent", 0), progress.sent) if before.get("tracking_uri") == progress.tracking_uri else 0
        print(
            f"{directory.path.name}: {state}, {progress.sent - there:,} points sent, {there:,} already there, {len(progress.failed)} failed, run {progress.run_id}"
            f"{', which went on elsewhere since' if progress.elsewhere else ''}{f'; {progress.deleted}' if progress.deleted else ''}"
        )
        for line in progress.failed:
            print(f"  failed: {line}")
    return 1 if failed else 0


@contextmanager
def _bar(directory: RunDirectory) -> Iterator[Callable[[relay.Progress], None]]:
    """A progress bar over the journal's bytes, on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(directory.path.name, total=directory.journal.stat().st_size)
        yield lambda progress: bar.update(task, completed=progress.offset)


def _named(run: str, output_dir: str) -> RunDirectory:
    found = find_run_directory(output_dir, run)
    if found is None:
        raise ConfigurationError(f"sync: seen '{run}'; accepted: a run directory, or the id of a run in {Path(output_dir).absolute()}")
    return found


def _row(directory: RunDirectory) -> dict[str, Any]:
    info = directory.read_run()
    end, step = None, 0
    for record in JournalReader(directory.journal).read_new():
        if record["type"] == "end":
            end = record["status"]
        elif record["type"] == "resumed":
            end = None
        elif record["type"] == "metrics" and "train_loss" in record["values"]:
            step = max(step, record["step"])
    alive = relay.WatchedProcess(info.trainer_pid, info.trainer_started).is_alive()
    delivery = directory.read_delivery()
    undelivered = directory.journal.stat().st_size - delivery.get("offset", 0) if directory.journal.exists() else 0
    settled = next((word for field, word in (("elsewhere", "went on elsewhere"), ("deleted", "deleted")) if delivery.get(field)), "pending")
    state = "complete" if delivery.get("complete") and not undelivered else settled
    return {
        "run": directory.path.name,
        "task": info.task,
        "state": end or ("RUNNING" if alive else "FAILED"),
        "steps": step,
        "delivery": state if state == "complete" else f"{state} ({undelivered:,} bytes)",
        "tracking_uri": info.tracking_uri,
    }
