"""Speeds up a whole process; must run before torch is imported.

Invariant: only the process's own program calls it, never an import of mltrack; the user's settings in the environment
win.

    from mltrack.hardware import prepare_process

    prepare_process()                       # `mltrack train` begins with it; your own script may too
    from mltrack import AdvancedTrainer
"""

from __future__ import annotations

from collections.abc import Mapping

from mltrack.collector import collect_rarely
from mltrack.config.speedups import Speedups
from mltrack.hardware.cpu import fit_threads, keep_freed_memory, yield_idle_cores


def prepare_process(speedups: str | Mapping[str, str] | None = None) -> None:
    """Fit the threads to the machine, keep freed memory in the process, and pause the garbage collector during imports.

    Args:
        speedups: a value of that option, of which only `allocator` matters here.
    """
    yield_idle_cores()
    fit_threads()
    if Speedups.of(speedups).allocator:
        keep_freed_memory()
    collect_rarely()
