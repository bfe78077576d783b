"""A run goes on where only its tracking server is at hand, and ends as one that was never stopped: each number once,
the same weights, the same best-k.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import commands
import pytest
import tiny
import torch
from conftest import write_records
from mlflow import MlflowClient
from ready_store import ready_store
from safetensors.torch import load_file
from servers import mlflow_server
from tracked_runs import is_running, kill, relay_pid, until

from mltrack.journal import RunDirectory, read_journal

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
STEPS = 48
OPTIONS = (
    "--max-steps",
    STEPS,
    "--epochs",
    "1000",
    "--save-every",
    "4",
    "--eval-every",
    "8",
    "--max-checkpoints",
    "2",
    "--output",
    "json",
)
DETERMINISTIC = (
    "train_loss",
    "learning_rate",
    "grad_norm",
    "eval_loss",
    "eval_accuracy",
    "epoch/train_loss",
    "epoch/train_loss_std",
)


def _records(folder: Path) -> Path:
    return write_records(folder / "records.jsonl", count=48)


def _words(records: Path, *more: object) -> tuple[object, ...]:
    return commands.training(records, *OPTIONS, *more)


def _ended(finished: Any) -> dict[str, Any]:
    assert finished.returncode == 0, finished.stderr
    return tiny.last_json_line(finished.stdout)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """(folder, records, response) of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    records = _records(folder)
    ready_store(folder)
    return folder, records, _ended(commands.mltrack(*_words(records), cwd=folder))


def _killed(folder: Path, records: Path, *more: object, after_step: int = 22) -> RunDirectory:
    """The directory of a run whose trainer was killed in the middle and whose relay has told MLflow so."""
    ready_store(folder)
    process = commands.start(*_words(records, *more), cwd=folder)

    def journal() -> Path | None:
        found = next(iter(folder.glob("mltrack-runs/*/journal")), None)
        assert process.poll() is None, process.stderr.read()
        return found if found is not None and len(tiny.points(found, "train_loss")) >= after_step else None

    directory = RunDirectory(until(journal, f"step {after_step}", 120).parent.resolve())
    os.kill(process.pid, signal.SIGSTOP)  # it would end while the relay is still on its way
    relay = relay_pid(directory)
    kill(process.pid)
    process.communicate()
    assert read_journal(directory.journal)[-1]["type"] != "end"
    until(lambda: not is_running(relay), "the end of the delivery")
    assert directory.read_delivery()["status"] == "FAILED"
    return directory


def _by_step(path: Path, name: str) -> dict[int, float]:
    return tiny.points(path, name)


def _assert_equals_whole(
    response: dict[str, Any], folder: Path, client: MlflowClient, whole: tuple[Path, Path, dict[str, Any]]
) -> None:
    whole_folder, _, expected = whole
    there, here = whole_folder / "mltrack-runs" / expected["run_id"], folder / "mltrack-runs" / response["run_id"]
    for name in DETERMINISTIC:
        held = client.get_metric_history(response["run_id"], name)
        assert len({point.step for point in held}) == len(held), f"{name} stands twice"
        assert {point.step: point.value for point in held} == _by_step(there / "journal", name), name
        assert _by_step(here / "journal", name) == _by_step(there / "journal", name), name
    for part in ("model.safetensors", "optimizer.safetensors"):
        last = f"checkpoints/step-{STEPS:08d}/{part}"
        expected_tensors, found = load_file(there / last), load_file(here / last)
        assert expected_tensors.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected_tensors.items())
    keys = ("step", "epoch", "metric_value", "metrics")
    assert [[one[key] for key in keys] for one in response["checkpoints"]] == [
        [one[key] for key in keys] for one in expected["checkpoints"]
    ]
    for name in ("best_step", "best_metric", "steps_run", "status"):
        assert response[name] == expected[name], name
    run = client.get_run(response["run_id"])
    assert "mltrack.resume_drift" not in run.data.tags
    models = client.search_logged_models([run.info.experiment_id])
    held = sorted(int(model.tags["mltrack.step"]) for model in models if model.source_run_id == response["run_id"])
    assert held == [one["step"] for one in response["checkpoints"]]


