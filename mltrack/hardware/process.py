"""What speeds a whole process up, and must be done before torch is imported.

Invariant: it is asked for by whoever owns the process, never by importing mltrack; what the user has set in the
environment wins.

    from mltrack.hardware import prepare_process

    prepare_process()                       # `mltrack train` begins so; a script of your own may
    from mltrack import AdvancedTrainer
"""

from __future__ import annotations

from collections.abc import Mapping

from mltrack.collector import collect_rarely
from mltrack.config.speedups import Speedups
from mltrack.hardware.cpu import fit_threads, keep_freed_memory, yield_idle_cores


def prepare_process(speedups: str | Mapping[str, str] | None = None) -> None:
    """Threads that fit the machine, memory that stays with the process, a garbage collector that does not look at each
    import.

    Args:
        speedups: a value of the option of that name, of which `allocator` counts here.
    """
    yield_idle_cores()
    fit_threads()
    if Speedups.of(speedups).allocator:
        keep_freed_memory()
    collect_rarely()
