"""Each way in which a process may leave its tracker writes the truth into the journal, once, by the process that made
it.
"""

from __future__ import annotations

import os
import subprocess
import threading
import weakref
from pathlib import Path

import pytest
from tracked_runs import start_script

from mltrack import TrainingMetricsTracker
from mltrack.errors import Interrupted
from mltrack.journal import DiskFullError, RunDirectory, read_journal
from mltrack.tracking import ending


def ends(folder: Path) -> list[tuple[str, int]]:
    return [
        (record["status"], record["exit_code"])
        for record in read_journal(folder / "journal")
        if record["type"] == "end"
    ]


OPEN = """
import os, sys
from mltrack import TrainingMetricsTracker
tracker = TrainingMetricsTracker(sys.argv[1])
tracker.log_metric("x", 1.0, step=1)
"""
WAYS_OUT = {
    "": 0,
    "sys.exit(0)": 0,
    "sys.exit(3)": 3,
    "raise SystemExit('no data')": 1,
    "1 / 0": 1,
    "try: sys.exit(3)\nexcept SystemExit: pass": 0,
    "import code; code.InteractiveInterpreter().runcode('1 / 0')": (
        0
    ),  # a cell of a notebook: sys.last_value is set, the kernel goes on
    "os._exit(0)": None,
    "os.kill(os.getpid(), 15)": None,
}
"""What a script does that never closes its tracker, and the exit code that it leaves; None: nothing, as SIGKILL."""


@pytest.mark.skipif(not Path("/lib64").exists() and not Path("/lib").exists(), reason="glibc's on_exit")
@pytest.mark.parametrize(
    ("way_out", "left"), WAYS_OUT.items(), ids=[way.partition("\n")[0] or "the end" for way in WAYS_OUT]
)
def test_of_a_script_that_closes_nothing_the_exit_code_tells(tmp_path, way_out, left):
    process = start_script(OPEN + way_out, tmp_path / "run")
    process.communicate(timeout=60)
    directory = RunDirectory(tmp_path / "run")
    assert directory.read_exit_code() == left
    assert ends(directory.path) == []
    with TrainingMetricsTracker(directory.path, resume=True):
        assert directory.read_exit_code() is None, "that of another process"


CLOSED = """
import sys
from mltrack import TrainingMetricsTracker
from mltrack.errors import Interrupted

def loop():
    tracker = TrainingMetricsTracker(sys.argv[1])
    try:
        {way}
    finally:
        tracker.close()

{call}
"""


@pytest.mark.parametrize(
    ("way", "call", "end"),
    [
        ("pass", "loop()", ("FINISHED", 0)),
        ("1 / 0", "loop()", ("FAILED", 1)),
        ("sys.exit(0)", "loop()", ("FINISHED", 0)),
        ("raise KeyboardInterrupt", "loop()", ("KILLED", 1)),
        ("raise Interrupted(15)", "loop()", ("KILLED", 143)),
        ("pass", "try: 1 / 0\nexcept ZeroDivisionError: loop()", ("FINISHED", 0)),
        ("1 / 0", "try: [][0]\nexcept IndexError: loop()", ("FAILED", 1)),
    ],
    ids=["well", "exception", "exit-0", "keyboard", "signal", "within another's handler", "raised in a handler"],
)
def test_closed_while_an_exception_is_on_its_way(tmp_path, way, call, end):
    process = start_script(CLOSED.format(way=way, call=call), tmp_path / "run")
    process.communicate(timeout=60)
    assert ends(tmp_path / "run") == [end]


def test_an_error_at_the_address_of_one_that_was_handled_before_is_the_runs(tmp_path):
    """As after `except FileNotFoundError: tracker = ...` where there was nothing to resume."""

    def made(folder: Path) -> tuple[TrainingMetricsTracker, int]:
        try:
            raise ValueError("nothing to resume")
        except ValueError as error:
            return TrainingMetricsTracker(folder), id(error)

    tracker, address = made(tmp_path)
    others = []
    while id(error := ValueError("diverged")) != address and len(others) < 100_000:
        others.append(error)
    assert id(error) == address, "the address was not given again"
    try:
        raise error
    except ValueError:
        tracker.close()
    assert ends(tmp_path) == [("FAILED", 1)]


