"""A checkpoint's bytes: one folder that is complete or does not exist.

Invariant: everything is written under a temporary name and synced, `metadata.json` with sizes and hashes last, then
renamed once. A reader accepts a folder only with metadata, and its bytes only if their hashes match."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from mltrack.checkpoints.metadata import FORMAT_VERSION, CheckpointMetadata, from_json, is_inside
from mltrack.checkpoints.shards import weight_files
from mltrack.checkpoints.snapshot import Content
from mltrack.checkpoints.tensor_file import Tensors, file_bytes, write_tensors
from mltrack.errors import CheckpointError

METADATA, OPTIMIZER, OPTIMIZER_JSON, STATE, STATE_TENSORS = (
    "metadata.json",
    "optimizer.safetensors",
    "optimizer.json",
    "state.json",
    "state.safetensors",
)
TEMPORARY_PREFIX = ".writing-"
DELETING_PREFIX = ".deleting-"
DAMAGED_PREFIX = "damaged-"
_METADATA_BYTES = 4096
"""More than `metadata.json` takes without its list of files."""

_in_work: set[Path] = set()
"""Temporary folders that a thread of this process is filling."""
_in_work_lock = threading.Lock()


def write_directory(target: Path, content: Content, metadata: CheckpointMetadata) -> CheckpointMetadata:
    """Fill a temporary folder, then make it `target` in one rename.

    Args:
        target: final folder; it must not exist.
        content: all files but `metadata.json`.
        metadata: without `files`.

    Raises:
        CheckpointError: the disk is full or gone; the message gives the bytes needed and free. Nothing is left under
            either name.
    """
    needed = _METADATA_BYTES + sum(
        len(held) if isinstance(held, bytes) else file_bytes(held) for held in content.values()
    )
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{os.getpid()}")
    with _in_work_lock:
        _in_work.add(temporary)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _check_room(target, needed)
        complete = replace(
            metadata,
            path=target,
            files={name: _write(temporary / name, held) for name, held in sorted(content.items())},
        )
        _write(temporary / METADATA, json.dumps({**asdict(complete), "path": target.name}, indent=1).encode())
        for path in temporary.rglob("*"):
            _sync(path)
        _sync(temporary)
        temporary.rename(target)
        _sync(target.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            free = shutil.disk_usage(target.parent).free if target.parent.exists() else 0
            raise CheckpointError(
                f"{target}: not written: {error.strerror or error}; {needed:,} bytes are needed, {free:,} are free"
                " there; earlier checkpoints are intact"
            ) from error
        raise
    finally:
        with _in_work_lock:
            _in_work.discard(temporary)
    return complete


def read_metadata(directory: Path) -> CheckpointMetadata | None:
    """The metadata of a complete checkpoint; None if the folder is none or its metadata cannot be read.

    Raises:
        CheckpointError: a newer mltrack wrote it.
    """
    try:
        return _read_metadata(directory)
    except (OSError, ValueError, RecursionError):
        return None


def saved_for(directory: Path) -> str | None:
    """The metric that a complete checkpoint was saved for, whatever ranks it now."""
    metadata = read_metadata(directory)
    return metadata.metric_name if metadata is not None else None


def when_written(directory: Path) -> tuple[int, ...]:
    """A value that changes when `metadata.json` is rewritten; empty if there is none."""
    try:
        held = os.stat(f"{directory}/{METADATA}")
    except OSError:
        return ()
    return held.st_ino, held.st_mtime_ns, held.st_size


def what_is_wrong_with_metadata(directory: Path) -> str | None:
    """One line about a `metadata.json` that exists but cannot be read; None otherwise."""
    try:
        _read_metadata(directory)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        return str(error)
    return None


def verify(metadata: CheckpointMetadata, *, unread: Collection[str] = ()) -> list[str]:
    """What is wrong with the files, one line each; empty for an intact checkpoint.

    Args:
        unread: names of files that will not be read: only their sizes are compared.
    """
    return [*what_is_not_named(metadata), *damaged(metadata, metadata.files, unread=unread).values()]


def what_is_not_named(metadata: CheckpointMetadata) -> list[str]:
    """One line if the metadata names no weights or no state; else nothing."""
    return (
        []
        if weight_files(metadata.files) and STATE in metadata.files
        else [f"{METADATA}: names no weights or no {STATE}"]
    )


def damaged(metadata: CheckpointMetadata, names: Iterable[str], *, unread: Collection[str] = ()) -> dict[str, str]:
    """{name: one line} of those files, all named by the metadata, that differ from what it records; `unread` as for
    `verify`.
    """
    return {
        name: problem
        for name in names
        if (problem := _what_is_wrong_with(metadata, name, read=name not in unread)) is not None
    }


def _what_is_wrong_with(metadata: CheckpointMetadata, name: str, *, read: bool) -> str | None:
    path, expected = metadata.path / name, metadata.files[name]
    if not is_inside(name):
        return f"{name!r}: a path out of the checkpoint, not a file in it"
    if not path.is_file():
        return f"{name}: missing"
    if path.stat().st_size != expected["bytes"]:
        return f"{name}: {path.stat().st_size} bytes instead of {expected['bytes']}"
    return (
        None if not read or _sha256(path) == expected["sha256"] else f"{name}: its sha256 differs from the recorded one"
    )


def set_aside(directory: Path) -> Path:
    """Rename a damaged checkpoint so that no reader uses it; nothing is deleted."""
    (directory / METADATA).rename(directory / f"{DAMAGED_PREFIX}{METADATA}")
    target = free_name(directory.parent, DAMAGED_PREFIX + directory.name)
    directory.rename(target)
    return target


def delete(directory: Path) -> None:
    """Remove a checkpoint. If the process is killed meanwhile, the next start removes the rest, which no reader uses.

    Raises:
        CheckpointError: the checkpoint is still there, or some of its files are left under a name that no reader looks
            at.
    """
    try:
        # the time makes the name new: an earlier one of that step may still be there
        gone = directory.with_name(f"{DELETING_PREFIX}{directory.name}-{time.monotonic_ns()}-{os.getpid()}")
        directory.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise CheckpointError(f"{directory}: could not be removed: {error.strerror or error}") from error


def remove_leftovers(root: Path, prefixes: Sequence[str] = (TEMPORARY_PREFIX, DELETING_PREFIX)) -> None:
    """Remove what killed writers left under temporary names, but not what a living process or thread is writing."""
    for prefix in prefixes:
        for path in root.glob(f"{prefix}*"):
            writer = path.name.rpartition("-")[2]
            if writer == str(os.getpid()):
                with _in_work_lock:
                    in_work = path in _in_work
            else:
                in_work = writer.isdigit() and psutil.pid_exists(int(writer))
            if not in_work:
                shutil.rmtree(path, ignore_errors=True)


def free_name(root: Path, name: str) -> Path:
    """`root`/`name`, or if that exists, the first free name with a number appended."""
    target, number = root / name, 1
    while target.exists():
        number += 1
        target = root / f"{name}-{number}"
    return target


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must be a JSON object, not a {type(content).__name__}")
    return content


def _read_metadata(directory: Path) -> CheckpointMetadata:
    content = json.loads((directory / METADATA).read_text(encoding="utf-8"))
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{directory}: checkpoint format {version} is newer than {FORMAT_VERSION}; install a newer mltrack"
        )
    return from_json(content, directory)


def _check_room(target: Path, needed: int) -> None:
    """Called before the first byte is written: a full disk would leave the journal no room either."""
    usage = shutil.disk_usage(target.parent)
    if usage.total and usage.free < needed:
        raise CheckpointError(
            f"{target}: not written: {needed:,} bytes are needed, {usage.free:,} are free there; earlier checkpoints"
            " are intact"
        )


def _write(path: Path, held: Tensors | bytes) -> dict[str, Any]:
    path.parent.mkdir(exist_ok=True)
    if isinstance(held, bytes):
        path.write_bytes(held)
    else:
        write_tensors(held, path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
