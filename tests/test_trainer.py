"""The loop: what a step computes, when things happen, how it ends."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from mltrack import AdvancedTrainer, TrainingConfig
from mltrack.errors import ConfigurationError, NonFiniteLossError
from mltrack.tasks import task_for
from mltrack.training.parallel import DataParallelReplicas
from mltrack.training.schedule import Plan, adamw, linear_warmup_decay

TASKS = ("text_classification", "security_classification", "code_generation")


@pytest.fixture
def trainer(records_file, tmp_path):
    """trainer(task, **options) -> an AdvancedTrainer on small data."""

    def make(task="text_classification", count=40, dropout=None, name="out", **options):
        source, train, evaluation = tiny.data(records_file(task, count), task)
        made = tiny.model(source, train, dropout=dropout)
        defaults = {"num_epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "warmup_ratio": 0.0, "use_mixed_precision": False, "device": "cpu"}
        return AdvancedTrainer(made, train, evaluation, output_dir=tmp_path / name, **{**defaults, **options})

    return make


@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_the_same_however_it_is_cut(trainer, task):
    """30 training records: 8x1, 4x2, 2x4 and 1x8, the ragged tail of 6 included, give the same losses, norms and weights."""
    found = {}
    for batch_size, accumulation in ((8, 1), (4, 2), (2, 4), (1, 8)):
        made = trainer(task, dropout=0.0, name=f"{batch_size}x{accumulation}", batch_size=batch_size, gradient_accumulation_steps=accumulation, num_epochs=1)
        order = list(range(len(made.train_dataset)))
        made.batches._order = lambda epoch, size=batch_size, order=order: [order[i : i + size] for i in range(0, len(order), size)]
        made.train()
        weights = torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])
        journal = made.tracker.directory.journal
        found[batch_size] = (weights, tiny.points(journal, "train_loss"), tiny.points(journal, "grad_norm"))
    reference = found[8]
    assert len(reference[1]) == math.ceil(len(made.train_dataset) / 8) > 1
    assert len(made.train_dataset) % 8, "the tail must be ragged"
    for weights, losses, norms in found.values():
        assert losses == pytest.approx(reference[1], rel=1e-5)
        assert norms == pytest.approx(reference[2], rel=1e-4)
        assert torch.allclose(weights, reference[0], atol=2e-5)


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_does_not_see_the_batch(trainer, task):
    found = []
    for size in (1, 3, 8, 64):
        made = trainer(task, name=f"eval{size}", eval_batch_size=size)
        made.model.eval()
        found.append(made._evaluate(made.eval_dataset))
        made.tracker.close()
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-6)


class SplitRunGather(nn.Module):
    """Does on the CPU what nn.DataParallel does on GPUs: split along dimension 0, run each part, gather along dimension 0."""

    def __init__(self, module, replicas=2):
        super().__init__()
        self.module, self.replicas = module, replicas

    def forward(self, batch):
        size = math.ceil(len(batch["labels"]) / self.replicas)
        parts = [{name: tensor[i : i + size] for name, tensor in batch.items()} for i in range(0, len(batch["labels"]), size)]
        outputs = [self.module(part) for part in parts]
        assert all(value.shape == (1,) for output in outputs for value in output), "DataParallel cannot gather a scalar"
        return tuple(torch.cat(values) for values in zip(*outputs, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_replicas_give_the_gradients_of_one_device(trainer, task):
    losses = []
    for name in ("one", "two"):
        made = trainer(task, dropout=0.0, name=name)
        if name == "two":
            made.parallel = DataParallelReplicas(task_for(task), wrap=SplitRunGather)
        made.train()
        losses.append((tiny.points(made.tracker.directory.journal, "train_loss"), tiny.points(made.tracker.directory.journal, "grad_norm")))
        assert not any(key.startswith("module.") for key in made.checkpoint_manager.load_latest_checkpoint()["model_state_dict"])
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert losses[1][1] == pytest.approx(losses[0][1], rel=1e-4)


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10), (4, 4)])
def test_the_schedule_is_that_of_transformers(warmup, total):
    def rates(make):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        scheduler = make(optimizer)
        found = []
        for _ in range(total + 2):
            found.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return found

    ours = rates(lambda optimizer: linear_warmup_decay(optimizer, Plan(total, total, warmup)))
    assert ours == pytest.approx(rates(lambda optimizer: get_linear_schedule_with_warmup(optimizer, warmup, total)))


def test_the_plan_counts_optimizer_steps():
    config = TrainingConfig(num_epochs=3, gradient_accumulation_steps=4, warmup_ratio=0.1)
    assert Plan.of(config, 10) == Plan(steps_per_epoch=3, total_steps=9, warmup_steps=1)
    assert Plan.of(TrainingConfig(num_epochs=3, max_steps=5, warmup_steps=2), 10) == Plan(10, 5, 2)


def test_biases_and_norms_do_not_decay(trainer):
    made = trainer()
    decaying, others = adamw(made.model, made.config).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in made.model.named_parameters()}
    assert all("bias" in names[id(parameter)] or "norm" in names[id(parameter)].lower() for parameter in others["params"])
    assert not any("bias" in names[id(parameter)] for parameter in decaying["params"])
    made.tracker.close()


def test_each_step_is_logged_once_and_epochs_are_aggregated(trainer):
    made = trainer(num_epochs=2)
    results = made.train()
    journal = made.tracker.directory.journal
    steps = results["steps_run"]
    for name in ("train_loss", "learning_rate", "grad_norm", "tokens_per_second"):
        assert list(tiny.points(journal, name)) == list(range(1, steps + 1))
    for name in ("train_loss", "train_loss_std", "train_loss_min", "train_loss_max", "eval_loss", "eval_accuracy", "seconds"):
        assert list(tiny.points(journal, f"epoch/{name}")) == [1, 2]
    assert list(tiny.points(journal, "eval_loss")) == [steps // 2, steps]
    assert [entry["epoch"] for entry in results["history"]] == [0, 1]


@pytest.mark.parametrize("task", TASKS)
def test_the_epochs_loss_is_weighted_by_targets(trainer, task):
    made = trainer(task)
    made.train()
    journal = made.tracker.directory.journal
    sizes = [int(made.train_dataset.target_counts[batch].sum()) for batch in made.batches._order(0)]
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
    results = made.train()
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


def _poison(made, at_call):
    """Make the loss of one micro-batch NaN."""
    inner, calls = made.parallel.sums, iter(range(1, 10**6))

    def sums(model, batch):
        loss, count = inner(model, batch)
        return (loss * float("nan") if next(calls) == at_call else loss), count

    made.parallel.sums = sums


def _after_steps(made, count):
    """The weights after so many steps of the same plan."""
    made._begin()
    for _ in range(count):
        made._take_step(next(made._groups))
    made.tracker.close()
    return made.model.state_dict()


def test_a_nan_stops_the_run_before_it_reaches_the_weights(trainer):
    made = trainer(dropout=0.0)
    _poison(made, at_call=2)
    with pytest.raises(NonFiniteLossError, match=r"loss is nan at step 2 \(epoch 1\); .*record \d+") as caught:
        made.train()
    assert len(caught.value.records) == 8
    reference = trainer(dropout=0.0, name="reference")
    for name, tensor in _after_steps(reference, 1).items():
        assert torch.equal(made.model.state_dict()[name], tensor), name


def test_a_nan_can_be_skipped_and_is_counted(trainer):
    made = trainer(on_non_finite="skip")
    _poison(made, at_call=2)
    results = made.train()
    journal = made.tracker.directory.journal
    assert tiny.points(journal, "skipped_steps") == {2: 1.0}
    assert 2 not in tiny.points(journal, "train_loss")
    assert math.isfinite(results["best_metric"])


def test_an_unknown_metric_is_named_with_those_that_there_are(trainer):
    with pytest.raises(ConfigurationError, match=r"metric_name: seen 'eval_acuracy'; accepted: eval_loss.*did you mean 'eval_accuracy'"):
        trainer(metric_name="eval_acuracy")


def test_an_unknown_option_is_named(trainer):
    with pytest.raises(ConfigurationError, match=r"option: seen 'learning_rat'; .*did you mean 'learning_rate'"):
        trainer(learning_rat=1.0)


def test_gradient_checkpointing_changes_memory_not_results(trainer):
    losses = []
    for on in (False, True):
        made = trainer("code_generation", dropout=0.0, name=str(on), gradient_checkpointing=on)
        made.train()
        losses.append(tiny.points(made.tracker.directory.journal, "train_loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