def test_what_leaves_the_with_is_the_runs_although_it_was_handled_when_it_began(tmp_path):
    def second_try():
        try:
            raise RuntimeError("out of memory")
        except RuntimeError as first:
            with TrainingMetricsTracker(tmp_path):
                raise first

    with pytest.raises(RuntimeError, match="out of memory"):
        second_try()
    assert ends(tmp_path) == [("FAILED", 1)]


def test_a_tracker_keeps_nothing_of_an_error_that_was_handled_when_it_was_made(tmp_path):
    class Tensor:
        pass

    def made():
        large = Tensor()
        gone.append(weakref.ref(large))
        try:
            raise ValueError("nothing to resume")
        except ValueError:
            return TrainingMetricsTracker(tmp_path)

    gone: list[weakref.ref[Tensor]] = []
    with made():
        assert gone[0]() is None


def test_a_generator_that_is_closed_is_left_well(tmp_path):
    def steps():
        with TrainingMetricsTracker(tmp_path) as tracker:
            for step in range(1, 100):
                tracker.log_metric("x", 1.0, step)
                yield step

    running = steps()
    next(running)
    running.close()
    assert ends(tmp_path) == [("FINISHED", 0)]


FORKS = """
import os, sys
from mltrack import TrainingMetricsTracker

with TrainingMetricsTracker(sys.argv[1], presumed_failed=sys.argv[2] == "training") as tracker:
    tracker.log_metric("x", 1.0, step=1)
    child = os.fork()
    if child == 0:
        tracker.log_metric("in_the_child", 2.0, step=1)
        {}
    os.waitpid(child, 0)
    tracker.log_metric("x", 3.0, step=2)
    tracker.end("FINISHED")
"""
LEAVES = [
    "sys.exit(3)",
    "sys.exit(0)",
    "raise RuntimeError('the child')",
    "os._exit(0)",
    "tracker.end('FAILED', 1); tracker.settle('FAILED', 1); tracker.close(); os._exit(0)",
]


@pytest.mark.parametrize("whose", ["own", "training"])
@pytest.mark.parametrize("leaves", LEAVES, ids=["exit-3", "exit-0", "exception", "os-exit", "close"])
def test_a_forked_child_does_not_end_the_run_of_its_parent(tmp_path, leaves, whose):
    process = start_script(FORKS.format(leaves), tmp_path / "run", whose)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    recorded = read_journal(tmp_path / "run" / "journal")
    points = [(name, record["step"]) for record in recorded if record["type"] == "metrics" for name in record["values"]]
    assert points == [("x", 1), ("in_the_child", 1), ("x", 2)]
    assert [record["type"] for record in recorded if record["type"] in ("end", "outcome")] == ["end"]
    assert ends(tmp_path / "run") == [("FINISHED", 0)]


FORKED_IN_A_LISTENER = """
import os, sys
from mltrack import Callback, TrainModelRequest, TrainModelUseCase

class Forks(Callback):
    def on_step(self, trainer, metrics):
        if trainer.state.step == 1:
            child = os.fork()
            if child == 0:
                sys.exit(3)
            print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

request = TrainModelRequest(task="text_classification", dataset_path=sys.argv[1], output_dir=sys.argv[2],
                            model_name="scratch:tiny", max_length=64, max_steps=2, offline=True)
response = TrainModelUseCase(callbacks=[Forks()]).execute(request)
print(response.status, response.run_id)
"""


def test_a_child_forked_in_a_listener_is_no_part_of_the_training(tmp_path, records_file):
    process = start_script(FORKED_IN_A_LISTENER, records_file("text_classification", 24), tmp_path / "runs")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    child, parent = out.splitlines()
    status, run_id = parent.split()
    assert (child, status) == ("child 3", "FINISHED")
    recorded = read_journal(tmp_path / "runs" / run_id / "journal")
    assert not any("mltrack.failure" in record["values"] for record in recorded if record["type"] == "tags")


