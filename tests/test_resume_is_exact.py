"""A training that was stopped after any optimizer step ends as one that never was."""

from __future__ import annotations

import pytest
import tiny
import torch

from mltrack import AdvancedTrainer
from mltrack.errors import Interrupted

pytestmark = pytest.mark.device

DETERMINISTIC = (
    "train_loss",
    "learning_rate",
    "grad_norm",
    "eval_loss",
    "epoch/train_loss",
    "epoch/eval_loss",
    "epoch/train_loss_std",
)


class StopAfter:
    """Asks for a stop at the n-th poll."""

    def __init__(self, polls: int):
        self.polls, self.seen = polls, 0

    def __call__(self) -> int | None:
        self.seen += 1
        return 15 if self.seen > self.polls else None


def _trainer(folder, source, train, evaluation, *, stop=lambda: None, late=False, attention="sdpa", **options):
    from mltrack import CheckpointManager, TrainingMetricsTracker

    defaults = {
        "num_epochs": 2,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "eval_every": 3,
        "save_every": 2,
        "device": tiny.DEVICE,
    }
    resume = (folder / "journal").exists()
    model = tiny.model(source, train, dropout=0.1)
    model.set_attn_implementation(attention)
    made = AdvancedTrainer(
        model,
        train,
        evaluation,
        tracker=TrainingMetricsTracker(folder, resume=resume),
        checkpoint_manager=CheckpointManager(folder / "checkpoints", max_checkpoints=2, tokenizer=source.tokenizer),
        stop_requested=stop,
        **{**defaults, **options},
    )
    made.reads_late = late
    return made


def _finished(made):
    made.train()
    made.tracker.close()
    journal = made.tracker.directory.journal
    return {
        "weights": {name: tensor.clone() for name, tensor in made.model.state_dict().items()},
        "optimizer": made.optimizer.state_dict(),
        "schedule": made.scheduler.last_epoch,
        "scaler": made.precision.state_dict(),
        "metrics": {name: tiny.points(journal, name) for name in DETERMINISTIC},
        "kept": [
            (one.step, one.metric_value)
            for one in made.checkpoint_manager.list_checkpoints()
            if one.metric_value is not None
        ],
        "best": (made.state.best_step, made.state.best_metric),
    }


def _assert_equal(found, expected):
    for name, tensor in expected["weights"].items():
        assert torch.equal(found["weights"][name], tensor), name
    for number, held in expected["optimizer"]["state"].items():
        for name, tensor in held.items():
            assert torch.equal(found["optimizer"]["state"][number][name], tensor), (number, name)
    for name in ("schedule", "scaler", "metrics", "best", "kept"):
        assert found[name] == expected[name], name


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("text_classification", {"use_mixed_precision": "off"}),
        ("text_classification", {"use_mixed_precision": "bf16"}),
        ("text_classification", {"use_mixed_precision": "fp16"}),
        ("text_classification", {"late": True}),
        ("text_classification", {"use_mixed_precision": "bf16", "attention": "eager", "gradient_checkpointing": True}),
        ("text_classification", {"max_batch_tokens": 128}),
        ("code_generation", {"packing": True}),
    ],
)
def test_stopped_at_any_poll_and_resumed(tmp_path, records_file, task, options):
    """The stop falls between micro-batches (also inside an accumulated step) and inside evaluations."""
    source, train, evaluation = tiny.data(records_file(task, 28), task)
    options = {"use_mixed_precision": "off", "early_stopping_patience": 9, **options}
    never = StopAfter(10**9)
    expected = _finished(_trainer(tmp_path / "whole", source, train, evaluation, stop=never, **options))
    assert never.seen > 12, "accumulated steps of two epochs and their evaluations"
    for polls in range(never.seen):
        folder = tmp_path / str(polls)
        stopped = _trainer(folder, source, train, evaluation, stop=StopAfter(polls), **options)
        with pytest.raises(Interrupted):
            stopped.train()
        stopped.tracker.close()
        torch.manual_seed(999)  # a new process would not have the old generator either
        resumed = _trainer(folder, source, train, evaluation, **options)
        checkpoint = resumed.checkpoint_manager.load_latest_checkpoint()
        resumed.load_checkpoint(checkpoint)
        resumed.tracker.resume_from(resumed.state.step, resumed.state.epoch)
        found = _finished(resumed)
        _assert_equal(found, expected)
