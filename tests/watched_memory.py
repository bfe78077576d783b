"""How much memory of its own a process comes to hold; imported by the programs that tests start, so it needs nothing
but Linux.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def anonymous_kb() -> int:
    """What this process has allocated; what is mapped from files apart."""
    return int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")).split()[
            1
        ]
    )


@contextmanager
def watched() -> Iterator[list[int]]:
    """The samples of `anonymous_kb` that were taken inside."""
    samples, over = [anonymous_kb()], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            samples.append(anonymous_kb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        over.set()
        watcher.join()
