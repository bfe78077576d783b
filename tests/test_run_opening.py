"""A run is opened by a process beside; where that process cannot help, it is opened here; and nothing is made before it is asked for."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mltrack import TrainingMetricsTracker, TrainModelRequest, TrainModelUseCase
from mltrack.journal import RunInfo, records
from mltrack.run_opening import RunOpener
from mltrack.store import StoreRejected, StoreUnavailable, connect, get_run, list_runs


def info(uri: str, **fields: object) -> RunInfo:
    return RunInfo(local_id="a" * 32, tracking_uri=uri, created_ms=records.now_ms(), run_name="one", tags={"mltrack.task": "code_generation"}, **fields)


@pytest.fixture
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """opener(uri) -> one with a process, although the tests have imported mlflow."""
    made = []

    def make(uri: str) -> RunOpener:
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "mlflow", raising=False)
            one = RunOpener(uri)
        made.append(one)
        assert one._process is not None
        return one

    yield make
    for one in made:
        one.close()


def test_the_process_makes_the_run_and_becomes_its_relay(opener, tmp_path: Path):
    uri = f"sqlite:///{tmp_path}/m.db"
    one = opener(uri)
    pid = one._process.pid
    found = one.open(info(uri))
    run = get_run(connect(uri), found.run_id)
    assert (run.run_name, run.status, run.tags["mltrack.task"], run.experiment_id) == ("one", "RUNNING", "code_generation", found.experiment_id)
    tracker = TrainingMetricsTracker(tmp_path / "run", unbacked=True)
    tracker.follow(found, one.become_relay)
    tracker.log_metrics({"train_loss": 0.5}, step=1)
    tracker.end("FINISHED", 0)
    assert tracker.close() == "complete"
    run = get_run(connect(uri), found.run_id)
    assert (run.status, run.metrics["train_loss"]) == ("FINISHED", 0.5)
    assert int((tmp_path / "run" / "relay.lock").read_text()) == pid, "it was this process"
    assert "complete" in (tmp_path / "run" / "relay.log").read_text()


def test_a_relay_that_it_has_become_is_started_again_where_it_dies(opener, tmp_path: Path):
    uri = f"sqlite:///{tmp_path}/m.db"
    one = opener(uri)
    pid = one._process.pid
    found = one.open(info(uri))
    tracker = TrainingMetricsTracker(tmp_path / "run", unbacked=True)
    tracker.follow(found, one.become_relay)
    os.kill(pid, signal.SIGKILL)
    tracker.log_metrics({"train_loss": 0.5}, step=1)
    tracker.end("FINISHED", 0)
    assert tracker.close() == "complete"
    assert get_run(connect(uri), found.run_id).metrics["train_loss"] == 0.5


def test_a_password_is_not_among_the_arguments_of_a_process(opener):
    one = opener("postgresql://me:secret@127.0.0.1:1/none")
    assert b"secret" not in Path(f"/proc/{one._process.pid}/cmdline").read_bytes()


def test_a_process_that_was_killed_costs_nothing_but_time(opener, tmp_path: Path):
    uri = f"sqlite:///{tmp_path}/m.db"
    one = opener(uri)
    os.kill(one._process.pid, signal.SIGKILL)
    one._process.wait()
    found = one.open(info(uri))
    assert [run.run_id for run in list_runs(connect(uri))] == [found.run_id]


def test_without_being_asked_it_makes_no_run_and_does_not_outlive_the_trainer(tmp_path: Path):
    """A trainer that is killed before it asks: the process reads the end of its input and ends."""
    uri = f"sqlite:///{tmp_path}/m.db"
    script = f"from mltrack.run_opening import RunOpener\none = RunOpener({uri!r})\nprint(one._process.pid, flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        pid = int(trainer.stdout.readline())
        pidfd = os.pidfd_open(pid)
        trainer.kill()
    assert select.select([pidfd], [], [], 60)[0], "it has ended"
    os.close(pidfd)
    assert not (tmp_path / "m.db").exists(), "not even the database"


def test_a_run_is_never_opened_by_a_process_that_asks_another_store(opener, tmp_path: Path, records_file):
    """What was begun before the request was understood helps where the run belongs there, and makes nothing elsewhere."""
    here, elsewhere = f"sqlite:///{tmp_path}/here.db", f"sqlite:///{tmp_path}/elsewhere.db"
    for begun in (opener(here), opener(elsewhere)):
        pid = begun._process.pid
        request = TrainModelRequest(
            task="text_classification",
            dataset_path=str(records_file("text_classification")),
            model_name="scratch:tiny",
            max_steps=1,
            batch_size=4,
            tracking_uri=here,
            output_dir=str(tmp_path / "runs"),
            resume="never",
        )
        response = TrainModelUseCase(opener=begun).execute(request)
        assert (response.success, response.delivery) == (True, "complete"), response.errors
        relay = int((tmp_path / "runs" / response.run_id / "relay.lock").read_text())
        assert (relay == pid) == (begun.tracking_uri == here)
    assert len(list_runs(connect(here))) == 2
    assert not (tmp_path / "elsewhere.db").exists()


def test_the_process_is_begun_before_torch_is_imported(tmp_path: Path, records_file):
    """A command that is refused for its data has begun one, and leaves neither it nor a store behind."""
    script = (
        "import sys\nfrom mltrack import run_opening\nfrom mltrack.cli import run\nbegun = []\n"
        "class Watched(run_opening.RunOpener):\n"
        "    def __init__(self, uri):\n        super().__init__(uri)\n        begun.append((self._process, 'torch' in sys.modules))\n"
        "run_opening.RunOpener = Watched\n"
        "code = run(['train', '--task', 'text_classification', '--dataset_path', 'none.jsonl', '--tracking_uri', 'sqlite:///m.db'])\n"
        "print(code, [torch for _, torch in begun], [process.poll() for process, _ in begun])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.strip().splitlines()[-1] == f"2 [False] [{-signal.SIGKILL}]", ended.stderr[-2000:]
    assert not (tmp_path / "m.db").exists()


def test_a_trainer_that_is_killed_before_anybody_follows_leaves_its_run_failed(tmp_path: Path):
    """While it builds its model, say: MLflow knows the run, and no journal does."""
    uri = f"sqlite:///{tmp_path}/m.db"
    script = (
        "from mltrack.journal import RunInfo, records\nfrom mltrack.run_opening import RunOpener\n"
        f"one = RunOpener({uri!r})\n"
        f"one.open(RunInfo(local_id='a' * 32, tracking_uri={uri!r}, created_ms=records.now_ms(), run_name='one'))\n"
        "print(one._process.pid, flush=True)\ninput()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        pidfd = os.pidfd_open(int(trainer.stdout.readline()))
        trainer.kill()
    assert select.select([pidfd], [], [], 60)[0], "the process has ended"
    os.close(pidfd)
    assert [run.status for run in list_runs(connect(uri))] == ["FAILED"]


@pytest.mark.parametrize("with_process", [True, False])
def test_a_training_that_ends_before_anybody_follows_leaves_its_run_failed(opener, tmp_path: Path, with_process: bool):
    uri = f"sqlite:///{tmp_path}/m.db"
    one = opener(uri)
    process = one._process
    if not with_process:
        process.kill()
        process.wait()
    one.open(info(uri))
    one.close()
    process.wait(60)
    assert [run.status for run in list_runs(connect(uri))] == ["FAILED"]


def test_what_the_store_says_comes_back_as_its_error(opener, tmp_path: Path):
    uri = f"sqlite:///{tmp_path}/m.db"
    with pytest.raises(StoreRejected, match=r"(reading|reopening) run") as refused:
        opener(uri).open(info(uri, run_id="0" * 32))
    assert "\n" not in str(refused.value)
    gone = f"sqlite:///{tmp_path}/no/such/folder/m.db"
    with pytest.raises(StoreUnavailable, match="does not exist; make it"):
        opener(gone).open(info(gone))


def test_a_trainer_never_imports_mlflow(tmp_path: Path, records_file):
    """The whole training, with its run in MLflow."""
    script = (
        "import sys\nfrom mltrack import TrainModelRequest, TrainModelUseCase\n"
        f"r = TrainModelUseCase().execute(TrainModelRequest(task='text_classification', dataset_path={str(records_file('text_classification'))!r},"
        f" model_name='scratch:tiny', max_steps=2, batch_size=4, tracking_uri='sqlite:///{tmp_path}/m.db', output_dir={str(tmp_path / 'runs')!r}))\n"
        "assert r.success, r.errors\nassert r.delivery == 'complete'\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('mlflow', 'sqlalchemy')))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.strip().splitlines()[-1] == "[]"
