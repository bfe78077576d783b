"""An optimizer step is the sum of its losses over the sum of its targets, however it is cut: into micro-batches or onto
replicas.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

from mltrack.checkpoints.state import capture_rng
from mltrack.data import Sampler
from mltrack.errors import ConfigurationError
from mltrack.tasks import task_named
from mltrack.tasks.class_loss import balanced
from mltrack.training.parallel import DataParallelReplicas

pytestmark = pytest.mark.device

TASKS = ("text_classification", "security_classification", "code_generation")
CUTS = ((8, 1), (4, 2), (2, 4), (1, 8))
CASES = [(task, {}) for task in TASKS] + [
    ("security_classification", {"class_weights": "balanced"}),
    ("code_generation", {"packing": True}),
]


@pytest.mark.parametrize(("task", "options"), CASES)
def test_a_run_is_the_same_however_its_steps_are_cut(trainer, task, options):
    """30 training records, two epochs in the sampler's own order, the ragged tail of 6 included: losses, norms,
    schedule and weights.
    """
    found = []
    for batch_size, accumulation in CUTS:
        made = trainer(
            task,
            dropout=0.0,
            name=f"{batch_size}x{accumulation}",
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            num_epochs=2,
            warmup_ratio=0.3,
            **options,
        )
        assert len(made.train_dataset) % 8, "the tail must be ragged"
        made.train()
        journal = made.tracker.directory.journal
        names = ("train_loss", "grad_norm", "learning_rate")
        weights = torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])
        found.append((weights, *(tiny.points(journal, name) for name in names), made.plan.total_steps))
    weights, losses, norms, rates, steps = found[0]
    assert len(losses) == steps == 2 * math.ceil(len(made.train_dataset) / 8)
    for other in found[1:]:
        assert other[1] == pytest.approx(losses, rel=1e-5)
        assert other[2] == pytest.approx(norms, rel=1e-4)
        assert other[3:] == (rates, steps)
        assert torch.allclose(other[0], weights, atol=2e-5)


@pytest.mark.parametrize("task", TASKS)
def test_the_gradient_is_that_of_the_mean_over_all_targets(trainer, task):
    """Beside torch alone: every record by itself, the losses of all targets of the step added up and divided once."""
    made = trainer(task, dropout=0.0, batch_size=3, gradient_accumulation_steps=4, max_grad_norm=1e9)
    group = next(made.batches.groups(0, 0))
    total = torch.zeros((), device=made.device)
    for record in (record for batch in group for record in batch.records):
        example = made.train_dataset[record]
        row, labels = (torch.as_tensor(example[name], device=made.device) for name in ("input_ids", "labels"))
        if made.train_dataset.task.has_classes:
            total = total + F.cross_entropy(made.model(row[None]).logits, labels[None], reduction="sum")
        else:
            total = total + F.cross_entropy(
                made.model(row[None]).logits[0, :-1], labels[1:], reduction="sum", ignore_index=-100
            )
    targets = sum(int(made.train_dataset.target_counts[batch.records].sum()) for batch in group)
    (total / targets).backward()
    expected = {
        name: parameter.grad.clone() for name, parameter in made.model.named_parameters() if parameter.grad is not None
    }
    made.optimizer.zero_grad()
    made.model.train()
    gradient = made.gradient.accumulate(group, capture_rng())
    assert gradient.targets == targets
    assert sum(gradient.measured.wait()[:-1]) == pytest.approx(total.item(), rel=1e-5)
    for name, parameter in made.model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-6), name
    made.tracker.close()


def test_with_dropout_the_loss_of_a_step_has_the_same_distribution_however_it_is_cut(trainer):
    """The draws differ, their distribution does not: mean within four standard errors, variance within the F
    distribution's far ends.
    """
    draws, found = 120, []
    for batch_size, accumulation in ((8, 1), (1, 8)):
        made = trainer(
            dropout=0.3, name=str(batch_size), batch_size=batch_size, gradient_accumulation_steps=accumulation
        )
        made.model.train()
        group = next(made.batches.groups(0, 0))
        losses = []
        for seed in range(draws):
            torch.manual_seed(1000 * batch_size + seed)
            gradient = made.gradient.accumulate(group, capture_rng())
            made.optimizer.zero_grad()
            losses.append(sum(gradient.measured.wait()[:-1]) / gradient.targets)
        made.tracker.close()
        found.append(torch.tensor(losses, dtype=torch.float64))
    whole, parts = found
    assert whole.std() > 0
    error = ((whole.var() + parts.var()) / draws).sqrt()
    assert abs(whole.mean() - parts.mean()) < 4 * error
    assert 0.5 < whole.var() / parts.var() < 2


def test_the_examples_of_a_step_do_not_depend_on_how_it_is_cut():
    lengths = torch.randint(1, 200, (1003,), generator=torch.Generator().manual_seed(1)).numpy()

    def steps(batch_size, accumulation, world=1):
        ranks = [
            list(Sampler(lengths, 7, 3, rank, world, batch_size=batch_size, accumulation=accumulation, bucket_window=5))
            for rank in range(world)
        ]
        micro = [[record for rank in ranks for record in rank[number]] for number in range(len(ranks[0]))]
        return [sorted(chain(*micro[start : start + accumulation])) for start in range(0, len(micro), accumulation)]

    whole = steps(16, 1)
    assert sorted(chain(*whole)) == list(range(1003))
    for batch_size, accumulation, world in ((8, 2, 1), (4, 4, 1), (1, 16, 1), (8, 1, 2), (2, 2, 4), (1, 4, 4)):
        assert steps(batch_size, accumulation, world) == whole, (batch_size, accumulation, world)


def test_balanced_weights_have_the_mean_one_over_the_records_and_leave_evaluation_alone(trainer):
    counts = {"safe": 80, "low": 15, "medium": 5, "high": 0}
    weights = balanced(counts)
    assert weights == pytest.approx((100 / 240, 100 / 45, 100 / 15, 0.0))
    assert sum(weight * count for weight, count in zip(weights, counts.values(), strict=True)) == pytest.approx(100)
    losses = []
    for name in ("none", "balanced"):
        made = trainer("security_classification", name=name, class_weights=name)
        losses.append(made._evaluate(made.eval_dataset)["eval_loss"])
        made.tracker.close()
    assert losses[0] == losses[1]


def test_class_weights_without_classes_are_refused(trainer):
    with pytest.raises(ConfigurationError, match=r"class_weights .*none.* balanced.*code_generation has no classes"):
        trainer("code_generation", class_weights="balanced")


class SplitRunGather(nn.Module):
    """Does on the CPU what nn.DataParallel does on GPUs: split along dimension 0, run each part, gather along dimension
    0.
    """

    def __init__(self, module, replicas=2):
        super().__init__()
        self.module, self.replicas = module, replicas

    def forward(self, batch):
        size = math.ceil(len(batch["labels"]) / self.replicas)
        parts = [
            {name: tensor[i : i + size] for name, tensor in batch.items()} for i in range(0, len(batch["labels"]), size)
        ]
        outputs = [self.module(part) for part in parts]
        assert all(value.shape == (1,) for output in outputs for value in output), "DataParallel cannot gather a scalar"
        return tuple(torch.cat(values) for values in zip(*outputs, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_replicas_give_the_gradients_of_one_device(trainer, task):
    losses = []
    for name in ("one", "two"):
        made = trainer(task, dropout=0.0, name=name)
        if name == "two":
            made.parallel = DataParallelReplicas(task_named(task), wrap=SplitRunGather)
        made.train()
        losses.append(
            (
                tiny.points(made.tracker.directory.journal, "train_loss"),
                tiny.points(made.tracker.directory.journal, "grad_norm"),
            )
        )
        assert not any(
            key.startswith("module.") for key in made.checkpoint_manager.load_latest_checkpoint()["model_state_dict"]
        )
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert losses[1][1] == pytest.approx(losses[0][1], rel=1e-4)


class ThreadsOfTheirOwn(SplitRunGather):
    """As nn.DataParallel does: a thread for each replica, which is told that there is an autocast and not which."""

    def forward(self, batch):
        enabled = torch.is_autocast_enabled("cpu")

        def run(part):
            with torch.autocast("cpu", enabled=enabled):
                return self.module(part)

        halves = [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, 2), slice(2, None))]
        with ThreadPoolExecutor(2) as threads:
            outputs = list(threads.map(run, halves))
        return tuple(torch.cat(values) for values in zip(*outputs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_replicas_compute_in_the_precision_of_the_training(dtype):
    """A thread's own default for the CPU is bf16, and for a GPU fp16: without a word from the caller it would be that
    one.
    """
    seen = []

    class Watched:
        def sums(self, model, batch):
            product = model(batch["x"])
            seen.append(product.dtype)
            return product.float().sum(), torch.tensor(len(product))

    parallel = DataParallelReplicas(Watched(), wrap=ThreadsOfTheirOwn)
    model, batch = nn.Linear(8, 8), {"x": torch.randn(4, 8), "labels": torch.zeros(4)}
    with torch.autocast("cpu", dtype=dtype):
        parallel.sums(model, batch)
    parallel.sums(model, batch)
    assert seen == [dtype, dtype, torch.float32, torch.float32]
