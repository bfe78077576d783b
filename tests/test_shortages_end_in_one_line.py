"""What a machine runs out of (memory, descriptors, processes, a worker process) ends in one line that says what to
change.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from mltrack import Callback, TrainModelRequest, TrainModelUseCase
from mltrack.cli import run as command_line
from mltrack.config import TrainingConfig
from mltrack.data.batches import TrainingBatches, load_batches
from mltrack.errors import TrainingError
from mltrack.models.foreign_errors import one_line
from mltrack.shortage import shortage_of

pytestmark = [
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


@pytest.fixture
def dataset(records_file):
    return tiny.data(records_file("text_classification", 200), "text_classification")[1]


def groups(dataset, num_workers: int = 2):
    config = TrainingConfig(batch_size=2, num_workers=num_workers)
    return TrainingBatches(dataset, config, rank=0, world=1, pin=False).groups(0, 0)


def raised(call: Callable[[], object]) -> str:
    """The one line that a call ends with."""
    with pytest.raises(TrainingError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def descriptors(more: int) -> Iterator[None]:
    """So many more file descriptors than are in use now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    filled = [os.open(os.devnull, os.O_RDONLY)]  # no gap is left among the numbers
    while filled[-1] < highest:
        filled.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(highest, filled[-1]) + 1 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in filled:
            os.close(descriptor)


def test_batches_that_are_held_take_no_descriptor_and_no_shared_memory(dataset):
    with descriptors(20):
        held = list(groups(dataset))
    expected = list(groups(dataset, num_workers=0))
    assert len(held) > 40
    for ours, theirs in zip(held, expected, strict=True):
        for name, tensor in theirs[0].tensors.items():
            assert torch.equal(ours[0].tensors[name], tensor)
            assert not ours[0].tensors[name].is_shared()


@pytest.mark.parametrize("more", [1, 9])
def test_workers_for_which_no_descriptor_is_left(dataset, more):
    with descriptors(more):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        line = raised(lambda: next(groups(dataset, num_workers=4)))
    assert "num_workers: 4" in line
    assert f"`ulimit -n` (now {limit:,}" in line
    assert "--num-workers 0" in line


@pytest.mark.skipif(os.getuid() != 0, reason="another user's limit takes root")
def test_workers_that_are_one_process_too_many(dataset):
    """The limit is another user's, in a process of its own: the superuser has none."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setuid(54321)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        try:
            next(groups(dataset))
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as said:
        line = said.read()
    assert line.startswith("TrainingError: num_workers: 2")
    assert "`ulimit -u` (now 1)" in line


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "/dev/shm"), (errno.ENOMEM, "free memory"), (errno.EACCES, "--num-workers 0")]
)
def test_workers_whose_semaphores_or_memory_cannot_be_had(dataset, monkeypatch, code, remedy):
    def none(*_args, **_named):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", none)
    line = raised(lambda: next(groups(dataset)))
    assert os.strerror(code) in line
    assert remedy in line


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "memory"), (signal.SIGBUS, "/dev/shm")], ids=["SIGKILL", "SIGBUS"]
)
def test_a_worker_that_is_killed(dataset, number, reason):
    rest = groups(dataset)
    next(rest)
    worker = multiprocessing.active_children()[0].pid
    os.kill(worker, number)
    line = raised(lambda: list(rest))
    assert f"pid {worker}" in line
    assert reason in line
    assert "--num-workers 0" in line


class Killer(Callback):
    """Has another process send a signal to the workers at the third step."""

    def __init__(self, number: int):
        self.number = number

    def on_step(self, trainer, metrics):
        if trainer.state.step == 3:
            for worker in multiprocessing.active_children():
                subprocess.run(["kill", f"-{int(self.number)}", str(worker.pid)], check=True)


def test_a_worker_that_is_killed_while_the_trainer_computes(trainer):
    made = trainer(batch_size=1, num_epochs=3, num_workers=1, callbacks=[Killer(signal.SIGKILL)])
    assert "a worker process of the data loader (pid " in raised(made.train)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_costs_no_worker(trainer, number):
    made = trainer(batch_size=4, num_epochs=2, num_workers=1, callbacks=[Killer(number)])
    made.train()
    assert made.state.step == made.plan.total_steps
    assert multiprocessing.active_children() == []


def fails_by_value(_):
    raise ValueError("an odd record")


def fails_by_memory(_):
    raise MemoryError


@pytest.mark.parametrize(
    ("collate", "said"),
    [(fails_by_value, "ValueError: an odd record"), (fails_by_memory, "out of memory")],
    ids=["ValueError", "MemoryError"],
)
def test_what_fails_inside_a_worker(dataset, collate, said):
    assert said in raised(lambda: list(load_batches(dataset, [[0, 1]], num_workers=1, collate=collate)))


def no_memory_of_torch():
    torch.empty(1 << 45, dtype=torch.float64)


def no_memory_of_numpy():
    np.empty(1 << 55)


def no_memory_of_python():
    bytearray(1 << 62)


def no_memory_of_the_system():
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def no_memory_of_cuda():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB.\nMore lines."
    )


NO_MEMORY = [no_memory_of_torch, no_memory_of_numpy, no_memory_of_python, no_memory_of_the_system, no_memory_of_cuda]


@pytest.mark.parametrize("fails", NO_MEMORY)
def test_out_of_memory_in_the_first_optimizer_step(trainer, monkeypatch, fails):
    """The optimizer's state is allocated there."""
    made = trainer()
    monkeypatch.setattr(made.optimizer, "step", lambda *_, **__: fails())
    line = raised(made.train)
    assert "out of memory at step 1" in line
    assert all(word in line for word in ("batch_size", "gradient_accumulation_steps", "gradient_checkpointing=true"))


