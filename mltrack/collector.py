"""Python's garbage collector, kept from walking again and again over what is imported and built before a training.

Invariant: after the training it looks at what it looked at before, as often as before. Importing torch and transformers
leaves 630,000 objects and 11,000 that are garbage: with the interpreter's thresholds a seventh of that time goes into
looking for them. A collection of the oldest generation during the training visits all of them, up to half a second at a
moment of its own choosing; frozen objects are not visited.

    collect_rarely()         # a process that is there for one training alone: before it imports
    with frozen(): ...       # the training
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_AS_STARTED = gc.get_threshold()
_RARELY = (100_000, 50, 100)
"""Objects that come in before the youngest are looked at; every 50th time the middle generation too, every 100th of
those all.
"""


def collect_rarely() -> None:
    """Look for garbage a hundred times less often, until `collect_as_before`; thresholds that somebody else has set
    stay.
    """
    if gc.get_threshold() == _AS_STARTED:
        gc.set_threshold(*_RARELY)


def collect_as_before() -> None:
    """Undo `collect_rarely`, where it has been called."""
    if gc.get_threshold() == _RARELY:
        gc.set_threshold(*_AS_STARTED)


@contextmanager
def frozen() -> Iterator[None]:
    """Inside, what exists at the beginning is not visited, and `collect_rarely` is over; what somebody else has frozen
    already stays so.
    """
    collect_as_before()
    thawed = gc.get_freeze_count() == 0
    if thawed:
        gc.freeze()  # with what garbage there is: to look for it first would take 0.2 s before the first step
    try:
        yield
    finally:
        if thawed:
            gc.unfreeze()


def collect_all() -> None:
    """Collect what is frozen, too: memory is short."""
    thawed = gc.get_freeze_count() > 0
    if thawed:
        gc.unfreeze()
    gc.collect()
    if thawed:
        gc.freeze()
