"""Processes that collate batches ahead of the training.

Invariant: a batch is sent through a pipe as bytes, without shared memory or a file descriptor; only the trainer handles
signals, so a worker lives as long as it is needed; a shortage of resources ends in one line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mltrack.errors import MltrackError, TrainingError, text_of
from mltrack.shortage import failed_in_worker, not_started, shortage_of

Collate = Callable[..., dict[str, torch.Tensor]]


class AsArrays:
    """Collates into NumPy arrays, which pickle copies; tensors would use shared memory, each with a descriptor."""

    def __init__(self, collate: Collate):
        self._collate = collate

    def __call__(self, records: Any) -> dict[str, Any]:
        return {name: tensor.numpy() for name, tensor in self._collate(records).items()}


def leave_signals_to_the_trainer(_: int) -> None:
    """Ignore signals to the whole process group, which the trainer handles, and SIGTERM from any other process."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_trainer_says_so, daemon=True).start()


def _end_when_the_trainer_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def from_workers(loader: DataLoader[Any], *, pin: bool) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of a loader with worker processes and `AsArrays`.

    Raises:
        TrainingError: the workers could not be started, or one of them failed or was killed.
    """
    others = multiprocessing.active_children()
    try:
        batches = iter(loader)
    except OSError as error:
        for started in multiprocessing.active_children():
            if started not in others:
                started.kill()
        _forget_half_made(error)
        raise not_started(error, loader.num_workers) from error
    while True:
        try:
            arrays = next(batches)
        except StopIteration:
            return
        except MltrackError:
            raise
        except Exception as error:
            raise shortage_of(error) or failed_in_worker(error) or _unreachable(error) from error
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        yield {name: tensor.pin_memory() for name, tensor in tensors.items()} if pin else tensors


def _forget_half_made(error: OSError) -> None:
    """Prevent a second traceback from torch's iterator when it is deleted before its construction is complete."""
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, _MultiProcessingDataLoaderIter):
            owner._shutdown = True
        trace = trace.tb_next


def _unreachable(error: Exception) -> TrainingError:
    said = " ".join(text_of(error).split()) or type(error).__name__
    return TrainingError(f"the worker processes of the data loader cannot be reached ({said}); use --num-workers 0")
