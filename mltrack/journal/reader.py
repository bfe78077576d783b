"""Reads a journal, from any offset, even while it is being written.

Invariant: a returned record was written completely and has the fields of its type. Damaged bytes, records without their
fields, and record types of a later mltrack are skipped and reported once. A torn tail is the end of the file.

    reader = JournalReader(path)
    for record in reader.read_new():
        ...
    reader.offset       # continue from here later
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mltrack.errors import TrackingError
from mltrack.journal.frame import Damage, Frame, decode
from mltrack.journal.records import FORMAT_VERSION, SHAPES, Record, problem

CHUNK_BYTES = 4 << 20
MAX_ODD_NAMED = 100
_HEAD_BYTES = 4096


class JournalReader:
    """A position in a journal file.

    Args:
        path: the file; it may not exist yet.
        offset: where to begin: the `offset` of another reader.
    """

    def __init__(self, path: Path | str, offset: int = 0):
        self.path = Path(path)
        self.offset = offset
        self.damaged: list[tuple[int, int]] = []
        """(start, end) of the damaged parts that were skipped, in bytes of the file."""
        self.odd: list[str] = []
        """The first records that were skipped, one line each: the place and the problem."""
        self.unknown: set[str] = set()
        """Types of records that this mltrack does not know and skips."""
        self._is_checked = offset == 0

    def read_new(self) -> Iterator[Record]:
        """The records written since the last call; `offset` is after each one as it is yielded.

        Raises:
            TrackingError: the journal was written by a newer mltrack.
        """
        if self.offset:
            self._check_head()
        while True:
            chunk = self._chunk()
            base, consumed = self.offset, 0
            for item in decode(chunk):
                if isinstance(item, Damage):
                    if item.torn:
                        break
                    self.damaged.append((base + item.start, base + item.end))
                    consumed = item.end
                else:
                    start, consumed = base + consumed, item.end
                    _refuse_newer(item.record, self.path)
                    kind = item.record.get("type")
                    if isinstance(kind, str) and kind not in SHAPES:
                        self.unknown.add(kind)
                        continue
                    if wrong := problem(item.record):
                        if len(self.odd) < MAX_ODD_NAMED:
                            self.odd.append(f"record at byte {start}: {wrong}")
                        continue
                    self.offset = base + consumed
                    yield item.record
            self.offset = base + consumed
            if consumed == 0:
                return

    def _check_head(self) -> None:
        """Check the first record, which a reader from an offset skipped: a newer mltrack may have begun the file."""
        if not self._is_checked and self.path.exists():
            with self.path.open("rb") as file:
                first = next(decode(file.read(_HEAD_BYTES)), None)
            if isinstance(first, Frame):
                _refuse_newer(first.record, self.path)
            self._is_checked = True

    def _chunk(self) -> bytes:
        """Bytes from the offset on, with at least one whole line if there is one."""
        if not self.path.exists():
            return b""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            chunk = file.read(CHUNK_BYTES)
            while chunk and b"\n" not in chunk:
                more = file.read(CHUNK_BYTES)
                if not more:
                    break
                chunk += more
        return chunk


def _refuse_newer(record: Record, path: Path) -> None:
    version = record.get("format_version") if record.get("type") == "journal" else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise TrackingError(
            f"{path}: journal format {version} is newer than {FORMAT_VERSION}, the newest that this mltrack reads; "
            f"install mltrack {record.get('mltrack_version') or 'of the version that wrote it'} or later"
        )


def read_tail(path: Path | str, num_bytes: int) -> list[Record]:
    """The intact records in the last bytes of a journal."""
    with Path(path).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
        return [item.record for item in decode(file.read()) if isinstance(item, Frame) and problem(item.record) is None]


def read_journal(path: Path | str) -> list[Record]:
    """All intact records of a journal."""
    return list(JournalReader(path).read_new())
