"""Copies a file, or a folder and its content, entry by entry.

Invariant: a bad entry (a broken link, a pipe, a file that may not be read) is reported in one line and affects no other
entry. A fault of the target, such as a full disk, raises."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from mltrack.errors import TrackingError, printable
from mltrack.store import artifacts, placement
from mltrack.store.refusal import StoreUnavailable

_OF_THE_NAME = {errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR}


def copy_each(
    source: Path,
    target: Path,
    report: Callable[[str], None],
    *,
    check: Callable[[Path], object],
    immutable: bool = False,
) -> None:
    """Copy `source` to `target`, beside what is in that folder already. Links are followed, but not in a circle.

    Args:
        report: takes a line about each entry that is left out.
        check: raises TrackingError for an entry to leave out.
        immutable: as in `placement.link_or_copy`.

    Raises:
        OSError, StoreUnavailable: `target` cannot be written.
    """
    waiting: list[tuple[Path, Path, tuple[Path, ...]]] = [(source, target, ())]
    while waiting:
        path, there, above = waiting.pop()
        try:
            check(path)
            if not path.is_dir():
                with artifacts.reading(path, there.parent):
                    there.parent.mkdir(parents=True, exist_ok=True)
                    if there.is_symlink() or there.exists():
                        there.unlink()
                    placement.link_or_copy(path, there, immutable=immutable)
                continue
            entries, here = _entries(path), path.resolve()
            if here in above:
                raise TrackingError(f"{path}: is a link to a folder that it lies in")
            there.mkdir(parents=True, exist_ok=True)
            waiting += [(one, there / one.name, (*above, here)) for one in entries]
        except StoreUnavailable:
            raise
        except TrackingError as error:
            report(printable(str(error)))
        except OSError as error:
            if error.errno not in _OF_THE_NAME:
                raise
            report(printable(f"{path}: cannot be copied: {error.strerror}"))


def _entries(folder: Path) -> list[Path]:
    """In reverse order, because they are taken from the end."""
    try:
        return sorted(folder.iterdir(), reverse=True)
    except OSError as error:
        raise artifacts.UnreadableFile(f"{folder}: cannot be read: {error.strerror or error}") from error
