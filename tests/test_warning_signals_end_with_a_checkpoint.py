"""A closed terminal (SIGHUP) and Slurm's warning (SIGUSR1) end a training as SIGTERM does, and the relay by neither."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
from pathlib import Path

import commands
import pytest
from ready_store import ready_store
from tracked_runs import complete, is_running, kill, relay_pid, until

from mltrack.journal import RunDirectory, find_run_directories, read_journal

sys.path.insert(0, str(commands.ROOT / "benchmarks"))
from small_job import SmallJob, small_job

pytestmark = pytest.mark.long

AT_STEP = """
import os
from mltrack.training.trainer import AdvancedTrainer
_take = AdvancedTrainer._take_step

def _marked(self, group):
    if self.state.step == 3 and not os.path.exists("there"):
        os.mkdir("there")
        {event}
    return _take(self, group)

AdvancedTrainer._take_step = _marked
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> SmallJob:
    rarely = {"eval_every": 100_000, "save_every": 100_000}
    return small_job(tmp_path_factory.mktemp("job"), epochs=2, offline="true", dropout=0.0, **rarely)


def the_run(folder: Path) -> tuple[RunDirectory, list[int], tuple[str, int]]:
    """(its directory, the steps of its checkpoints, status and exit code of its end)."""
    [directory] = find_run_directories(folder / "runs")
    steps = [json.loads(path.read_text())["step"] for path in directory.checkpoints.glob("step-*/metadata.json")]
    *_, last = (record for record in read_journal(directory.journal) if record["type"] == "end")
    return directory, sorted(steps), (last["status"], last["exit_code"])


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1], ids=["SIGHUP", "SIGUSR1"])
def test_it_ends_with_a_checkpoint_and_is_resumed(warm, job, tmp_path, number):
    hook = AT_STEP.format(event=f"os.kill(os.getpid(), {int(number)})")
    process = warm.run(*job.words(output_dir="runs"), cwd=tmp_path, prelude=hook)
    assert process.exit_code == 128 + number, process.errors
    assert f"mltrack: interrupted by {number.name}" in process.errors.splitlines()
    directory, steps, end = the_run(tmp_path)
    assert (steps, end) == ([3], ("KILLED", 128 + number))
    resumed = warm.run(*job.words(output_dir="runs", resume=directory.path.name), cwd=tmp_path)
    assert resumed.exit_code == 0, resumed.errors
    assert the_run(tmp_path)[2] == ("FINISHED", 0)


def test_under_nohup_a_hangup_stays_ignored(warm, job, tmp_path):
    hook = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + AT_STEP.format(
        event="os.kill(os.getpid(), 1)"
    )
    process = warm.run(*job.words(output_dir="runs", epochs=1), cwd=tmp_path, prelude=hook)
    assert (tmp_path / "there").exists()
    assert process.exit_code == 0, process.errors
    assert the_run(tmp_path)[2] == ("FINISHED", 0)


def test_a_terminal_that_is_closed_ends_it_with_a_checkpoint(warm, job, tmp_path):
    """The kernel sends the signal, and from then on each write to the terminal is an error."""
    ours, theirs = pty.openpty()
    on_terminal = f"""
import os
_terminal = os.open({os.ttyname(theirs)!r}, os.O_RDWR)  # the first one that a session's leader opens is its own
for _stream in (0, 1, 2):
    os.dup2(_terminal, _stream)
"""
    hook = on_terminal + AT_STEP.format(event="pass")
    process = warm.start(*job.words(output_dir="runs", epochs=100_000), cwd=tmp_path, prelude=hook)
    process.until((tmp_path / "there").exists, "the third step")
    os.close(theirs)
    os.close(ours)
    assert process.wait(60) == 129
    _, steps, end = the_run(tmp_path)
    assert len(steps) == 1
    assert end == ("KILLED", 129)


def test_the_relay_outlives_a_warning(warm, job, tmp_path):
    """Slurm sends it to all processes of a step: the trainer ends by it, and the relay delivers the rest."""
    endless = {"epochs": 100_000, "early_stopping_patience": 100_000}  # however long the relay takes to start
    words = job.words(output_dir="runs", offline="false", tracking_uri=ready_store(tmp_path), **endless)
    process = warm.start(*words, cwd=tmp_path, prelude=AT_STEP.format(event="pass"))
    process.until((tmp_path / "there").exists, "the third step")
    [directory] = find_run_directories(tmp_path / "runs")
    relay = relay_pid(directory)
    try:
        os.kill(relay, signal.SIGUSR1)
        os.kill(relay, signal.SIGHUP)
        process.send(signal.SIGUSR1)
        assert process.wait(60) == 138, process.errors
        until(lambda: complete(directory), "the delivery", 60)
        assert f"ended with {-signal.SIGUSR1}" not in directory.relay_log.read_text()
        assert directory.read_delivery()["status"] == "KILLED"
    finally:
        if is_running(relay):
            kill(relay)
