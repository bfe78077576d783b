"""A signal that comes before or after the loop ends the training at once: one line, its exit code, nothing half
written.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import commands
import pytest

from mltrack.journal import find_run_directories, read_journal

sys.path.insert(0, str(commands.ROOT / "benchmarks"))
from small_job import SmallJob, small_job, write_records

pytestmark = pytest.mark.long

AT = """
import importlib, os
_holder = importlib.import_module("{module}")
for _part in "{holder}".split(".")[:-1]:
    _holder = getattr(_holder, _part)
_own = getattr(_holder, "{name}")

def _marked(*given, **named):
    if not os.path.exists("sent"):
        os.mkdir("sent")
        {event}
    return _own(*given, **named)

setattr(_holder, "{name}", _marked)
"""
"""Something happens when a function is called for the first time."""
KILL = "os.kill(os.getpid(), {number})"
SAY = 'os.write(2, b"MARK\\n")'


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> SmallJob:
    return small_job(tmp_path_factory.mktemp("job"), epochs=1, offline="true", dropout=0.0)


def prelude(place: str, event: str) -> str:
    """Of a place such as `package.module:Class.method`."""
    module, _, holder = place.partition(":")
    return AT.format(module=module, holder=holder, name=holder.rpartition(".")[2], event=event)


def interrupted_line(process, number: int) -> None:
    """The process has said in one line how it ended, and shown no traceback."""
    said = [line for line in process.errors.splitlines() if line.startswith("mltrack: ")]
    assert said == [f"mltrack: interrupted by {signal.Signals(number).name}"], process.errors
    assert "Traceback" not in process.errors


BEFORE_THE_RUN = {
    "the imports": "mltrack.runs.use_case:TrainModelUseCase.__init__",
    "the weights' file": "mltrack.models.pretrained:ModelSource.build",
    "a file of records": "mltrack.data.loader:iterate_records",
    "the tokenizer": "mltrack.models.pretrained:ModelSource.train_tokenizer",
    "near-duplicates": "mltrack.records.similar.near_duplicates:_signatures",
    "token ids": "mltrack.data.encoding:Encoder.rows",
}


@pytest.mark.parametrize("moment", BEFORE_THE_RUN)
def test_before_the_run_is_opened_it_leaves_nothing(warm, job, tmp_path, moment):
    number = signal.SIGINT if moment == "the weights' file" else signal.SIGTERM
    changed = {"model_name": "scratch:tiny"} if moment == "the tokenizer" else {}
    hook = prelude(BEFORE_THE_RUN[moment], KILL.format(number=int(number)))
    environment = {"MLTRACK_CACHE_DIR": str(tmp_path / "cache")}
    process = warm.run(*job.words(output_dir="runs", **changed), cwd=tmp_path, prelude=hook, **environment)
    assert (tmp_path / "sent").exists(), "the moment never came"
    assert process.exit_code == 128 + number, process.errors
    interrupted_line(process, number)
    assert find_run_directories(tmp_path / "runs") == []
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and ".lock" not in path.name] == []


def test_real_work_is_cut_off_in_the_middle(warm, job, tmp_path):
    """Records that take seconds to compare: the process ends before they are."""
    records = write_records(tmp_path / "records.jsonl", "text_classification", 10_000)
    words = job.words(output_dir="runs", dataset_path=records)
    hook = prelude("mltrack.records.similar.near_duplicates:_grouped", SAY)
    process = warm.start(*words, cwd=tmp_path, prelude=hook, MLTRACK_CACHE_DIR=str(tmp_path / "cache"))
    process.until(lambda: "MARK" in process.errors, "the comparison")
    sent = time.monotonic()
    process.send(signal.SIGTERM)
    process.until(lambda: "interrupted by" in process.errors, "the line that it ended")
    assert time.monotonic() - sent < 1
    assert process.wait(60) == 143, process.errors
    interrupted_line(process, signal.SIGTERM)
    assert find_run_directories(tmp_path / "runs") == []


OPENED = {
    "baselines": "mltrack.evaluation.baselines:classification_baselines",
    "the trainer": "mltrack.training:AdvancedTrainer.__init__",
}


@pytest.mark.parametrize("moment", OPENED)
def test_an_open_run_is_killed_and_says_so(warm, job, tmp_path, moment):
    hook = prelude(OPENED[moment], KILL.format(number=int(signal.SIGTERM)))
    process = warm.run(*job.words(output_dir="runs"), cwd=tmp_path, prelude=hook)
    assert (tmp_path / "sent").exists(), "the moment never came"
    assert process.exit_code == 143, process.errors
    interrupted_line(process, signal.SIGTERM)
    [directory] = find_run_directories(tmp_path / "runs")
    *_, last = (record for record in read_journal(directory.journal) if record["type"] == "end")
    assert (last["status"], last["exit_code"]) == ("KILLED", 143)


def test_it_ends_the_wait_for_mlflow_and_nothing_else(warm, job, tmp_path):
    """A server that takes every request and answers none: the training has finished, and the relay stays."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        words = job.words(
            output_dir="runs",
            offline="false",
            tracking_uri=f"http://127.0.0.1:{server.getsockname()[1]}",
            output="json",
        )
        process = warm.start(*words, cwd=tmp_path, prelude=prelude("mltrack.tracking.delivery:Delivery.wait", SAY))
        process.until(lambda: "MARK" in process.errors, "the wait for MLflow")
        sent = time.monotonic()
        process.send(signal.SIGINT)
        process.until(lambda: process.output, "the response")
        assert time.monotonic() - sent < 2, "the wait goes on for eight seconds otherwise"
        assert process.wait(60) == 0, process.errors
    response = json.loads(process.output)
    assert (response["status"], response["delivery"]) == ("FINISHED", "pending")
    assert ["SIGINT" in line for line in response["warnings"]] == [True], response["warnings"]
    [directory] = find_run_directories(tmp_path / "runs")
    *_, last = (record for record in read_journal(directory.journal) if record["type"] == "end")
    assert last["status"] == "FINISHED"
    relay = next(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_relay(pid, directory.path))
    os.kill(relay, signal.SIGKILL)


def is_relay(pid: int, directory: Path) -> bool:
    try:
        return b"--follow\0" + os.fsencode(directory) in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
