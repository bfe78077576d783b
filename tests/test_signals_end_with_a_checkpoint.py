"""SIGTERM and SIGINT, whenever they come: a complete checkpoint of the last whole step, within two micro-batches, and a
resume that changes nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import commands
import forward_passes
import psutil
import pytest
from mlflow import MlflowClient
from ready_store import ready_store
from tracked_runs import assert_complete, complete, is_running, kill, recorded, relay_pid, sync, until

from mltrack.journal import RunDirectory, find_run_directories, read_journal

sys.path.insert(0, str(commands.ROOT / "benchmarks"))
from killed_training import Storm
from small_job import small_job

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", params=["text_classification", "code_generation"])
def storm(request, warm, tmp_path_factory) -> Storm:
    """A job and a run of it that nobody interrupted."""
    folder = tmp_path_factory.mktemp(request.param)
    return Storm(small_job(folder, request.param, epochs=2), folder, warm, seed=0, offline=True)


def interrupted(storm: Storm, run_id: str, kind: str, count: int, signals: list[int]):
    """(process, kinds of the forward passes that began after the signal)."""
    process, _ = storm.start(run_id, forward_passes.signal_in(kind, count, signals))
    process.wait()
    before, mark, after = forward_passes.seen(storm.folder).partition("!")
    assert mark, f"the signal was never sent: {before}, {process.errors}"
    return process, after


def newest_step(directory: Path) -> int:
    held = [json.loads(path.read_text())["step"] for path in directory.glob("checkpoints/step-*/metadata.json")]
    return max(held, default=-1)


def steps_taken(directory: Path) -> int:
    return max(
        (record["step"] for record in read_journal(directory / "journal") if "train_loss" in record.get("values", ())),
        default=0,
    )


def end_record(directory: Path) -> tuple[str, int]:
    *_, last = (record for record in read_journal(directory / "journal") if record["type"] == "end")
    return last["status"], last["exit_code"]


MOMENTS = [("T", 1), ("T", 4), ("T", 11), ("T", 18), ("E", 3), ("E", 14), ("G", 5)]
"""The first micro-batch; the second of an accumulated step; the ragged tail of an epoch; mid-epoch; two evaluations; a
token of the samples.
"""


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_it_is_noticed_within_two_micro_batches(storm, number, exit_code):
    for kind, count in MOMENTS:
        if kind == "G" and storm.job.task != "code_generation":
            continue
        run_id = storm.new_run()
        directory = storm.directory(run_id)
        process, after = interrupted(storm, run_id, kind, count, [number])
        where = f"{number.name} in {kind} {count}"
        end = (
            ("FINISHED", 0) if kind == "G" else ("KILLED", exit_code)
        )  # the samples are taken of a training that has finished
        assert process.exit_code == end[1], (where, process.errors)
        assert len(after) <= 2, (where, after)
        assert newest_step(directory) == steps_taken(directory), where
        assert end_record(directory) == end, where
        storm.inspect(directory)
        resumed, _ = storm.start(run_id)
        assert resumed.wait() == 0, (where, resumed.errors)
        storm.compare(directory)
    tally = storm.tally
    assert tally.problems == []
    assert (tally.torn, tally.unloadable, tally.points_lost, tally.points_doubled, tally.points_different) == (0,) * 5
    assert tally.leftovers == []
    assert tally.identical == tally.same_best == tally.runs


@pytest.mark.parametrize(
    ("signals", "exit_code"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 143),
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGINT], 130),
    ],
    ids=["TERM-TERM", "INT-INT", "TERM-INT"],
)
def test_a_second_signal_exits_at_once(storm, signals, exit_code):
    run_id = storm.new_run()
    process, after = interrupted(storm, run_id, "T", 5, signals)
    assert process.exit_code == exit_code, process.errors
    assert after == ""
    assert newest_step(storm.directory(run_id)) in (-1, 2), (
        "at once: no checkpoint of the third step, and that of the second may still have been in flight"
    )


def test_the_sigterm_that_mlflow_sends_after_ctrl_c_is_no_second_signal(storm):
    run_id = storm.new_run()
    process, _ = interrupted(storm, run_id, "T", 7, [signal.SIGINT, signal.SIGTERM])
    assert process.exit_code == 130, process.errors
    assert newest_step(storm.directory(run_id)) == 3


def test_a_signal_before_the_first_step(storm):
    """Right before the loop: the checkpoint is that of step 0, and the run goes on from it."""
    run_id = storm.new_run()
    prelude = f"""
