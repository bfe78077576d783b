"""Sends a batch of which the store may refuse a part: finds that part and delivers the rest.

Invariant: an item is given up only if it was refused alone, and only if the store takes anything at all: between two
attempts it must take a write that is known to be good."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from mltrack.store.refusal import StoreFailed, StoreRejected, StoreUnavailable

ATTEMPTS = 3
"""How often a batch, and finally a single item, is sent to a store that answers with a failure."""
FAILED_ALONE = 4
"""If this many single items failed and none was taken before, the store is at fault, not the items."""
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
        probe: another write to the same place. False if none is known to be good; then a failure of all items is the
            store's.

    Raises:
        StoreUnavailable: by `send` or `probe`, if the store is unavailable or takes nothing.
        StoreRejected: by `probe`, if the run takes nothing at all.
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
    """None if the store took the items; else its error."""
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
