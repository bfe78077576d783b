"""Values made one ahead of their use.

Invariant: they come in order, one at a time is being made, an error comes where the value would have, and a generator that is closed waits for what
is being made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Value = TypeVar("Value")


def ahead(values: Iterable[Value]) -> Iterator[Value]:
    """The same values (none is None); a thread makes the next one while the caller has the last one."""
    made = iter(values)
    with ThreadPoolExecutor(1, thread_name_prefix="mltrack-ahead") as thread:
        coming = thread.submit(next, made, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, made, None)
            yield value
