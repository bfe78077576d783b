"""The loop: what a step computes, when things happen, how it ends."""

from __future__ import annotations

import json
import statistics
import threading
from dataclasses import replace

import pytest
import tiny
import torch
from transformers import get_linear_schedule_with_warmup

from mltrack import TrainingConfig
from mltrack.errors import ConfigurationError
from mltrack.training import TrainingState
from mltrack.training.schedule import Plan, adamw, describe_change, linear_warmup_decay

pytestmark = pytest.mark.device

TASKS = ("text_classification", "security_classification", "code_generation")


def rates(make, total):
    """The learning rate of each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = make(optimizer)
    found = []
    for _ in range(total + 2):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10), (4, 4)])
def test_the_schedule_is_that_of_transformers_but_for_a_first_step_that_trains(warmup, total):
    """In the warmup each step has the rate that transformers gives the next one."""
    theirs = rates(lambda optimizer: get_linear_schedule_with_warmup(optimizer, warmup, total), total)
    ramp = [0.3 * step / warmup for step in range(1, warmup + 1)]
    found = rates(lambda optimizer: linear_warmup_decay(optimizer, Plan(total, total, warmup)), total)
    assert found == pytest.approx([*ramp, *theirs[warmup:]])
    old = rates(lambda optimizer: linear_warmup_decay(optimizer, Plan(total, total, warmup, as_in_0_1=True)), total)
    assert old == pytest.approx(theirs), "a run that mltrack 0.1 began"


def test_a_single_step_with_warmup_trains(trainer):
    made = trainer(max_steps=1, warmup_ratio=0.06)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    made.train()
    assert tiny.points(made.tracker.directory.journal, "learning_rate") == {1: 1e-3}
    assert any(not torch.equal(before[name], tensor) for name, tensor in made.model.state_dict().items())


def test_the_plan_counts_optimizer_steps():
    config = TrainingConfig(num_epochs=3, gradient_accumulation_steps=4, warmup_ratio=0.1)
    assert Plan.of(config, 10) == Plan(steps_per_epoch=3, total_steps=9, warmup_steps=1)
    assert Plan.of(TrainingConfig(num_epochs=3, max_steps=5, warmup_steps=2), 10) == Plan(10, 5, 2)
    assert Plan.of(TrainingConfig(num_epochs=1, max_steps=45, warmup_ratio=0.1), 10) == Plan(10, 45, 5), (
        "whatever epochs says"
    )


def test_max_steps_takes_as_many_epochs_as_it_needs(trainer):
    made = trainer(num_epochs=1, max_steps=10)
    results = made.train()
    assert made.plan.steps_per_epoch < 10 / 2
    assert (results["steps_run"], results["epochs_run"]) == (10, -(-10 // made.plan.steps_per_epoch))
    assert tiny.points(made.tracker.directory.journal, "learning_rate")[10] == pytest.approx(1e-3 / 10), (
        "the schedule is that of max_steps"
    )


def test_what_a_checkpoint_holds_of_an_epoch_does_not_grow_with_its_steps():
    state, losses = TrainingState(), [2.0 / (1 + step) for step in range(1000)]
    state.count_step(2 * losses[0], 2, 4, 10, 0.1)
    size = len(json.dumps(state.state_dict()))
    for loss in losses[1:]:
        state.count_step(2 * loss, 2, 4, 10, 0.1)
    assert len(json.dumps(state.state_dict())) < size + 200
    again = TrainingState()
    again.load_state_dict(json.loads(json.dumps(state.state_dict())))
    found = again.epoch_aggregates()
    assert found["train_loss"] == pytest.approx(statistics.fmean(losses))
    assert found["train_loss_std"] == pytest.approx(statistics.pstdev(losses))
    assert (found["train_loss_min"], found["train_loss_max"]) == (min(losses), max(losses))
    again.next_epoch()
    assert again.epoch_aggregates() == {"seconds": 0.0}


def test_biases_and_norms_do_not_decay(trainer):
    made = trainer()
    decaying, others = adamw(made.model, made.config).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in made.model.named_parameters()}
    assert all(
        "bias" in names[id(parameter)] or "norm" in names[id(parameter)].lower() for parameter in others["params"]
    )
    assert not any("bias" in names[id(parameter)] for parameter in decaying["params"])
    made.tracker.close()


def test_each_step_is_logged_once_and_epochs_are_aggregated(trainer):
    made = trainer(num_epochs=2)
    results = made.train()
    journal = made.tracker.directory.journal
    steps = results["steps_run"]
    for name in ("train_loss", "learning_rate", "grad_norm", "tokens_per_second"):
        assert list(tiny.points(journal, name)) == list(range(1, steps + 1))
    for name in (
        "train_loss",
        "train_loss_std",
        "train_loss_min",
        "train_loss_max",
        "eval_loss",
        "eval_accuracy",
        "seconds",
    ):
        assert list(tiny.points(journal, f"epoch/{name}")) == [1, 2]
    assert list(tiny.points(journal, "eval_loss")) == [steps // 2, steps]
    assert [entry["epoch"] for entry in results["history"]] == [0, 1]


@pytest.mark.parametrize("task", TASKS)
def test_the_epochs_loss_is_weighted_by_targets(trainer, task):
    made = trainer(task)
    made.train()
    journal = made.tracker.directory.journal
    sizes = [int(made.train_dataset.target_counts[batch].sum()) for batch in made.batches._sampler(0)]
    losses = tiny.points(journal, "train_loss")
    expected = sum(size * loss for size, loss in zip(sizes, losses.values(), strict=True)) / sum(sizes)
    assert tiny.points(journal, "epoch/train_loss")[1] == pytest.approx(expected)


def test_evaluation_and_saving_every_so_many_steps(trainer):
    made = trainer(num_epochs=2, eval_every=3, save_every=3, max_checkpoints=50)
    results = made.train()
    per_epoch, steps = results["steps_run"] // 2, results["steps_run"]
    evaluated = sorted(tiny.points(made.tracker.directory.journal, "eval_loss"))
    assert evaluated == sorted({*range(3, steps + 1, 3), per_epoch, steps})
    saved = {one.step for one in made.checkpoint_manager.list_checkpoints()}
    assert {*range(3, steps + 1, 3), steps, results["best_step"]} <= saved


def test_max_steps_ends_in_mid_epoch_with_evaluation_and_checkpoint(trainer):
    made = trainer(num_epochs=5, max_steps=3)
    threads = set(threading.enumerate())
    results = made.train()
    assert not {thread for thread in set(threading.enumerate()) - threads if "ahead" in thread.name}, (
        "nothing is made for steps that nobody takes"
    )
    assert (results["steps_run"], results["epochs_run"]) == (3, 1)
    assert list(tiny.points(made.tracker.directory.journal, "eval_loss")) == [3]
    assert made.checkpoint_manager.get_latest_checkpoint_info().step == 3


class _Scripted:
    """Evaluates to given losses, one a call."""

    def __init__(self, losses):
        self.losses = list(losses)

    def __call__(self, *args, **options):
        return {"loss": self.losses.pop(0)}, None


def test_early_stopping_at_the_right_epoch(trainer, monkeypatch):
    import mltrack.training.trainer as module

    monkeypatch.setattr(module, "evaluate", _Scripted([1.0, 0.8, 0.79, 0.85, 0.795, 0.1, 0.1]))
    results = trainer(num_epochs=7, early_stopping_patience=3, early_stopping_min_delta=0.05).train()
    assert (results["stopped_early"], results["epochs_run"]) == (True, 5)
    assert (results["best_metric"], results["best_epoch"]) == (0.79, 2)


@pytest.mark.parametrize("mode", ["fp16", "bf16"])
def test_mixed_precision_trains_to_about_the_same_loss(trainer, mode):
    final = {}
    for precision in ("off", mode):
        made = trainer(name=precision, num_epochs=6, use_mixed_precision=precision, dropout=0.0)
        assert made.precision.mode == precision
        final[precision] = made.train()["history"][-1]["eval_loss"]
        assert all(parameter.dtype == torch.float32 for parameter in made.model.parameters())
    assert final[mode] == pytest.approx(final["off"], abs=0.05)


def test_an_unknown_metric_is_named_with_those_that_there_are(trainer):
    with pytest.raises(
        ConfigurationError, match=r"metric_name must be .*eval_loss.* not 'eval_acuracy'.*did you mean 'eval_accuracy'"
    ):
        trainer(metric_name="eval_acuracy")


def test_an_unknown_option_is_named(trainer):
    with pytest.raises(ConfigurationError, match=r"option 'learning_rat'; .*did you mean 'learning_rate'"):
        trainer(learning_rat=1.0)


def test_gradient_checkpointing_changes_memory_not_results(trainer):
    losses = []
    for on in (False, True):
        made = trainer("code_generation", dropout=0.0, name=str(on), gradient_checkpointing=on)
        made.train()
        losses.append(tiny.points(made.tracker.directory.journal, "train_loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_schedule_that_stays_is_not_said_to_change():
    then = Plan(10, 20, 4)
    assert describe_change(then, replace(then, steps_per_epoch=5), 3, (1e-3, 1e-3)) is None
    line = describe_change(then, replace(then, total_steps=40), 3, (1e-3, 1e-3))
    assert line is not None
    assert "from 20 to 40" in line
    assert "stays 0.001" in line