def test_a_script_that_ctrl_c_ended_was_killed(tmp_path):
    process = start_script(OPEN + "raise KeyboardInterrupt", tmp_path / "run")
    process.communicate(timeout=60)
    assert RunDirectory(tmp_path / "run").read_exit_code() is None
    assert read_journal(tmp_path / "run" / "journal")[-1]["status"] == "KILLED"


def test_a_training_that_says_nothing_has_failed(tmp_path):
    TrainingMetricsTracker(tmp_path / "said-nothing", presumed_failed=True).close()
    assert ends(tmp_path / "said-nothing") == [("FAILED", 1)]
    process = start_script(OPEN.replace("sys.argv[1]", "sys.argv[1], presumed_failed=True"), tmp_path / "left")
    process.communicate(timeout=60)
    assert ends(tmp_path / "left") == [("FAILED", 1)]


def test_what_is_settled_holds_through_an_exception(tmp_path):
    def reports():
        with TrainingMetricsTracker(tmp_path) as tracker:
            tracker.settle("FINISHED", 0)
            raise RuntimeError("a picture")

    with pytest.raises(RuntimeError, match="a picture"):
        reports()
    assert ends(tmp_path) == [("FINISHED", 0)]


def test_what_is_settled_holds_for_what_follows(tmp_path):
    tracker = TrainingMetricsTracker(tmp_path, presumed_failed=True)
    tracker.settle("FINISHED", 0)
    tracker.log_metric("x", 1.0, step=1)
    tracker.close()
    assert [record["type"] for record in read_journal(tmp_path / "journal")] == ["journal", "outcome", "metrics", "end"]
    assert ends(tmp_path) == [("FINISHED", 0)]


class FullDisk:
    """The file system of a tracker's journal has no room, until it `has_room`."""

    def __init__(self, tracker: TrainingMetricsTracker):
        self._descriptor = tracker._journal._fd
        self._good, full = os.dup(self._descriptor), os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, self._descriptor)
        os.close(full)

    def has_room(self) -> None:
        os.dup2(self._good, self._descriptor)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("on_disk_full", ["stop", "continue"])
def test_an_end_that_the_disk_does_not_take_is_written_once_it_does(tmp_path, on_disk_full):
    tracker = TrainingMetricsTracker(tmp_path, on_disk_full=on_disk_full)
    disk = FullDisk(tracker)
    threading.Timer(0.5, disk.has_room).start()
    assert tracker.close() == "complete"
    assert ends(tmp_path) == [("FINISHED", 0)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_success_that_can_never_be_written_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(ending, "PATIENCE_S", 0.3)
    tracker = TrainingMetricsTracker(tmp_path, on_disk_full="continue", presumed_failed=True)
    disk = FullDisk(tracker)
    with pytest.raises(DiskFullError, match="No space left"):
        tracker.settle("FINISHED", 0)
    with pytest.raises(DiskFullError, match="No space left"):
        tracker.close()
    disk.has_room()
    tracker._close_at_exit()
    assert ends(tmp_path) == [("FAILED", 1)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_at_the_end_does_not_hide_the_error_of_the_loop(tmp_path):
    def loop():
        with TrainingMetricsTracker(tmp_path) as tracker:
            disks.append(FullDisk(tracker))
            raise RuntimeError("the loop's own")

    disks: list[FullDisk] = []
    with pytest.raises(RuntimeError, match="the loop's own"):
        loop()
    disks[0].has_room()


def test_a_trainer_of_its_own_tracker_says_how_it_ended(trainer):
    made = trainer(name="nan", learning_rate=1e30, num_epochs=3)
    with pytest.raises(Exception, match=r"is (nan|inf)"):
        made.train()
    assert ends(made.tracker.directory.path) == [("FAILED", 1)]
    made = trainer(name="stopped", stop_requested=lambda: 15)
    with pytest.raises(Interrupted):
        made.train()
    assert ends(made.tracker.directory.path) == [("KILLED", 143)]


def test_on_exit_is_there_where_the_suite_runs():
    """Where the C library has none, a script without `close` is judged by what Python knows: decisions.md."""
    found = subprocess.run(["getconf", "GNU_LIBC_VERSION"], capture_output=True, check=False).returncode == 0
    assert found == hasattr(ending.ctypes.CDLL(None), "on_exit")
