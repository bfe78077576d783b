"""Values made one ahead of their use.

Invariant: they come in order, one at a time is being made, an error comes where the value would have, and a generator
that is closed waits for what is being made."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Value = TypeVar("Value")


def ahead(values: Iterable[Value]) -> Generator[Value, None, None]:
    """The same values (none is None); a thread makes the next one while the caller has the last one. Whoever stops
    early closes it: the thread ends.
    """
    made = iter(values)
    with ThreadPoolExecutor(1, thread_name_prefix="mltrack-ahead") as thread:
        coming = thread.submit(next, made, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, made, None)
            yield value
