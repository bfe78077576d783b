"""Values made one ahead of their use.

Invariant: values keep their order and are made one at a time; an error is raised in place of its value; closing the
generator waits for the value being made."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Value = TypeVar("Value")


def ahead(values: Iterable[Value]) -> Generator[Value, None, None]:
    """The same values (none is None); a thread makes the next one while the caller uses the last one. A caller that
    stops early must close the generator, which ends the thread.
    """
    made = iter(values)
    with ThreadPoolExecutor(1, thread_name_prefix="mltrack-ahead") as thread:
        coming = thread.submit(next, made, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, made, None)
            yield value
