"""System metrics: what a real process burns is seen, numbered on after a resume, and never in the way of the
delivery.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from ready_store import ready_store
from tracked_runs import assert_complete, client, start_script, start_stream, until

from mltrack.relay.system_metrics import (
    ENABLE_VARIABLE,
    INTERVAL_S,
    INTERVAL_VARIABLE,
    TRAINER_CPU,
    TRAINER_MEMORY,
    SystemMetrics,
    SystemMetricsFeed,
)
from mltrack.store import connect, create_run

BURN = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; held = bytearray(b'x') * 60_000_000; print('ready', flush=True); time.sleep(60)"])
held = bytearray(b"x") * 40_000_000
print("ready", flush=True)
until = time.monotonic() + 60
while time.monotonic() < until:
    sum(range(1000))
"""
"""40 MB and one busy core, and a child with 60 MB."""


@pytest.fixture
def burning():
    """The pid of the process that burns; it and its child are ended afterwards."""
    process = start_script(BURN)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(2)] == ["ready", "ready"]
    try:
        yield process.pid
    finally:
        for one in [*psutil.Process(process.pid).children(), process]:
            one.kill()
        process.wait()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    return connect(ready_store(tmp_path_factory.mktemp("store")))


class Clock:
    """Seconds that pass when the test says so."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def pass_interval(self) -> None:
        self.seconds += INTERVAL_S


def new_run(store) -> str:
    return create_run(
        store, experiment_name="system", run_name="r", tags={}, idempotency_key=uuid.uuid4().hex, start_time_ms=1
    ).run_id


def steps(store, run_id: str, name: str) -> list[int]:
    return [point.step for point in store.client.get_metric_history(run_id, name)]


def test_the_whole_tree_of_the_trainer_is_seen_and_nothing_beside_it(burning: int) -> None:
    metrics = SystemMetrics(burning)
    time.sleep(1.0)
    seen = metrics.sample()
    own = psutil.Process(burning).memory_full_info().pss / 1e6
    assert 40 < own < seen[TRAINER_MEMORY] - 60 < own + 40, "the child's 60 MB are in it"
    assert 15 < seen[TRAINER_CPU] < 120, "one busy core"


def test_the_sampler_is_not_counted_where_it_is_the_trainers_child(burning: int) -> None:
    here = psutil.Process()
    assert here.memory_full_info().pss > 100e6, "mlflow is imported here: it would be seen"
    tree = here.children(recursive=True)
    assert burning in [one.pid for one in tree]
    wanted = sum(one.memory_full_info().pss for one in tree) / 1e6
    assert SystemMetrics(here.pid).sample()[TRAINER_MEMORY] == pytest.approx(wanted, rel=0.1)


LARGE = """
import mmap, os, sys, time
held = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for start in range(0, len(held), 4096):
    held[start] = 1
if os.fork():
    print("ready", flush=True)
