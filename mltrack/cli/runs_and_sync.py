"""`mltrack runs` and `mltrack sync`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mltrack import relay, store
from mltrack.addresses import is_same, without_secrets
from mltrack.cli.parameters import as_bool
from mltrack.cli.run_table import print_runs, watch_runs
from mltrack.config import OPTIONS
from mltrack.errors import ConfigurationError, MltrackError, did_you_mean, one_of, printable
from mltrack.journal import (
    KINDS,
    RunDirectory,
    find_run_directory,
    known_runs,
    own_run_directories,
)
from mltrack.store import StoreUnavailable

_MOST_DIGITS = 18


def list_runs(
    output_dir: str,
    output: str,
    reap: str,
    tracking_uri: str | None,
    limit: str = "50",
    kind: str | None = None,
    *,
    watch: bool = False,
) -> None:
    """Print the newest local runs in ascending order, then the MLflow runs that say RUNNING without a trainer.

    Raises:
        ConfigurationError: an invalid output, limit or kind.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigurationError(f"kind must be {one_of(KINDS)}, not '{kind}'{did_you_mean(kind, KINDS)}")
    OPTIONS["output"].check(output)
    reaps, most = as_bool(reap), _number(limit)
    if watch:
        watch_runs(output_dir, most, kind)
        return
    print_runs(output_dir, output, most, kind)
    sys.stdout.flush()
    if output == "json" and not reaps:
        return
    for uri in _tracking_uris(output_dir, tracking_uri):
        try:
            _print_orphans(uri, output_dir, reaps, file=sys.stderr if output == "json" else sys.stdout)
        except StoreUnavailable as error:
            print(printable(f"mltrack: cannot list the RUNNING runs there: {error}"), file=sys.stderr)


def _print_orphans(uri: str, output_dir: str, reap: bool, file: TextIO) -> None:
    connected = store.connect(uri)
    found = relay.orphans(connected, output_dir)
    for one in found if not reap else ():
        problem = "it has no trainer" if one.is_certain else f"{one.trainer.place} cannot be checked from here"
        remedy = (
            "corrects its status"
            if one.is_certain
            else "watches its heartbeat for a minute, and corrects its status if that stops"
        )
        print(f"{one.run_id}: RUNNING in {connected.shown_uri}, but {problem}; --reap true {remedy}", file=file)
    for one in relay.stand_still(connected, found) if reap else ():
        try:
            print(
                f"{one.run_id}: was RUNNING without a trainer, is"
                f" {relay.reap(connected, one.run_id, one.directory)} now",
                file=file,
            )
        except (relay.DeliveredElsewhere, relay.TrainedElsewhere, relay.Settled) as error:
            print(f"{one.run_id}: unchanged: {error}", file=file)


def _tracking_uris(output_dir: str, given: str | None) -> list[str]:
    """The servers to query: the given one, else the default and those of the local runs, without databases that have no
    RUNNING run.
    """
    uris = [store.default_tracking_uri(given)]
    if given is None:
        one_of_each = {run.tracking_uri: run.name for run in known_runs(output_dir) if run.run_id}
        uris += [
            relay.tracking_uri_of(RunDirectory(Path(output_dir).absolute() / name)) for name in one_of_each.values()
        ]
    there = [
        uri
        for uri in uris
        if (file := store.database_file(uri)) is None or (file.exists() and store.has_running_runs(file))
    ]
    return list({without_secrets(uri): uri for uri in reversed(there)}.values())[::-1]


def sync_runs(
    runs: list[str], follow: str | None, all_runs: str | None, output_dir: str, tracking_uri: str | None
) -> int:
    """Deliver runs; returns the exit code."""
    if follow is not None:
        relay.run(RunDirectory(Path(follow).absolute()))
        return 0
    directories = (
        own_run_directories(output_dir)
        if all_runs is not None and as_bool(all_runs)
        else [one for run in runs for one in _named(run, output_dir)]
    )
    if not directories:
        raise ConfigurationError("sync needs run directories or run ids, or --all true")
    failed = 0
    for directory in directories:
        before = directory.read_delivery()
        try:
            with _bar(directory) as on_progress:
                progress = relay.sync(
                    directory,
                    tracking_uri,
                    on_progress=on_progress,
                    notice=lambda line: print(f"mltrack: {line}", file=sys.stderr),
                )
        except MltrackError as error:
            failed += 1
            print(printable(f"mltrack: {directory.name}: {error}"), file=sys.stderr)
            continue
        state = "complete" if progress.complete else "still running"
        there = (
            min(before.get("sent", 0), progress.sent)
            if is_same(before.get("tracking_uri") or "", progress.tracking_uri)
            else 0
        )
        print(
            f"{directory.name}: {state}, {progress.sent - there:,} points sent, {there:,} already there,"
            f" {len(progress.failed)} failed, run {progress.run_id}"
            f"{', which was resumed elsewhere' if progress.elsewhere else ''}"
            f"{f'; {progress.deleted}' if progress.deleted else ''}"
        )
        for line in progress.failed:
            print(printable(f"  failed: {line}"))
        for line in progress.exposed:
            print(printable(f"  secret: {line}"))
    return 1 if failed else 0


@contextmanager
def _bar(directory: RunDirectory) -> Iterator[Callable[[relay.Progress], None]]:
    """A progress bar over the journal's bytes, on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(directory.name, total=directory.journal.stat().st_size)
        yield lambda progress: bar.update(task, completed=progress.offset)


def _named(run: str, output_dir: str) -> list[RunDirectory]:
    """The named run directory, after the undelivered runs that it held before."""
    found = find_run_directory(output_dir, run)
    earlier = [one for one in (found or RunDirectory(Path(run).absolute())).earlier() if not one.has_arrived()]
    if found is None and not earlier:
        raise ConfigurationError(
            f"sync: '{run}' is neither a run directory nor the id of a run in {Path(output_dir).absolute()}"
        )
    named = [*earlier, *([found] if found is not None else [])]
    for one in named:
        one.refuse_foreign()
    return named


def _number(limit: str) -> int:
    if not limit.isdecimal() or len(limit) > _MOST_DIGITS:
        raise ConfigurationError(f"limit must be a whole number, 0 for all runs, not '{limit[:_MOST_DIGITS]}'")
    return int(limit)
