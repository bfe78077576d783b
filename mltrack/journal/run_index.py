"""An index of the runs in a folder: their ids, and whether anything is left to deliver, without opening each.

Invariant: the file `.runs.json` is a cache. It may be deleted, damaged or replaced by another process at any time; then
each directory is read once. An entry is valid as long as its directory has not changed: `run.json` and `delivery.json`
are replaced by renames, which change it."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mltrack.errors import ConfigurationError, TrackingError
from mltrack.journal.reader import JournalReader
from mltrack.journal.run_directory import EARLIER, RunDirectory, read_json

NAME = ".runs.json"
FORMAT_VERSION = 2
"""2 has the kind of each run."""
WORTH_IT = 200
"""Fewer runs than this are read in milliseconds, and no cache is written."""
YOUNG_S = 60.0
"""A directory that changed this recently is read anew: file systems have coarse clocks, and the relay of a trainer that
has just begun has not written yet.
"""
FEWEST_CHARACTERS = 4
"""Fewest characters of a shortened id."""
log = logging.getLogger("mltrack")


class KnownRun(NamedTuple):
    """One run directory."""

    name: str
    """Of the directory."""
    changed_ns: int
    """When the directory last changed."""
    created_ms: int
    local_id: str
    run_id: str | None
    tracking_uri: str
    settled: bool
    """True if a background delivery has nothing to do: all is delivered, or the run is offline on purpose, was resumed
    elsewhere or deleted.
    """
    kind: str
    """One of `mltrack.journal.KINDS`, or that of a later mltrack."""


_KINDS = ((str,), (int,), (int,), (str,), (str, type(None)), (str,), (bool,), (str,))


def known_runs(output_dir: Path | str) -> list[KnownRun]:
    """The runs in a folder, the oldest first; a directory with an unreadable `run.json` is logged and left out."""
    root = Path(output_dir).absolute()
    cached = _read(root)
    runs = list(_runs(root, cached))
    oldest_young_ns = time.time_ns() - int(YOUNG_S * 1e9)
    worth_keeping = {run.name: run for run in runs if run.changed_ns < oldest_young_ns} if len(runs) >= WORTH_IT else {}
    if worth_keeping != cached:
        _write(root, list(worth_keeping.values()))
    return sorted(runs, key=lambda run: (run.created_ms, run.name))


def find_run_directories(output_dir: Path | str, kind: str | None = None) -> list[RunDirectory]:
    """The run directories in a folder, the oldest first.

    Args:
        kind: one of `KINDS`; None: of any kind.
    """
    root = Path(output_dir).absolute()
    return [RunDirectory(root / run.name) for run in known_runs(root) if kind is None or run.kind == kind]


def own_run_directories(output_dir: Path | str) -> list[RunDirectory]:
    """The same without other users' directories, which are logged: automatic actions concern only the user's own
    runs.
    """
    return only_own(find_run_directories(output_dir))


def only_own(found: Sequence[RunDirectory]) -> list[RunDirectory]:
    """`found` without other users' directories, like `own_run_directories`."""
    foreign = [directory.path.name for directory in found if not directory.is_ours]
    if foreign:
        log.error(
            "left alone, since another user owns them: %s",
            ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""),
        )
    return [directory for directory in found if directory.path.name not in foreign]


def find_run_directory(output_dir: Path | str, run_id: str) -> RunDirectory | None:
    """The run directory with that MLflow or local id, or with the only id that begins so; None if there is none.

    Raises:
        ConfigurationError: several ids begin so.
    """
    root = Path(output_dir).absolute()
    for place in (Path(run_id), root / run_id):
        if (place / "run.json").is_file():
            return RunDirectory(place.resolve() if place.is_symlink() else place.absolute())
    ids = {run: (run.run_id or "", run.local_id, RunDirectory(root / run.name).name) for run in known_runs(root)}
    # newest first: an earlier run in a folder may have had the same MLflow run
    found = [run for run in reversed(ids) if run_id in ids[run]]
    if not found and len(run_id) >= FEWEST_CHARACTERS:
        found = [run for run in reversed(ids) if any(one.startswith(run_id) for one in ids[run])]
        if len(found) > 1:
            several = ", ".join(run.run_id or run.name for run in found[:5])
            raise ConfigurationError(f"{len(found)} runs begin with '{run_id}': {several}; give more of the id")
    return RunDirectory(root / found[0].name) if found else None


