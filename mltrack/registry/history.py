"""Which version was champion when, and why: one tag of the registered model per change.

Invariant: a change is written once and never rewritten, so that concurrent writers lose nothing. A change by the gate
is a function of the versions and of the last change by a person: every process that computes it writes the same."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

PREFIX = "mltrack.champion."
SETTLED = "mltrack.champion.settled"
"""The tag that says up to which version none must be read again."""
KINDS = ("gate", "promote", "evaluate", "rollback", "delete", "outside")
MAX_CHANGES = 100
MAX_WHY = 600


@dataclass(frozen=True, kw_only=True)
class Change:
    """From this change on, `version` was champion."""

    version: int | None
    """None: there was no champion."""
    before: int | None
    why: str
    kind: str
    """gate: a finished run; promote: by hand; evaluate: both on one data set; rollback; delete; outside: the alias was
    moved by other means.
    """
    barrier: int
    """The highest version at that time; the gate continues with the next one."""
    at_ms: int
    mark: str = ""
    """Tells changes by people apart; for the gate, the mark of the change that it continues from."""

    @property
    def by_gate(self) -> bool:
        return self.kind == "gate"

    @property
    def key(self) -> str:
        """Name of its tag. The gate's has its version and the mark it continues from: two relays write one tag."""
        return f"{PREFIX}{self.barrier:06d}.{'gate' if self.by_gate else 'hand'}.{self.mark or 'start'}"

    @property
    def order(self) -> tuple[int, bool, int, str]:
        """Place in the history: a person's decision comes after those on the versions of that time."""
        return self.barrier, not self.by_gate, self.at_ms, self.mark

    @property
    def text(self) -> str:
        """The tag's value."""
        return json.dumps(
            {
                "version": self.version,
                "before": self.before,
                "kind": self.kind,
                "at_ms": self.at_ms,
                "why": self.why[:MAX_WHY],
            }
        )

    @property
    def when(self) -> str:
        """Date and time, UTC."""
        try:
            return datetime.fromtimestamp(self.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        except (ValueError, OverflowError, OSError):
            return "at no time"


def new_mark(at_ms: int) -> str:
    """A unique mark."""
    return f"{at_ms}-{uuid.uuid4().hex[:6]}"


def read_history(tags: Mapping[str, str]) -> list[Change]:
    """The changes that count, oldest first; other tags are left out.

    A change by the gate counts only if it continues from the last change by a person, not if it was computed while a
    person decided."""
    found = sorted(
        (change for key, text in tags.items() if (change := _parse(key, text)) is not None),
        key=lambda change: change.order,
    )
    counted: list[Change] = []
    last_mark = ""
    for change in found:
        if not change.by_gate:
            last_mark = change.mark
        if change.mark == last_mark:
            counted.append(change)
    return counted


def last_decision(history: Sequence[Change]) -> Change | None:
    """The last change by a person."""
    return next((change for change in reversed(history) if not change.by_gate), None)


@dataclass(frozen=True)
class Settled:
    """Each version up to this number was judged and has its run's decision; the champion is that of the last change."""

    number: int = 0
    mark: str = ""
    """Of the last change by a person at that time: after another one, judging begins there."""

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> Settled:
        """Parse the tag; nothing is settled if it is missing, as up to version 0.1, or invalid."""
        number, _, mark = tags.get(SETTLED, "").partition(" ")
        return cls(int(number), mark) if number.isdecimal() else cls()

    @property
    def text(self) -> str:
        """The tag's value."""
        return f"{self.number} {self.mark}".rstrip()


def outdated(history: Sequence[Change]) -> list[Change]:
    """The oldest changes beyond `MAX_CHANGES`, except the last decision, from which the later ones follow."""
    return [change for change in history[: max(0, len(history) - MAX_CHANGES)] if change is not last_decision(history)]


def champions_in_turn(history: Sequence[Change]) -> list[int]:
    """The champions as a stack, the present one last: a rollback removes those after the one that it restores."""
    stack: list[int] = []
    for change in history:
        if change.version is None:
            continue
        if change.kind == "rollback" and change.version in stack:
            while stack[-1] != change.version:
                stack.pop()
        elif not stack or stack[-1] != change.version:
            stack.append(change.version)
    return stack


def _parse(key: str, text: str) -> Change | None:
    parts = key.removeprefix(PREFIX).split(".")
    if not key.startswith(PREFIX) or len(parts) != 3 or not parts[0].isdigit():
        return None
    try:
        held = json.loads(text)
        kind = str(held["kind"])
        version, before = (None if held[name] is None else int(held[name]) for name in ("version", "before"))
        mark = "" if parts[2] == "start" else parts[2]
        return (
            Change(
                version=version,
                before=before,
                why=str(held["why"]),
                kind=kind,
                barrier=int(parts[0]),
                at_ms=int(held["at_ms"]),
                mark=mark,
            )
            if kind in KINDS
            else None
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
