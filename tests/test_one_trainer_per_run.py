"""A run has one trainer: the lock comes first, and a trainer that cannot be looked up from here is known by its
heartbeat.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import commands
import psutil
import pytest
import tiny
from faulty_proxy import faulty_proxy
from mlflow import MlflowClient
from ready_store import ready_store
from servers import mlflow_server
from tracked_runs import kill, recorded, start_stream, until

from mltrack import TrainModelRequest, TrainModelUseCase
from mltrack.errors import ConfigurationError
from mltrack.journal import Heartbeat, JournalWriter, Machine, RunDirectory, RunInfo, heartbeat, records
from mltrack.relay import Life, TrainedElsewhere, orphans, reap, stand_still, sync, trainer_of
from mltrack.relay.liveness import BOOT_TAG, HEARTBEAT_TAG, HOST_TAG, NAMESPACE_TAG, PID_TAG, STARTED_TAG
from mltrack.runs.provenance import take_over, undelivered
from mltrack.store import connect, runs

HERE = Machine.here()
OTHER_HOST = Machine("another-host", "another-boot", "pid:[1]")
OTHER_CONTAINER = Machine("pod-17", HERE.boot_id, "pid:[1]")
REBOOTED = Machine(HERE.host, "the boot before", HERE.pid_namespace)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats beat and stand still within a second, not a minute."""
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.1)
    monkeypatch.setattr(heartbeat, "STANDS_STILL_S", 1.0)


def left_by(
    folder: Path, machine: Machine | None, *, uri: str = "", pid: int | None = None, ended: bool = False
) -> RunDirectory:
    """A run directory whose trainer is a living process (this one's parent), as `machine` numbers its processes."""
    directory = RunDirectory(folder)
    pid = pid or os.getppid()
    info = RunInfo(
        local_id=folder.name,
        tracking_uri=uri,
        created_ms=records.now_ms(),
        trainer_pid=pid,
        trainer_started=psutil.Process(pid).create_time(),
    )
    if machine is not None:
        info = replace(
            info,
            trainer_host=machine.host,
            trainer_boot_id=machine.boot_id,
            trainer_pid_namespace=machine.pid_namespace,
        )
    directory.write_run(info)
    journal = JournalWriter(directory.journal)
    journal.append(records.metrics(1, {"train_loss": 0.5}, {}))
    if ended:
        journal.append(records.end("KILLED", 143))
    journal.close()
    return directory


@pytest.mark.parametrize(
    ("machine", "life"),
    [
        (HERE, Life.ALIVE),
        (None, Life.ALIVE),
        (OTHER_HOST, Life.ELSEWHERE),
        (OTHER_CONTAINER, Life.ELSEWHERE),
        (REBOOTED, Life.GONE),
    ],
    ids=["here", "not named", "other host", "other container", "rebooted"],
)
def test_a_living_process_id_says_something_only_where_it_can_be_looked_up(
    tmp_path: Path, machine: Machine | None, life: Life
) -> None:
    assert trainer_of(left_by(tmp_path / "run", machine)).life() is life


@pytest.mark.parametrize("machine", [OTHER_HOST, OTHER_CONTAINER], ids=["host", "container"])
def test_a_trainer_elsewhere_is_refused_while_its_heartbeat_moves_and_replaced_once_it_stands_still(
    tmp_path: Path, machine: Machine, impatient: None
) -> None:
    directory = left_by(tmp_path / "run", machine, uri=f"sqlite:///{tmp_path}/m.db")
    before, said = directory.run_file.read_bytes(), []
    beating = Heartbeat(directory.heartbeat)
    try:
        with pytest.raises(
            ConfigurationError, match=f"cannot resume run: process {os.getppid()} on {machine.host} is training it"
        ):
            take_over(directory, notice=said.append)
        with pytest.raises(TrainedElsewhere, match=machine.host):
            sync(directory)
    finally:
        beating.stop()
    assert machine.host in said[0]
    assert directory.run_file.read_bytes() == before
    assert not (tmp_path / "m.db").exists(), "nothing was asked of MLflow"
    take_over(directory).release()
    assert sync(directory).status == "FAILED"


