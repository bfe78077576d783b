"""Files brought into a local artifact root without a second copy of their bytes.

Invariant: a reader of the root sees a file or folder whole or not at all (temporary sibling, then one rename), and the file that was given is never written to.
A large file becomes a hard link, so it must be one that nobody rewrites in place: checkpoints are such, logs are not and are copied by size.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

LINK_FROM_BYTES = 1 << 20
TEMPORARY = ".mltrack-"
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link from LINK_FROM_BYTES on, a copy below it and where the file system gives no link; `target` must not exist."""
    if source.stat().st_size >= LINK_FROM_BYTES:
        try:
            os.link(source, target)
            return
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
    shutil.copyfile(source, target)


def place_file(source: Path, target: Path) -> None:
    """`source` at `target`, replacing what is there."""
    _place(target, lambda temporary: link_or_copy(source, temporary))


def place_text(text: str, target: Path) -> None:
    """A text file at `target`, replacing what is there."""
    _place(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def place_tree(source: Path, target: Path, *, instead: Mapping[str, str] | None = None) -> None:
    """A folder and all in it at `target`, replacing a folder that is there.

    Args:
        instead: relative path -> text to be written in place of the source's file.
    """
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}")
    try:
        copy_tree(source, temporary, instead=instead)
        _drop_leftovers(target)
        if target.exists():
            old = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}")
            os.rename(target, old)
            os.rename(temporary, target)
            shutil.rmtree(old)
        else:
            os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_tree(source: Path, target: Path, *, instead: Mapping[str, str] | None = None) -> None:
    """The folder with links for its large files; not atomic."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(exist_ok=True)
        elif path.relative_to(source).as_posix() not in (instead or {}):
            link_or_copy(path, there)
    for name, text in (instead or {}).items():
        (target / name).write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """File or folder, which may be gone already; a folder vanishes under its name first, so that nobody reads half of it."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}")
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
    if path.parent.is_dir():
        _drop_leftovers(path)


def _place(target: Path, write: Callable[[Path], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}")
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _drop_leftovers(target: Path) -> None:
    """What a process that was killed left beside `target`; anything younger than an hour may be somebody's work in progress."""
    import time

    for path in target.parent.glob(f"{TEMPORARY}*"):
        try:
            if time.time() - path.stat().st_ctime > 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue
