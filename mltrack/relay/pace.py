"""How much is asked of a server at once, and how long its answer may take.

Invariant: a server that is slow, but answers, gets everything: the wait grows first, then the requests become smaller; a quick answer
makes them larger again.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_BATCH, SMALLEST_BATCH = 1000, 25
"""Points a request."""
SHORTEST_S, LONGEST_S = 5.0, 20.0


@dataclass
class Pace:
    """What the next request may be."""

    timeout_s: float = SHORTEST_S
    batch: int = LARGEST_BATCH

    @property
    def has_waited_longest(self) -> bool:
        """True where the wait does not grow any more."""
        return self.timeout_s >= LONGEST_S

    @property
    def has_asked_for_little(self) -> bool:
        """True where neither the longest wait nor much smaller requests have helped."""
        return self.has_waited_longest and self.batch <= LARGEST_BATCH // 4

    def timed_out(self) -> None:
        """The last request was not answered in time."""
        if self.timeout_s < LONGEST_S:
            self.timeout_s = min(LONGEST_S, 2 * self.timeout_s)
        else:
            self.batch = max(SMALLEST_BATCH, self.batch // 2)

    def answered(self, seconds: float) -> None:
        """The last request took so long."""
        if seconds < self.timeout_s / 4:
            self.batch = min(LARGEST_BATCH, 2 * self.batch)
