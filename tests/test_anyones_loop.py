"""A hand-written PyTorch loop has the tracker's guarantees: killed or ended, every point is in MLflow once, and the
status is true.

The loop is a program of its own, as a user writes it; nothing of mltrack but the tracker is in it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ready_store import ready_store
from tracked_runs import assert_complete, client, complete, recorded, start_script, until

from mltrack.journal import RunDirectory

OUTSIDE = """
import sys, time, torch
from mltrack import TrainingMetricsTracker

folder, uri, run_id, steps = sys.argv[1:]
torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
with TrainingMetricsTracker(folder, run_id=run_id, tracking_uri=uri) as tracker:
    for step in range(1, int(steps) + 1):
        x = torch.randn(16, 8)
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tracker.log_metrics({"train_loss": loss, "grad_norm": norm}, step)
        time.sleep(0.002)
"""

INSIDE = """
import sys, mlflow, time, torch
from mltrack import TrainingMetricsTracker

folder, uri, run_id, steps = sys.argv[1:]
mlflow.set_tracking_uri(uri)
torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
with mlflow.start_run(run_id=run_id), TrainingMetricsTracker(folder) as tracker:
    for step in range(1, int(steps) + 1):
        x = torch.randn(16, 8)
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tracker.log_metric("train_loss", loss, step)
        time.sleep(0.002)
        if steps == "301" and step == 300:
            raise RuntimeError("the user's own mistake")
"""
"""The run is found by itself: it is active here, and mlflow is imported."""

LOOPS = {"outside": OUTSIDE, "inside": INSIDE}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return ready_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def run_id(uri: str) -> str:
    """A run that the user made, before the loop; it says RUNNING."""
    return str(MlflowClient(tracking_uri=uri).create_run("0").info.run_id)


@pytest.mark.parametrize("where", LOOPS)
def test_killed_in_the_middle_every_point_is_there_once_and_the_run_failed(
    where: str, uri: str, run_id: str, tmp_path: Path
) -> None:
    directory = RunDirectory(tmp_path / "metrics")
    process = start_script(LOOPS[where], directory.path, uri, run_id, 1_000_000)
    until(lambda: directory.journal.exists() and recorded(directory) > 700, "700 records")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    until(lambda: complete(directory), "the delivery")
    assert assert_complete(directory, uri, status="FAILED") == run_id
    steps = [point.step for point in client(uri).get_metric_history(run_id, "train_loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 700


def test_ended_inside_the_users_own_run_the_user_finishes_it(uri: str, run_id: str, tmp_path: Path) -> None:
    process = start_script(INSIDE, tmp_path / "metrics", uri, run_id, 300)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert assert_complete(RunDirectory(tmp_path / "metrics"), uri, status="FINISHED") == run_id
    assert len(client(uri).get_metric_history(run_id, "train_loss")) == 300


def test_an_exception_inside_the_users_own_run_is_a_failed_run_with_all_points(
    uri: str, run_id: str, tmp_path: Path
) -> None:
    process = start_script(INSIDE, tmp_path / "metrics", uri, run_id, 301)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the user's own mistake" in errors
    assert assert_complete(RunDirectory(tmp_path / "metrics"), uri, status="FAILED") == run_id
    assert len(client(uri).get_metric_history(run_id, "train_loss")) == 300


def test_a_run_given_by_its_id_alone_is_complete_when_the_loop_ends(uri: str, run_id: str, tmp_path: Path) -> None:
    process = start_script(OUTSIDE, tmp_path / "metrics", uri, run_id, 300)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert assert_complete(RunDirectory(tmp_path / "metrics"), uri, status="FINISHED") == run_id
    assert len(client(uri).get_metric_history(run_id, "grad_norm")) == 300


TRAINER = """
import sys, torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from mltrack import TrainingMetricsTracker

folder, uri, run_id, steps = sys.argv[1:]


class JournalCallback(TrainerCallback):
    def __init__(self, tracker):
        self.tracker = tracker

    def on_log(self, args, state, control, logs=None, **others):
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, (int, float)) and name != "epoch"}
        self.tracker.log_metrics(numbers, step=max(1, state.global_step))


torch.manual_seed(0)
config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)
rows = [{"input_ids": torch.randint(0, 32, (8,)), "labels": i % 2} for i in range(32)]
options = TrainingArguments(
    folder + "/hf", max_steps=int(steps), per_device_train_batch_size=8, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True
)
with TrainingMetricsTracker(folder, run_id=run_id, tracking_uri=uri) as tracker:
    Trainer(BertForSequenceClassification(config), options, train_dataset=rows, callbacks=[JournalCallback(tracker)]).train()
"""
"""Hugging Face's own trainer with a callback of a few lines."""


@pytest.mark.long
def test_a_hugging_face_trainer_with_a_callback_killed_in_the_middle(uri: str, run_id: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    directory = RunDirectory(tmp_path / "metrics")
    process = start_script(TRAINER, directory.path, uri, run_id, 1_000_000)
    until(lambda: process.poll() is not None or (directory.journal.exists() and recorded(directory) > 60), "60 records")
    os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    until(lambda: complete(directory), "the delivery")
    assert assert_complete(directory, uri, status="FAILED") == run_id
    steps = [point.step for point in client(uri).get_metric_history(run_id, "loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 50


@pytest.mark.long
def test_a_hugging_face_trainer_with_a_callback_to_its_end(uri: str, run_id: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    process = start_script(TRAINER, tmp_path / "metrics", uri, run_id, 20)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert assert_complete(RunDirectory(tmp_path / "metrics"), uri, status="FINISHED") == run_id
    assert [point.step for point in client(uri).get_metric_history(run_id, "loss")] == list(range(1, 21))
    assert client(uri).get_run(run_id).data.metrics["train_loss"] > 0
