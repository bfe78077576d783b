"""Puts files into a local artifact root, those of a checkpoint without a second copy of their bytes.

Invariant: a reader of the root sees a file or folder whole or not at all (temporary sibling, then one rename), and the
given file is never written to. A hard link shares its bytes with the given file, so only files that the caller calls
`immutable`, like a checkpoint's, become links."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

LINK_FROM_BYTES = 1 << 20
TEMPORARY = ".mltrack-"
FOREIGN_LEFTOVER_S = 3600.0
"""A temporary file of another machine counts as work in progress until it is this old."""
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}


def link_or_copy(source: Path, target: Path, *, immutable: bool) -> None:
    """Link or copy `source` to `target`, which must not exist.

    Args:
        immutable: the source is never rewritten in place. From LINK_FROM_BYTES on it becomes a hard link if the file
            system has links; else a copy.
    """
    if immutable and source.stat().st_size >= LINK_FROM_BYTES:
        try:
            os.link(source, target)
            return
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
    shutil.copyfile(source, target)


def place_file(source: Path, target: Path, *, immutable: bool = False) -> None:
    """Put `source` at `target`, replacing a file there; `immutable` as in `link_or_copy`."""
    _place(target, lambda temporary: link_or_copy(source, temporary, immutable=immutable))


def place_text(text: str, target: Path) -> None:
    """Write a text file at `target`, replacing a file there."""
    _place(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def place_tree(
    source: Path, target: Path, *, immutable: bool = False, instead: Mapping[str, str] | None = None
) -> None:
    """Put a folder and its content at `target`, replacing a folder there.

    Args:
        immutable: as in `link_or_copy`, for all its files.
        instead: relative path -> text to write in place of the source's file.
    """
    temporary = _beside(target)
    try:
        _drop_leftovers(target)
        copy_tree(source, temporary, immutable=immutable, instead=instead)
        if target.exists():
            old = _beside(target)
            os.rename(target, old)
            os.rename(temporary, target)
            shutil.rmtree(old)
        else:
            os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_tree(source: Path, target: Path, *, immutable: bool = False, instead: Mapping[str, str] | None = None) -> None:
    """Like `place_tree`, but not atomic; `target` must not exist."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(exist_ok=True)
        elif path.relative_to(source).as_posix() not in (instead or {}):
            link_or_copy(path, there, immutable=immutable)
    for name, text in (instead or {}).items():
        (target / name).write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or folder, which may be gone already; a folder is renamed first, so no reader sees half of it."""
    if path.is_dir() and not path.is_symlink():
        doomed = _beside(path)
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
    if path.parent.is_dir():
        _drop_leftovers(path)


def _place(target: Path, write: Callable[[Path], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _drop_leftovers(target)
    temporary = _beside(target)
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    """A free temporary name with the process and machine that use it."""
    return target.with_name(f"{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}")


def _drop_leftovers(target: Path) -> None:
    """Remove what killed processes left beside `target`."""
    for path in target.parent.glob(f"{TEMPORARY}*"):
        try:
            if _is_leftover(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue


def _is_leftover(path: Path) -> bool:
    host, _, pid = path.name.removeprefix(TEMPORARY).rpartition("-")[0].rpartition("-")
    if host == socket.gethostname() and pid.isdigit():
        return int(pid) != os.getpid() and not psutil.pid_exists(int(pid))
    return time.time() - path.stat().st_ctime > FOREIGN_LEFTOVER_S