@pytest.mark.parametrize("what", ["_evaluate", "saving.save"])
def test_out_of_memory_behind_a_step(trainer, monkeypatch, what):
    made = trainer(batch_size=2)
    holder = made.saving if "." in what else made
    monkeypatch.setattr(holder, what.rpartition(".")[2], lambda *_, **__: no_memory_of_cuda())
    line = raised(made.train)
    assert "2.00 GiB could not be allocated on the GPU" in line
    assert f"step {made.state.step + 1}" in line


@pytest.mark.parametrize("fails", NO_MEMORY)
def test_a_model_that_does_not_fit_is_not_said_to_be_unreadable(fails):
    with pytest.raises(Exception) as caught, one_line("model_name"):  # noqa: PT011  each has its own class
        fails()
    assert "out of memory" in str(shortage_of(caught.value))


def test_sizes_and_limits_are_named():
    with pytest.raises(RuntimeError) as caught:
        no_memory_of_torch()
    assert "281474976710656 bytes" in str(shortage_of(caught.value))
    assert "ulimit -n" in str(shortage_of(OSError(errno.EMFILE, "Too many open files", "records.jsonl")))
    assert "ulimit -u" in str(shortage_of(RuntimeError("can't start new thread")))
    assert shortage_of(ValueError("memory")) is None


def test_other_commands_say_it_in_one_line(monkeypatch, capsys, records_file):
    monkeypatch.setattr("mltrack.cli.data.inspect", lambda *_: no_memory_of_numpy())
    path: Path = records_file("text_classification")
    assert command_line(["data", "inspect", str(path)]) == 1
    assert "out of memory" in capsys.readouterr().err


class SaysNothing(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class IsInterrupted(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("raised", "named", "exit_code"),
    [
        (SaysNothing(), "SaysNothing", 1),
        (IsInterrupted(), "IsInterrupted", 1),
        (KeyboardInterrupt(), "interrupted by SIGINT", 130),
    ],
    ids=["error", "interruption", "keyboard"],
)
def test_an_error_that_cannot_say_what_it_is_is_named_by_its_class(
    raised: BaseException, named: str, exit_code: int
) -> None:
    def stop_requested() -> int | None:
        raise raised

    request = TrainModelRequest(task="text_classification", dataset_path="none.jsonl")
    response = TrainModelUseCase(stop_requested=stop_requested).execute(request)
    assert (response.success, response.errors, response.exit_code) == (False, [named], exit_code)
    assert shortage_of(raised) is None
