"""A batch of which the store may refuse a part: that part is found, and the rest goes through.

Invariant: nothing is given up that was not refused alone, and nothing while the store takes nothing at all: between two
attempts it must take a write that is known to be good."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from mltrack.store.refusal import StoreFailed, StoreRejected, StoreUnavailable

ATTEMPTS = 3
"""How often a batch, and at last a single item, is sent to a store that answers with a failure."""
FAILED_ALONE = 4
"""So many items that failed one by one, and nothing that went through before them: it is the store, not the items."""
PAUSE_S = 0.5
"""After the first failure; doubled after the next."""

Item = TypeVar("Item")
Refused = tuple[Item, StoreRejected | StoreFailed]


def send_isolated(
    items: Sequence[Item], send: Callable[[Sequence[Item]], None], probe: Callable[[], bool]
) -> list[Refused[Item]]:
    """Send `items` in order; returns those that the store refuses, each with its reason.

    Args:
        send: sends a part of the items in one request; safe to repeat.
        probe: another write to the same place. False where there is none that is known to be good; then a failure of
            all the items is the store's.

    Raises:
        StoreUnavailable: of `send`, where the store is away or takes nothing; of `probe`.
        StoreRejected: of `probe`: the run takes nothing at all.
    """
    known_good, accepted, failed_alone = True, 0, 0

    def watched(part: Sequence[Item]) -> None:
        nonlocal accepted, failed_alone
        try:
            send(part)
        except StoreFailed as error:
            failed_alone += len(part) == 1
            if failed_alone >= FAILED_ALONE * ATTEMPTS and not accepted and not known_good:
                raise StoreUnavailable(str(error)) from error
            raise
        accepted += len(part)

    def checked() -> None:
        nonlocal known_good
        known_good = probe()

    refused = _parts(items, watched, checked, attempts=ATTEMPTS)
    failures = [error for _, error in refused if isinstance(error, StoreFailed)]
    if failures and not known_good and len(refused) == len(items):
        raise failures[0]
    return refused


def _parts(
    items: Sequence[Item], send: Callable[[Sequence[Item]], None], probe: Callable[[], None], *, attempts: int
) -> list[Refused[Item]]:
    error = _failure(items, send, probe, attempts=ATTEMPTS if len(items) == 1 else attempts)
    if error is None:
        return []
    if len(items) == 1:
        return [(items[0], error)]
    half = len(items) // 2
    return _parts(items[:half], send, probe, attempts=1) + _parts(items[half:], send, probe, attempts=1)


def _failure(
    items: Sequence[Item], send: Callable[[Sequence[Item]], None], probe: Callable[[], None], *, attempts: int
) -> StoreRejected | StoreFailed | None:
    """None where the store took the items; its answer where it refuses them together."""
    for attempt in itertools.count(1):
        try:
            send(items)
            return None
        except StoreRejected as error:
            probe()
            return error
        except StoreFailed as error:
            probe()
            if attempt == attempts:
                return error
            time.sleep(random.uniform(0.5, 1.0) * PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")
