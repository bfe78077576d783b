"""Python's garbage collector, which runs rarely during imports and skips existing objects during the training.

Invariant: after the training it visits the same objects as before, as often as before. Importing torch and transformers
creates many objects and little garbage: with the interpreter's thresholds a seventh of that time goes into looking for
it. A collection of the oldest generation during the training would visit them all, up to half a second at an arbitrary
moment; frozen objects are not visited.

    collect_rarely()         # in a process that only trains: before it imports
    with frozen(): ...       # the training
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_AS_STARTED = gc.get_threshold()
_RARELY = (100_000, 50, 100)
"""New objects before the youngest generation is collected; every 50th time the middle one too, every 100th of those
all.
"""


def collect_rarely() -> None:
    """Collect a hundred times less often, until `collect_as_before`; thresholds that other code has set are kept."""
    if gc.get_threshold() == _AS_STARTED:
        gc.set_threshold(*_RARELY)


def collect_as_before() -> None:
    """Undo `collect_rarely`, if it has been called."""
    if gc.get_threshold() == _RARELY:
        gc.set_threshold(*_AS_STARTED)


@contextmanager
def frozen() -> Iterator[None]:
    """Inside, objects that already exist are not visited, and `collect_rarely` is undone; objects that other code froze
    stay frozen.
    """
    collect_as_before()
    thawed = gc.get_freeze_count() == 0
    if thawed:
        gc.freeze()  # garbage included: collecting it first would delay the first step
    try:
        yield
    finally:
        if thawed:
            gc.unfreeze()


def collect_all() -> None:
    """Collect frozen objects too, when memory is short."""
    thawed = gc.get_freeze_count() > 0
    if thawed:
        gc.unfreeze()
    gc.collect()
    if thawed:
        gc.freeze()
