"""One record as bytes: `<crc32, 8 hex digits> <payload bytes, hex> <payload: JSON>\\n`.

Invariant: damaged bytes cost only the records that contain them. The length lets a reader skip a damaged line end, and
the line end lets it find the next record after a damaged length.

JSON is Python's dialect: `NaN`, `Infinity` and `-Infinity` stand for themselves.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HEADER = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{1,8}) ")
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Frame:
    """One intact record and where it ends."""

    record: dict[str, Any]
    end: int
    """Offset of the next byte, within the bytes that were read."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are not a record."""

    start: int
    end: int
    torn: bool
    """True at the end of the bytes: a record that is not (yet) completely written."""


def encode(record: dict[str, Any]) -> bytes:
    """The bytes of a record. Raises TypeError, ValueError or RecursionError if a value is not JSON."""
    return framed(_encode(record))


def framed(text: str) -> bytes:
    """The bytes of a record that is already JSON, in ASCII."""
    payload = text.encode("ascii")
    return b"%08x %x %b\n" % (zlib.crc32(payload), len(payload), payload)


def decode(data: bytes) -> Iterator[Frame | Damage]:
    """Every record in `data` in order, with the damaged parts between them."""
    position, size = 0, len(data)
    while position < size:
        frame = _frame_at(data, position)
        if frame is not None:
            yield frame
            position = frame.end
            continue
        line_end = data.find(b"\n", position)
        if line_end < 0:
            yield Damage(position, size, torn=True)
            return
        yield Damage(position, line_end + 1, torn=False)
        position = line_end + 1


def _frame_at(data: bytes, position: int) -> Frame | None:
    header = _HEADER.match(data, position)
    if header is None:
        return None
    start = header.end()
    end = start + int(header[2], 16)
    payload = data[start:end]
    if end >= len(data) or zlib.crc32(payload) != int(header[1], 16):
        return None
    try:
        record = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return Frame(record, end + 1) if isinstance(record, dict) and isinstance(record.get("type"), str) else None
