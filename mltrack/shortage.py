"""What a machine has run out of: memory, file descriptors, processes, or the room that a worker process needs.

Invariant: each shortage is one line that says what ran out, where, and which option or limit to change. torch is not
imported here: errors are recognized by class name and text.

    with shortages_named(lambda: "step 1"):
        optimizer.step()
"""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mltrack.errors import MltrackError, TrainingError, text_of

_ALLOCATION_FAILED = (
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)
"""In the text of errors whose class does not tell."""
_SIZE = re.compile(r"(?:[Tt]ried|[Uu]nable) to allocate ([\d.,]+ \w+)")
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]+)|exited unexpectedly)"
)
_IN_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process")
_NO_DESCRIPTOR = "Too many open files"
_NO_THREAD = "can't start new thread"


def is_out_of_memory(error: BaseException) -> bool:
    """True if an allocation failed, on a GPU or on the host."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return not isinstance(error, MltrackError) and any(words in text_of(error) for words in _ALLOCATION_FAILED)


def shortage_of(error: BaseException, where: str = "") -> TrainingError | None:
    """The shortage behind an error of Python, torch or another library; None if there is none.

    Args:
        where: what was being done, such as "step 1".
    """
    if isinstance(error, MltrackError):
        return None
    at = f" at {where}" if where else ""
    text = text_of(error)
    if worker := _WORKER.search(f"{text_of(error.__cause__)} {text}"):
        return TrainingError(f"{_died(worker, at)}; use --num-workers 0, or free memory for the workers")
    if is_out_of_memory(error) or ((in_worker := _IN_WORKER.search(text)) and in_worker[1] == "MemoryError"):
        size = _SIZE.search(text)
        what = f": {size[1]} could not be allocated" if size else ""
        return TrainingError(
            f"out of memory{at}{what} on {'the GPU' if 'CU' in text else 'this machine'}; use a smaller batch_size with"
            " more gradient_accumulation_steps, a smaller max_length, gradient_checkpointing=true, or a smaller model"
        )
    if _NO_DESCRIPTOR in text or (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
        return TrainingError(f"too many open files{at}; {_remedy('n', resource.RLIMIT_NOFILE)}")
    if _NO_THREAD in text:
        return TrainingError(f"no further thread can be started{at}; {_remedy('u', resource.RLIMIT_NPROC)}")
    return None


@contextmanager
def shortages_named(where: Callable[[], str]) -> Iterator[None]:
    """Inside, a shortage is raised as a one-line error.

    Raises:
        TrainingError: something ran out.
    """
    try:
        yield
    except Exception as error:
        shortage = shortage_of(error, where())
        if shortage is None:
            raise
        raise shortage from error


def not_started(error: OSError, num_workers: int) -> TrainingError:
    """The error of worker processes that could not be started."""
    remedies = {
        errno.EMFILE: f", or {_remedy('n', resource.RLIMIT_NOFILE)}",
        errno.ENFILE: ", or close files: the whole machine has no descriptor left",
        errno.EAGAIN: f", or {_remedy('u', resource.RLIMIT_NPROC)}",
        errno.ENOMEM: ", or free memory",
        errno.ENOSPC: ", or make room in /dev/shm (docker run --shm-size)",
    }
    remedy = remedies.get(error.errno or 0, "")
    return TrainingError(
        f"num_workers: {num_workers} worker processes could not be started ({error.strerror or error}); use"
        f" --num-workers 0{remedy}"
    )


def failed_in_worker(error: Exception) -> TrainingError | None:
    """An error that a worker process sent, as one line without its traceback; None for any other error."""
    text = text_of(error)
    if not _IN_WORKER.search(text):
        return None
    said = [line for line in text.splitlines() if line.strip()][-1].strip()
    return TrainingError(f"a worker process of the data loader failed: {said}; use --num-workers 0")


def _died(worker: re.Match[str], at: str) -> str:
    """The worker that ended, and the probable reason."""
    signal_name = (worker[2] or "").strip()
    reasons = {"Killed": ", as when memory runs out", "Bus error": ", as when /dev/shm is full"}
    how = f"was killed{at} by a signal ({signal_name}{reasons.get(signal_name, '')})" if signal_name else f"exited{at}"
    return f"a worker process of the data loader (pid {worker[1].strip()}) {how}"


def _remedy(letter: str, limit: int) -> str:
    now, most = resource.getrlimit(limit)
    shown = "the system's own" if now == resource.RLIM_INFINITY else f"{now:,}"
    highest = "" if most in (now, resource.RLIM_INFINITY) else f", at most {most:,}"
    return f"raise the limit with `ulimit -{letter}` (now {shown}{highest})"
