"""Python's garbage collector, kept from walking over everything that was imported and built before the training.

Invariant: after the training it looks at what it looked at before. A collection of the oldest generation visits every object of torch, transformers
and the data set, up to half a second at a moment of its own choosing; frozen objects are not visited.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def frozen(wanted: bool = True) -> Iterator[None]:
    """Inside, what exists at the beginning is not visited; where somebody else has frozen objects already, nothing is changed."""
    wanted = wanted and gc.get_freeze_count() == 0
    if wanted:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if wanted:
            gc.unfreeze()


def collect_between_epochs(wanted: bool = True) -> None:
    """Collect at a moment at which nothing is waiting for the next step."""
    if wanted:
        gc.collect()