def _runs(root: Path, cached: dict[str, KnownRun]) -> Iterator[KnownRun]:
    """The folder itself if it is a run directory, those in it, and the earlier runs in those."""
    inner: dict[str, list[str]] = {}
    for name in cached:
        if "/" in name:
            inner.setdefault(name.partition("/")[0], []).append(name)
    names = [
        *(["."] if (root / "run.json").is_file() else []),
        *(name for name in _folders(root) if not name.startswith(".")),
    ]
    for name in names:
        known = _known(root, name, cached)
        if known is not None:
            yield known
        is_cached = known is not None and known is cached.get(name)
        for earlier in inner.get(name, []) if is_cached else [] if name == "." else _earlier(root, name):
            if (one := _known(root, earlier, cached)) is not None:
                yield one


def _folders(path: Path) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        return [
            entry.name for entry in entries if entry.is_dir(follow_symlinks=False)
        ]  # a link names a run by its MLflow id
    return []


def _earlier(root: Path, name: str) -> list[str]:
    return [f"{name}/{inner}" for inner in _folders(root / name) if inner.startswith(EARLIER)]


def _known(root: Path, name: str, cached: dict[str, KnownRun]) -> KnownRun | None:
    path = os.path.join(root, name)
    try:
        changed_ns = os.stat(path).st_mtime_ns
    except FileNotFoundError:  # it has just been moved away
        return None
    known = cached.get(name)
    return known if known is not None and known.changed_ns == changed_ns else _look(path, name, changed_ns)


def _look(path: str, name: str, changed_ns: int) -> KnownRun | None:
    directory = RunDirectory(Path(path))
    try:
        info = directory.read_run()
    except TrackingError as error:
        if directory.run_file.exists():
            log.error("left out: %s", error)
        return None
    return KnownRun(
        name,
        changed_ns,
        info.created_ms,
        info.local_id,
        info.run_id,
        info.tracking_uri,
        info.offline or _is_delivered(path),
        info.kind,
    )


def _is_delivered(path: str) -> bool:
    """True if no record is left, or a delivery found that the run was resumed elsewhere or deleted."""
    delivery = read_json(f"{path}/delivery.json") or {}
    if not delivery.get("complete"):
        return delivery.get("elsewhere") is not None or delivery.get("deleted") is not None
    journal, offset = f"{path}/journal", delivery.get("offset", 0)
    if not isinstance(offset, int):
        return False
    with suppress(FileNotFoundError):
        if os.stat(journal).st_size > offset:  # a torn tail, or further records that were not delivered
            return next(JournalReader(journal, offset).read_new(), None) is None
    return True


def _read(root: Path) -> dict[str, KnownRun]:
    try:
        content = json.loads((root / NAME).read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            return {}
        return {row[0]: _checked(row) for row in content["runs"]}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def _checked(row: Sequence[Any]) -> KnownRun:
    if not all(isinstance(value, kinds) for value, kinds in zip(row, _KINDS, strict=True)):
        raise ValueError(row)
    return KnownRun(*row)


def _write(root: Path, runs: Sequence[KnownRun]) -> None:
    """Replace the cache, readable only by this user; does nothing if it cannot be written."""
    temporary = root / f"{NAME}.{os.getpid()}"
    with suppress(OSError):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps({"format_version": FORMAT_VERSION, "runs": runs}, separators=(",", ":")))
            temporary.replace(root / NAME)
        finally:
            temporary.unlink(missing_ok=True)