import os
from mltrack.training.trainer import AdvancedTrainer
_train = AdvancedTrainer.train

def _interrupted(self):
    os.kill(os.getpid(), {int(signal.SIGTERM)})
    return _train(self)

AdvancedTrainer.train = _interrupted
"""
    process, directory = storm.start(run_id, prelude)
    assert process.wait() == 143, process.errors
    assert newest_step(directory) == 0
    resumed, _ = storm.start(run_id)
    assert resumed.wait() == 0, resumed.errors
    before = storm.tally.identical
    storm.compare(directory)
    assert storm.tally.identical == before + 1


# -- the process group of `mlflow run`


def started_under_mlflow_run(folder: Path, records: Path):
    """(mlflow's process in a session of its own, the run directory after a few steps)."""
    given = {
        "model_name": "scratch:tiny",
        "max_length": 64,
        "batch_size": 4,
        "epochs": 10_000,
        "save_every": 1_000_000,
        "eval_every": 1_000_000,
    }
    words = [
        word
        for name, value in {"dataset_path": records, "output_dir": folder / "runs", **given}.items()
        for word in ("-P", f"{name}={value}")
    ]
    uri = ready_store(folder)
    environment = commands.environment(MLFLOW_TRACKING_URI=uri)
    command = ["mlflow", "run", str(commands.ROOT), "--env-manager", "local", "-P", "task=text_classification", *words]
    process = psutil.Popen(command, cwd=folder, env=environment, start_new_session=True, stdout=-3, stderr=-3)
    directory = until(
        lambda: next(
            (one for one in find_run_directories(folder / "runs") if one.read_run().trainer_pid and recorded(one) > 15),
            None,
        ),
        "the first steps",
        120,
    )
    return process, directory, uri


def end_of_the_container(process, directory: RunDirectory) -> None:
    """What is left of the group is killed; so is the relay, which has a session of its own but dies with its cgroup."""
    relay = relay_pid(directory) if not complete(directory) else None
    for pid in (process.pid, directory.read_run().trainer_pid, relay):
        if pid is not None and is_running(pid):
            kill(pid)


GRACE_S = 30
SHUTDOWNS = {
    "slurm": (signal.SIGTERM, "group", 143),  # scancel: TERM to all processes of the step, KILL after KillWait
    "kubernetes": (
        signal.SIGTERM,
        "trainer",
        143,
    ),  # an init such as tini hands the TERM down to the program; KILL to all at the end of the grace period
    "terminal": (signal.SIGINT, "group", 130),  # Ctrl-C: mlflow sends the SIGTERM of its own to the trainer, too
}


@pytest.mark.parametrize("shutdown", SHUTDOWNS)
def test_a_shutdown_of_mlflow_run_ends_with_a_checkpoint(tmp_path, records_file, shutdown):
    number, target, exit_code = SHUTDOWNS[shutdown]
    process, directory, uri = started_under_mlflow_run(tmp_path, records_file("text_classification", 40))
    trainer = directory.read_run().trainer_pid
    try:
        if target == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(trainer, number)
        until(lambda: not is_running(trainer), "the trainer's own end within the grace period", GRACE_S)
    finally:
        end_of_the_container(process, directory)
    assert newest_step(directory.path) == steps_taken(directory.path) > 0
    assert end_record(directory.path) == ("KILLED", exit_code)
    if not complete(directory):
        assert sync(directory).returncode == 0
    run_id = assert_complete(directory, uri, status="FAILED")
    assert MlflowClient(uri).get_run(run_id).data.tags["mltrack.status"] == "KILLED"
