"""The size and frequency of requests to a server, and how long its answer may take.

Invariant: a slow server that answers gets everything: first the wait grows, then the requests become smaller; a quick
answer makes them larger again. However many relays there are, each waits for answers only a small share of its time."""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_BATCH, SMALLEST_BATCH = 1000, 25
"""Points per request."""
SHORTEST_S, LONGEST_S = 5.0, 20.0
SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 0.5, 15.0
"""Between two requests with new records."""
ANSWERS_AN_INTERVAL = 20
"""A relay waits for answers at most a twentieth of the time: forty keep two of the server's workers busy without a
queue.
"""
OLD_S = 3600.0
"""A run of this age is delivered every LONGEST_INTERVAL_S."""


@dataclass
class Pace:
    """The limits of the next request."""

    timeout_s: float = SHORTEST_S
    batch: int = LARGEST_BATCH
    answer_s: float = 0.0
    """How long an answer takes: rises at once with a slower answer, falls gradually."""

    @property
    def has_waited_longest(self) -> bool:
        """True if the wait no longer grows."""
        return self.timeout_s >= LONGEST_S

    @property
    def has_asked_for_little(self) -> bool:
        """True if neither the longest wait nor much smaller requests have helped."""
        return self.has_waited_longest and self.batch <= LARGEST_BATCH // 4

    def timed_out(self) -> None:
        """The last request was not answered in time."""
        self.answer_s = max(self.answer_s, self.timeout_s)
        if self.timeout_s < LONGEST_S:
            self.timeout_s = min(LONGEST_S, 2 * self.timeout_s)
        else:
            self.batch = max(SMALLEST_BATCH, self.batch // 2)

    def answered(self, seconds: float) -> None:
        """The last request took this long."""
        self.answer_s = max(seconds, 0.8 * self.answer_s + 0.2 * seconds)
        if seconds < self.timeout_s / 4:
            self.batch = min(LARGEST_BATCH, 2 * self.batch)

    def interval_s(self, age_s: float) -> float:
        """How long new points may wait for the next request, in a run of this age."""
        wanted = max(ANSWERS_AN_INTERVAL * self.answer_s, LONGEST_INTERVAL_S * age_s / OLD_S)
        return min(LONGEST_INTERVAL_S, max(SHORTEST_INTERVAL_S, wanted))