time.sleep(60)
"""
"""1 GiB in small pages, which a child shares."""


def test_a_large_process_is_walked_for_a_thousandth_of_the_time_and_what_it_shares_counts_once() -> None:
    process = start_script(LARGE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    trainer = psutil.Process(process.pid)
    try:
        until(trainer.children, "the child")
        memory = SystemMetrics(process.pid)._memory
        tree = [trainer, *trainer.children()]
        for allowed in (0.0, 60.0, 0.0):
            memory._allowed_s = allowed
            assert 1.07e9 < memory.of(tree) < 1.3e9, "not 2.1"
        assert memory._read_of == set(tree)
        memory._asked, memory._allowed_s = time.monotonic() - 3600, 0.0  # an hour has passed
        memory.of(tree)
        assert 0 < memory._allowed_s < 3.6, "it was read, and that is taken off"
        memory._allowed_s = 0.0
        for _ in range(20):
            memory.of(tree)
        assert memory._allowed_s >= 0, "nothing was read"
    finally:
        for one in [*trainer.children(), process]:
            one.kill()
        process.wait()


def test_the_machines_metrics_have_mlflows_names_and_units(tmp_path: Path) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    theirs: dict[str, float] = {}
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
    ours = {name: value for name, value in SystemMetrics(None).sample().items() if "/gpu_" not in name}
    assert ours.keys() == theirs.keys()
    for name in (
        "system/system_memory_usage_megabytes",
        "system/disk_usage_megabytes",
        "system/disk_available_megabytes",
        "system/disk_usage_percentage",
    ):
        assert ours[name] == pytest.approx(theirs[name], rel=0.2)


def test_a_trainer_that_has_ended_leaves_the_machine_alone() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    metrics = SystemMetrics(ended.pid)
    ended.wait()
    seen = metrics.sample()
    assert TRAINER_CPU not in seen
    assert seen["system/system_memory_usage_megabytes"] > 0


def test_steps_begin_at_one_and_a_later_relay_goes_on(burning: int, store) -> None:
    run_id = new_run(store)
    for _ in range(2):
        clock = Clock()
        feed = SystemMetricsFeed(burning, clock=clock)
        for _ in range(3):
            clock.pass_interval()
            feed.sample_due()
            feed.send(store, run_id)
            feed.sample_due()  # not due: nothing
            feed.send(store, run_id)
    assert steps(store, run_id, TRAINER_MEMORY) == [1, 2, 3, 4, 5, 6]
    assert steps(store, run_id, "system/cpu_utilization_percentage") == [1, 2, 3, 4, 5, 6]


def test_the_first_sample_comes_early_and_the_interval_is_mlflows_variable(
    burning: int, store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = new_run(store)
    clock = Clock()
    monkeypatch.setenv(INTERVAL_VARIABLE, "20")
    feed = SystemMetricsFeed(burning, clock=clock)
    sent = []
    for clock.seconds in (0.5, 1.0, 20.5, 21.0):
        feed.sample_due()
        feed.send(store, run_id)
        sent.append(len(steps(store, run_id, TRAINER_MEMORY)))
    assert sent == [0, 1, 1, 2]


def test_what_an_outage_held_back_is_sent_after_it_and_nothing_is_raised(
    burning: int, store, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(store)
    clock = Clock()
    feed = SystemMetricsFeed(burning, clock=clock)
    for asked in (store, connect("http://127.0.0.1:9"), store):
        clock.pass_interval()
        feed.sample_due()
        feed.send(asked, run_id)
    assert "system metrics" in caplog.text
    assert steps(store, run_id, TRAINER_CPU) == [1, 2, 3]


def test_a_run_that_is_gone_ends_the_sampling_in_one_line(
    burning: int, store, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    feed = SystemMetricsFeed(burning, clock=clock)
    for _ in range(3):
        clock.pass_interval()
        feed.sample_due()
        feed.send(store, "0" * 32)
    assert len(caplog.records) == 1
    assert "system metrics: " in caplog.text
    assert "no longer sampled" in caplog.text


def test_mlflows_own_variables_are_obeyed(
    burning: int, store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(store)
    clock = Clock()
    monkeypatch.setenv(ENABLE_VARIABLE, "false")
    off = SystemMetricsFeed(None, clock=clock)
    clock.pass_interval()
    off.sample_due()
    off.send(store, run_id)
    assert store.client.get_run(run_id).data.metrics == {}
    monkeypatch.setenv(ENABLE_VARIABLE, "true")
    beside_mlflow = SystemMetricsFeed(burning, own_run=False, clock=clock)
    clock.pass_interval()
    beside_mlflow.sample_due()
    beside_mlflow.send(store, run_id)
    assert store.client.get_run(run_id).data.metrics.keys() == {
        TRAINER_MEMORY,
        TRAINER_CPU,
    }, "MLflow samples the machine itself"
    monkeypatch.setenv(INTERVAL_VARIABLE, "often")
    SystemMetricsFeed(None)
    assert f"{INTERVAL_VARIABLE} must be" in caplog.text
    assert "not 'often'" in caplog.text


def test_a_relay_sends_them_beside_the_journal(tmp_path: Path) -> None:
    uri = ready_store(tmp_path)
    stream = start_stream(tmp_path / "run", uri, count=400, ends_with=tmp_path / "sampled")
    api: MlflowClient = client(uri)
    run_id = until(lambda: stream.directory.read_delivery().get("run_id"), "the run")
    until(lambda: api.get_metric_history(run_id, TRAINER_MEMORY), "a sample")
    (tmp_path / "sampled").touch()
    assert stream.finish() == "complete"
    assert assert_complete(stream.directory, uri, status="FINISHED") == run_id
    memory = api.get_metric_history(run_id, TRAINER_MEMORY)
    assert [point.step for point in memory] == list(range(1, len(memory) + 1))
    assert 5 < memory[0].value < 400
    seen = api.get_run(run_id).data.metrics
    assert {
        "system/cpu_utilization_percentage",
        "system/network_receive_megabytes",
        "system/disk_available_megabytes",
    } < seen.keys()