def test_a_trainer_elsewhere_may_have_the_process_id_that_this_one_has(tmp_path: Path, impatient: None) -> None:
    """As in two containers, where both are process 1."""
    directory = left_by(tmp_path / "run", OTHER_CONTAINER, pid=os.getpid())
    beating = Heartbeat(directory.heartbeat)
    try:
        with pytest.raises(ConfigurationError, match=f"process {os.getpid()} on {OTHER_CONTAINER.host} is training it"):
            take_over(directory)
    finally:
        beating.stop()


def test_a_process_goes_on_with_a_run_of_its_own(tmp_path: Path) -> None:
    take_over(left_by(tmp_path / "run", HERE, pid=os.getpid())).release()


def test_one_that_has_recorded_its_end_is_not_waited_for(tmp_path: Path) -> None:
    directory = left_by(tmp_path / "run", OTHER_HOST, ended=True)
    started = time.monotonic()
    take_over(directory).release()
    assert time.monotonic() - started < heartbeat.STANDS_STILL_S / 2


def test_after_a_reboot_the_same_process_id_is_somebody_elses(tmp_path: Path) -> None:
    directory = left_by(tmp_path / "run", REBOOTED)
    take_over(directory).release()


def test_force_is_for_a_directory_that_names_no_host(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    directory = left_by(tmp_path / "run", None, pid=gone.pid)
    with pytest.raises(ConfigurationError, match="is training it"):
        take_over(directory, force=True)
    gone.communicate()
    with pytest.raises(ConfigurationError, match=r"names no host.*--force true"):
        take_over(directory)
    take_over(directory, force=True).release()


def test_the_journal_of_the_first_release_names_the_host(tmp_path: Path) -> None:
    """run.json did not; a run of it goes on without a flag."""
    directory = left_by(tmp_path / "run", None)
    info = directory.read_run()
    journal = JournalWriter(directory.journal)
    journal.append(
        records.tags({HOST_TAG: "another-host", PID_TAG: str(info.trainer_pid), STARTED_TAG: str(info.trainer_started)})
    )
    journal.close()
    assert trainer_of(directory).life() is Life.ELSEWHERE


def test_a_directory_is_locked_before_anything_of_its_run_is_touched(tmp_path: Path, records_file) -> None:
    """The other one has just begun: it holds the lock, and run.json still names the trainer before it."""
    uri = ready_store(tmp_path)
    words = commands.training(records_file("text_classification"), "--output", "json")
    run_id = tiny.last_json_line(commands.mltrack(*words, "--max-steps", "2", cwd=tmp_path).stdout)["run_id"]
    path = (tmp_path / "mltrack-runs" / run_id).resolve()
    held = (path / "config.json").read_bytes(), MlflowClient(uri).get_run(run_id).data.tags
    script = (
        "import sys\nfrom mltrack.journal import JournalLock\nlock = JournalLock(sys.argv[1])\nprint('held',"
        " flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path / "journal"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        second = commands.mltrack("train", "--resume", run_id, "--max-steps", "4", cwd=tmp_path)
        other.kill()
    assert second.returncode == 2
    assert f"cannot resume {path.name}: process" in second.stderr
    assert ((path / "config.json").read_bytes(), MlflowClient(uri).get_run(run_id).data.tags) == held
    third = commands.mltrack("train", "--resume", run_id, "--max-steps", "4", cwd=tmp_path)
    assert third.returncode == 0, third.stderr


def test_a_reaper_leaves_a_run_whose_heartbeat_moves_in_mlflow(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mltrack.relay.reaper.ASK_AGAIN_S", 0.05)
    uri = ready_store(tmp_path)
    store = connect(uri)

    def run(machine: Machine) -> str:
        tags = {
            HOST_TAG: machine.host,
            BOOT_TAG: machine.boot_id,
            NAMESPACE_TAG: machine.pid_namespace,
            PID_TAG: str(os.getppid()),
            STARTED_TAG: "1.0",
        }
        tags |= {"mltrack.local_id": machine.host, HEARTBEAT_TAG: "1"}
        return str(MlflowClient(uri).create_run("0", tags=tags).info.run_id)

    living, dead, before_boot = run(OTHER_HOST), run(OTHER_CONTAINER), run(REBOOTED)
    found = {one.run_id: one.is_certain for one in orphans(store, tmp_path / "runs")}
    assert found == {living: False, dead: False, before_boot: True}
    script = f"""
import itertools, time
from mltrack.store import connect, runs
store = connect({uri!r})
for number in itertools.count():
    runs.set_tags(store, {living!r}, {{{HEARTBEAT_TAG!r}: str(number)}})
    print(number, flush=True)
    time.sleep(0.1)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        trainer.stdout.readline()
        still = {one.run_id for one in stand_still(store, orphans(store, tmp_path / "runs"))}
        trainer.kill()
    assert still == {dead, before_boot}
    assert reap(store, dead, None) == runs.get_run(store, dead).status == "FAILED"


@pytest.mark.long
def test_an_upload_that_hangs_silences_no_heartbeat(tmp_path: Path) -> None:
    with mlflow_server(tmp_path / "server") as uri, faulty_proxy(uri, matching="mlflow-artifacts/artifacts") as proxy:
        proxy.fault = "hang"
        directory = left_by(tmp_path / "runs" / "run", HERE, uri=proxy.uri)
        (directory.path / "report.txt").write_text("does not arrive")
        journal = JournalWriter(directory.journal)
        journal.append(records.artifact("report.txt", ""))
        journal.close()
        relay = commands.start("sync", "--follow", directory.path, cwd=tmp_path)
        try:
            until(lambda: proxy.count("hang"), "an upload")
            client, run_id = MlflowClient(uri), directory.read_run().run_id
            assert run_id is not None
            first = client.get_run(run_id).data.tags[HEARTBEAT_TAG]
            until(
                lambda: client.get_run(run_id).data.tags[HEARTBEAT_TAG] != first,
                "the next heartbeat",
                3 * heartbeat.BEAT_S,
            )
            assert proxy.count("hang") == 1, "it is still the same upload"
        finally:
            kill(relay.pid)
            relay.communicate()


def test_a_run_elsewhere_is_delivered_by_who_can_watch_it(tmp_path: Path) -> None:
    """A training that starts beside it leaves the watching to the process that delivers in the background."""
    directory = left_by(tmp_path / "runs" / "run", OTHER_HOST)
    here = left_by(tmp_path / "runs" / "here", HERE)
    assert undelivered(tmp_path / "runs") == [directory]
    assert trainer_of(here).life() is Life.ALIVE


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace of its own needs root")
def test_a_trainer_in_another_container_is_seen_to_live(tmp_path: Path) -> None:
    """A real one, in a pid namespace of its own: its process id is that of another process here."""
    uri = ready_store(tmp_path)
    wrapped = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*wrapped, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no pid namespaces here")
    stream = start_stream(tmp_path / "run", uri, count=10**6, pause_s=0.05, wrapped_in=wrapped)
    try:
        until(lambda: stream.directory.run_file.exists() and recorded(stream.directory) > 0, "the first points")
        trainer = trainer_of(stream.directory)
        assert trainer.machine is not None
        assert (trainer.machine.host, trainer.life()) == (socket.gethostname(), Life.ELSEWHERE)
        for refused in (lambda: take_over(stream.directory), lambda: sync(stream.directory)):
            with pytest.raises((ConfigurationError, TrainedElsewhere)):
                refused()
    finally:
        kill(stream.process.pid)
        stream.process.communicate()


NESTED = """
import json, mlflow
from mltrack import TrainModelRequest, TrainModelUseCase

mlflow.set_tracking_uri("sqlite:///nest.db")
mlflow.set_experiment("study")
found = []
with mlflow.start_run() as parent:
    for steps in (1, 2):
        request = TrainModelRequest(dataset_path={path!r}, task="text_classification", model_name="scratch:tiny", max_steps=steps, batch_size=4, max_length=64)
        answer = TrainModelUseCase().execute(request)
        assert answer.success, answer.errors
        found.append((answer.run_id, answer.registered_model["version"]))
print(json.dumps([parent.info.run_id, found]))
"""


def test_a_second_training_in_one_active_run_is_its_child(tmp_path: Path, records_file) -> None:
    uri = ready_store(tmp_path, "nest.db")
    finished = commands.run(
        sys.executable, "-c", NESTED.format(path=str(records_file("text_classification"))), cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    parent, ((first, version), (second, next_version)) = json.loads(finished.stdout.splitlines()[-1])
    client = MlflowClient(uri)
    child = client.get_run(second)
    assert (first, version, next_version) == (parent, "1", "2")
    assert (child.data.tags["mlflow.parentRunId"], child.info.experiment_id) == (
        parent,
        client.get_experiment_by_name("study").experiment_id,
    )
    for run_id, steps in ((parent, 1), (second, 2)):
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["max_steps"] == str(steps)
        assert [point.step for point in client.get_metric_history(run_id, "train_loss")] == list(range(1, steps + 1))
        assert run.outputs.model_outputs


@pytest.mark.long
def test_of_two_trainings_at_once_in_one_mlflow_run_one_is_refused(tmp_path: Path, records_file) -> None:
    uri = ready_store(tmp_path)
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    words = ("train", "--task", "text_classification", "--dataset-path", records_file("text_classification"))
    started = {
        seed: commands.start(
            *(*words, *commands.TINY, "--max-steps", "3", "--seed", seed, "--output-dir", seed, "--output", "json"),
            cwd=tmp_path,
            MLFLOW_RUN_ID=run_id,
            MLFLOW_TRACKING_URI=uri,
        )
        for seed in ("1", "2")
    }
    answers = {seed: tiny.last_json_line(process.communicate()[0]) for seed, process in started.items()}
    assert sorted(process.returncode for process in started.values()) == [0, 1], answers
    (winner,), (loser,) = ([seed for seed, one in started.items() if one.returncode == code] for code in (0, 1))
    (line,) = answers[loser]["errors"]
    assert line.startswith(f"run {run_id} belongs to another training (process {started[winner].pid} on ")
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["seed"]) == ("FINISHED", winner)
    assert [point.step for point in client.get_metric_history(run_id, "train_loss")] == [1, 2, 3]
    assert len(client.search_model_versions()) == 1


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_several_ranks_is_refused_in_one_line(
    tmp_path: Path, records_file, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "2")
    request = TrainModelRequest(
        task="text_classification",
        dataset_path=str(records_file("text_classification")),
        output_dir=str(tmp_path / "runs"),
    )
    response = TrainModelUseCase().execute(request)
    assert (response.exit_code, len(response.errors)) == (2, 1)
    assert f"one of 2 ({variable})" in response.errors[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_torchrun_trains_nothing(tmp_path: Path, records_file) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    words = (
        "mltrack",
        "train",
        "--task",
        "text_classification",
        "--dataset-path",
        records_file("text_classification"),
        *commands.TINY,
    )
    ended = commands.run(torchrun, "--nproc_per_node=2", "--no-python", *words, "--max-steps", "2", cwd=tmp_path)
    assert ended.returncode != 0
    assert "one of 2 (WORLD_SIZE)" in ended.stderr
    assert not (tmp_path / "mltrack-runs").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_run_json_names_the_machine(tmp_path: Path) -> None:
    from mltrack import TrainingMetricsTracker

    info = RunInfo(local_id="one", created_ms=records.now_ms(), tracking_uri=f"sqlite:///{tmp_path}/m.db", offline=True)
    with TrainingMetricsTracker(tmp_path / "run", run=info) as tracker:
        held = asdict(tracker.directory.read_run())
        until(lambda: tracker.directory.heartbeat.exists(), "the first beat")
    assert (held["trainer_host"], held["trainer_boot_id"], held["trainer_pid_namespace"]) == (
        HERE.host,
        HERE.boot_id,
        HERE.pid_namespace,
    )
    assert held["trainer_pid"] == os.getpid()
