"""Sets an earlier run aside when another one starts in its folder: as a run directory `earlier-run-1`, `earlier-run-2`,
... in there.

Invariant: the run moves at one moment, when its journal is renamed; even if the process is killed before or after, the
journal is in one place, with its run.json. Meanwhile no process writes or delivers that journal: a writer is refused or
refuses, its relay is ended, and another relay delivers the rest."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from mltrack.errors import TrackingError
from mltrack.journal import JournalReader, JournalWriter, RetainedCheckpoints, RunDirectory
from mltrack.journal.run_directory import COPIES, EARLIER
from mltrack.store.copies import copy_each

log = logging.getLogger("mltrack")
LETS_GO_S = 10.0
"""How long the relay of an earlier run may take to end after SIGTERM."""


def set_aside(directory: RunDirectory) -> None:
    """Move the run in `directory`, if there is one, into a run directory of its own, with its undelivered files.

    Raises:
        TrackingError: another process is writing its journal, or is delivering it and cannot be ended here.
    """
    if not directory.journal.exists():
        return
    writer = JournalWriter(directory.journal)
    try:
        with _undelivered(directory):
            aside, whole = _made(directory), True
            for held in (directory.run_file, directory.delivery_file, directory.models_file, directory.exit_code_file):
                if held.exists():
                    shutil.copy2(held, aside.path / held.name)
            if directory.run_file.exists() and not directory.has_arrived():
                artifacts, kept = _undelivered_files(directory)
                for path in sorted(artifacts):
                    whole &= _take(directory, aside, path, immutable=path.startswith(COPIES))
                for path in sorted(kept):
                    _take(directory, aside, path, immutable=True)
            directory.journal.rename(aside.journal)
            _clear_copies(directory, aside, whole=whole)
            for held in (
                directory.run_file,
                directory.delivery_file,
                directory.models_file,
                directory.exit_code_file,
                directory.heartbeat,
            ):
                held.unlink(missing_ok=True)
            with suppress(OSError):
                directory.relay_log.rename(aside.relay_log)
    finally:
        writer.close()


def forget_moved(directory: RunDirectory) -> None:
    """Remove what a start left that was killed while setting a run aside; call it only if no other process starts in
    this folder.
    """
    with suppress(TrackingError):
        moved = directory.read_run().local_id
        if any(one.read_run().local_id == moved for one in directory.earlier()):
            directory.run_file.unlink()
            directory.delivery_file.unlink(missing_ok=True)
            directory.models_file.unlink(missing_ok=True)


def _made(directory: RunDirectory) -> RunDirectory:
    number = 1
    while True:
        path = directory.path / f"{EARLIER}{number}"
        with suppress(FileExistsError):
            path.mkdir()
            return RunDirectory(path)
        number += 1


def _undelivered_files(directory: RunDirectory) -> tuple[set[str], set[str]]:
    """The artifacts (files and folders) in the undelivered part of the journal, and the folders of the checkpoints kept
    at the end.
    """
    delivery, kept, artifacts = directory.read_delivery(), RetainedCheckpoints(), set()
    begins = min([delivery.get("offset", 0), *delivery.get("deferred", [])])
    reader = JournalReader(directory.journal)
    with suppress(TrackingError):  # the journal of a newer mltrack, which will deliver it
        for record in reader.read_new():
            kept = kept.after(record)
            if record["type"] == "artifact" and reader.offset > begins:
                artifacts.add(record["path"])
    return artifacts, {one["path"] for one in kept.kept.values()}


def _take(directory: RunDirectory, aside: RunDirectory, path: str, *, immutable: bool) -> bool:
    """Copy a file or folder to the same path in `aside`, large files of checkpoints as links: the next run may replace
    the original. Returns False if a part could not be copied; that part is logged and left out.
    """
    source = directory.path / path
    own = aside.path.resolve()

    def check(entry: Path) -> None:
        directory.inside(entry)
        resolved = entry.resolve()
        if resolved.is_relative_to(own) or own.is_relative_to(resolved):
            raise TrackingError(f"{entry}: is a run's own folder, not a file of it")
        if entry != source and entry.is_symlink() and entry.is_dir():
            raise TrackingError(f"{entry}: is a link to a folder, which is not followed")

    left_out: list[str] = []

    def report(line: str) -> None:
        left_out.append(line)
        log.warning("left out of the run that is set aside in %s: %s", aside.name, line)

    try:
        copy_each(source, aside.path / path, report, check=check, immutable=immutable)
    except (OSError, TrackingError) as error:  # such as a full disk: the start continues, and what is missing is logged
        report(f"{path}: {error}")
    return not left_out


def _clear_copies(directory: RunDirectory, aside: RunDirectory, *, whole: bool) -> None:
    """Remove the copies that the set-aside run's trackers had made, or move them along if they were not taken.

    Args:
        whole: everything undelivered was taken.
    """
    for left in directory.path.glob(f"{COPIES}*"):
        there = aside.path / left.relative_to(directory.path)
        with suppress(OSError, TrackingError):  # costs only disk space: the next run has its own folder
            directory.inside(left)
            if not there.exists():
                there.parent.mkdir(exist_ok=True)
                left.rename(there)
            elif whole:
                shutil.rmtree(left)


@contextmanager
def _undelivered(directory: RunDirectory) -> Iterator[None]:
    """Inside, no process delivers the directory: a running relay is ended, which is safe at any moment."""
    descriptor = os.open(directory.path / "relay.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + LETS_GO_S
    try:
        while not _locked(descriptor):
            holder = os.pread(descriptor, 32, 0).strip()
            if time.monotonic() > deadline:
                raise TrackingError(
                    f"{directory.path}: process {holder.decode(errors='replace')} delivers the earlier run in this"
                    " folder and cannot be ended from here; wait for it, or choose another output_dir"
                )
            if holder.isdigit():
                _end(int(holder))
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end(pid: int) -> None:
    """Send SIGTERM if that is a process of mltrack: the id may be from another machine."""
    with suppress(psutil.Error, OSError):
        if any("mltrack" in word for word in psutil.Process(pid).cmdline()):
            os.kill(pid, signal.SIGTERM)