def test_killed_its_directory_gone_and_resumed_from_another_folder(whole, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    directory = _killed(first, whole[1])
    run_id = directory.read_run().run_id
    kept = {int(path.name.removeprefix("step-")) for path in directory.checkpoints.glob("step-*")}
    shutil.rmtree(first / "mltrack-runs")
    uri = f"sqlite:///{first}/mlflow.db"
    finished = commands.mltrack("train", "--resume", run_id, "--output", "json", cwd=second, MLFLOW_TRACKING_URI=uri)
    response = _ended(finished)
    assert (response["run_id"], response["delivery"]) == (run_id, "complete")
    assert f"points and {len(kept)} checkpoints" in finished.stderr
    assert not (second / "mlflow.db").exists()
    _assert_equals_whole(response, second, MlflowClient(uri), whole)
    resumed = [
        record for record in read_journal(second / "mltrack-runs" / run_id / "journal") if record["type"] == "resumed"
    ]
    assert [record["step"] for record in resumed] == [max(kept)]
    assert not list((second / "mltrack-runs").glob(".fetching*"))


def test_through_a_server_that_carries_the_artifacts(whole, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    with mlflow_server(tmp_path / "server") as uri:
        directory = _killed(first, whole[1], "--tracking-uri", uri)
        shutil.rmtree(first / "mltrack-runs")
        response = _ended(
            commands.mltrack(
                "train", "--resume", directory.path.name, "--tracking-uri", uri, "--output", "json", cwd=second
            )
        )
        _assert_equals_whole(response, second, MlflowClient(uri), whole)


def test_a_run_that_went_on_elsewhere_is_fetched_anew_and_the_old_directory_kept(whole, tmp_path: Path) -> None:
    """Machine one, machine two, machine one again: what one of them has not seen must not be trained twice."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    directory = _killed(one, whole[1], after_step=14)
    run_id, uri = directory.read_run().run_id, f"sqlite:///{one}/mlflow.db"
    words = ("train", "--resume", run_id, "--tracking-uri", uri, "--output", "json")
    _ended(commands.mltrack(*words, "--max-steps", 30, cwd=two))
    response = _ended(commands.mltrack(*words, "--max-steps", STEPS, cwd=one))
    client = MlflowClient(uri)
    held = client.get_metric_history(run_id, "train_loss")
    assert [point.step for point in held] == list(range(1, STEPS + 1))
    assert response["steps_run"] == STEPS
    aside = one / "mltrack-runs" / f"{directory.path.resolve().name}.earlier-1"
    assert (aside / "journal").exists()
    assert (aside / "earlier-run.json").exists()


def test_a_directory_that_fell_behind_takes_nothing_from_the_run_that_went_on(tmp_path: Path) -> None:
    """Trainer and relay of machine one die with an undelivered journal, machine two ends the run, machine one comes
    back: by itself and by hand.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    records, uri = _records(tmp_path), ready_store(tmp_path)
    saves = ("--save-every", 150, "--eval-every", 150, "--keep-every", 150)  # however slow the relay, it finds them all
    process = commands.start(*_words(records, "--tracking-uri", uri, "--max-steps", 10_000, *saves), cwd=one)
    threading.Thread(
        target=process.stderr.read, daemon=True
    ).start()  # a line for each evaluation: a pipe that nobody reads would stop the trainer
    found = until(
        lambda: next(
            (path for path in one.glob("mltrack-runs/*/models.json") if json.loads(path.read_text())["models"]), None
        ),
        "a model",
        120,
    )
    directory = RunDirectory(found.parent.resolve())
    relay, journal, run_id = relay_pid(directory), directory.journal, directory.read_run().run_id
    os.kill(relay, signal.SIGSTOP)
    noted = max(
        map(int, json.loads(found.read_text())["models"])
    )  # one more may lie in MLflow, whose word the relay had not written down yet
    until(
        lambda: max(tiny.points(journal, "train_loss")) > noted + 160,
        "steps and checkpoints that MLflow does not hold",
        120,
    )
    kill(process.pid)
    kill(relay)
    process.wait()
    client = MlflowClient(uri)
    ready = [
        one
        for one in client.search_logged_models([client.get_run(run_id).info.experiment_id])
        if str(one.status) == "READY"
    ]
    delivered = max(int(one.tags["mltrack.step"]) for one in ready)
    furthest = max(
        point.step for point in client.get_metric_history(run_id, "train_loss")
    )  # how far ahead of the checkpoints depends on the machine
    response = _ended(
        commands.mltrack(
            "train",
            "--resume",
            run_id,
            "--tracking-uri",
            uri,
            "--max-steps",
            delivered + 6,
            "--output",
            "json",
            cwd=two,
        )
    )
    assert (response["run_id"], response["delivery"], response["status"]) == (run_id, "complete", "FINISHED")

    def held() -> tuple[Any, ...]:
        run = client.get_run(run_id)
        points = {
            name: [(one.step, one.value, one.timestamp) for one in client.get_metric_history(run_id, name)]
            for name in run.data.metrics
        }
        models = [one for one in client.search_logged_models([run.info.experiment_id]) if one.source_run_id == run_id]
        folders = [
            Path(run.info.artifact_uri),
            *(Path(one.artifact_location.removeprefix("file://")) for one in models),
        ]
        files = {path: path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()}
        return run.info.status, run.data.tags, points, {one.model_id: str(one.status) for one in models}, files

    before, written = held(), journal.read_bytes()
    steps = [step for step, _, _ in before[2]["train_loss"]]
    assert steps == list(range(1, max(furthest, delivered + 6) + 1))
    assert before[1].get("mltrack.superseded_steps") == (
        f"{delivered + 7}-{furthest}" if furthest > delivered + 6 else None
    )
    assert len(before[3]) == len(response["checkpoints"])
    unrelated = commands.training(records, "--max-steps", "1", "--offline", "true")
    assert commands.mltrack(*unrelated, cwd=one).returncode == 0
    until(lambda: directory.read_delivery().get("elsewhere"), "the word of the delivery in the background")
    background = int((directory.path / "relay.lock").read_text())
    until(lambda: not is_running(background), "the end of the delivery in the background")
    assert f"{run_id} was resumed elsewhere" in directory.relay_log.read_text()
    assert held() == before
    said = directory.relay_log.read_text()
    assert commands.mltrack(*unrelated, cwd=one).returncode == 0
    by_hand = commands.mltrack("sync", run_id, cwd=one)
    assert (by_hand.returncode, f"run {run_id} was resumed elsewhere" in by_hand.stderr) == (1, True)
    assert directory.relay_log.read_text() == said, "nobody tries again by himself"
    assert held() == before
    assert journal.read_bytes() == written
    response = _ended(
        commands.mltrack("train", "--resume", run_id, "--max-steps", delivered + 8, "--output", "json", cwd=one)
    )
    assert response["delivery"] == "complete"
    assert [point.step for point in client.get_metric_history(run_id, "train_loss")] == list(
        range(1, max(furthest, delivered + 8) + 1)
    )
    assert (directory.path.with_name(f"{directory.path.resolve().name}.earlier-1") / "journal").read_bytes() == written


def test_what_cannot_be_fetched_is_said_in_one_line(whole, tmp_path: Path) -> None:
    nowhere = commands.mltrack("train", "--resume", "0" * 32, cwd=tmp_path)
    assert nowhere.returncode == 2
    line = nowhere.stderr.strip().splitlines()[-1]
    assert f"is no run in {tmp_path}/mltrack-runs (runs there: none)" in line
    assert "MLFLOW_TRACKING_URI" in line
    assert not (tmp_path / "mlflow.db").exists(), "a database is not made by looking for a run"
    uri = f"sqlite:///{whole[0]}/mlflow.db"
    unknown = commands.mltrack("train", "--resume", "0" * 32, "--tracking-uri", uri, cwd=tmp_path)
    assert (unknown.returncode, f"no run {'0' * 32} in {uri}" in unknown.stderr) == (2, True)
    client = MlflowClient(uri)
    foreign = client.create_run("0").info.run_id
    refused = commands.mltrack("train", "--resume", foreign, "--tracking-uri", uri, cwd=tmp_path)
    assert (refused.returncode, "was not trained by mltrack" in refused.stderr) == (2, True)
    client.delete_run(foreign)
    silent = commands.mltrack("train", "--resume", "0" * 32, "--tracking-uri", "http://127.0.0.1:1", cwd=tmp_path)
    assert silent.returncode == 1
    assert "127.0.0.1:1" in silent.stderr
    assert not list(tmp_path.glob("mltrack-runs/*"))
