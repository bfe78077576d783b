"""A loss or gradient that is not finite never reaches the weights; it is named, and its batch is kept."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch
from safetensors.torch import load_file

from mltrack.errors import NonFiniteLossError
from mltrack.training.speed import training_context

pytestmark = pytest.mark.device

LATE = pytest.mark.parametrize("late", [False, True], ids=["read at once", "read a step later, as on a GPU"])


class _Poison(torch.autograd.Function):
    """Passes a loss on and makes its gradient infinite."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def poison(made, at_calls, where="loss"):
    """Make the loss, or the gradient, of some micro-batches not finite; the first call is 1."""
    inner, calls = made.parallel.sums, iter(range(1, 10**6))

    def sums(model, batch):
        loss, count = inner(model, batch)
        if next(calls) not in at_calls:
            return loss, count
        return (loss * math.nan if where == "loss" else _Poison.apply(loss)), count

    made.parallel.sums = sums


def weights_after(made, steps):
    """The weights after so many steps of the same plan."""
    with training_context(made.model, made.config, made.device, cls_only=made.cls_only):
        made._begin()
        for _ in range(steps):
            made._take_step(next(made._groups))
        made._finish_step()
    made.tracker.close()
    return made.model.state_dict()


def assert_equal(found, expected):
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@LATE
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("precision", ["off", "bf16"])
def test_the_run_stops_with_the_weights_of_the_step_before(trainer, late, where, precision):
    options = {"dropout": 0.1, "num_epochs": 2, "use_mixed_precision": precision}
    made = trainer(**options)
    made.reads_late = late
    poison(made, {3}, where)
    quantity, value = ("loss", "nan") if where == "loss" else ("gradient norm", "inf|nan")
    with pytest.raises(
        NonFiniteLossError,
        match=(
            rf"{quantity} is ({value}) at step 3 \(epoch 1\); it did not reach the weights; its records: .*record \d+"
        ),
    ):
        made.train()
    assert_equal(made.model.state_dict(), weights_after(trainer(**options, name="reference"), 2))
    assert made.state.step == made.scheduler.last_epoch == 2
    assert list(tiny.points(made.tracker.directory.journal, "train_loss")) == [1, 2]


def test_the_micro_batch_is_named_and_the_batch_is_kept(trainer):
    made = trainer(batch_size=2, gradient_accumulation_steps=4)
    poison(made, {7})
    with pytest.raises(NonFiniteLossError, match=r"step 2 \(epoch 1, micro-batch 3 of 4\)") as caught:
        made.train()
    assert len(caught.value.records) == 2
    folder = made.tracker.directory.path / "non_finite"
    facts = json.loads((folder / "step-00000002.json").read_text())
    tensors = load_file(folder / "step-00000002.safetensors")
    assert [batch["loss_sum"] for batch in facts["micro_batches"]].count("nan") == 1
    assert facts["named_records"] == list(caught.value.records)
    for number, batch in enumerate(facts["micro_batches"]):
        kept = tensors[f"{number}.input_ids"]
        for row, record in enumerate(batch["records"]):
            ids = torch.from_numpy(made.train_dataset[record]["input_ids"])
            assert torch.equal(kept[row, : len(ids)], ids)


def test_the_records_of_packed_rows_are_named_and_kept(trainer):
    made = trainer("code_generation", batch_size=8, gradient_accumulation_steps=2, packing=True)
    batch = next(made.batches.groups(0, 0))[1]
    assert batch.rows < len(batch.records)
    poison(made, {2})
    with pytest.raises(NonFiniteLossError, match=r"step 1 \(epoch 1, micro-batch 2 of 2\)") as caught:
        made.train()
    assert sorted(caught.value.records) == sorted(made.train_dataset.location(record) for record in batch.records)
    tensors = load_file(made.tracker.directory.path / "non_finite" / "step-00000001.safetensors")
    for record, row in zip(batch.records, tensors["1.row"].tolist(), strict=True):
        ids, kept = made.train_dataset[record]["input_ids"].tolist(), tensors["1.input_ids"][row].tolist()
        assert any(kept[start : start + len(ids)] == ids for start in range(len(kept))), record


@LATE
@pytest.mark.parametrize("precision", ["off", "bf16", "fp16"])
def test_skipped_steps_are_counted_and_the_schedule_waits(trainer, late, precision):
    made = trainer(on_non_finite="skip", num_epochs=2, warmup_ratio=0.5, use_mixed_precision=precision)
    made.reads_late = late
    poison(made, {2, 3})
    results = made.train()
    journal = made.tracker.directory.journal
    assert tiny.points(journal, "skipped_steps") == {2: 1.0, 3: 2.0}
    assert sorted({1, *range(4, results["steps_run"] + 1)}) == sorted(tiny.points(journal, "train_loss"))
    rates = tiny.points(journal, "learning_rate")
    assert rates[2] == rates[3] == rates[4] < rates[5]
    assert made.scheduler.last_epoch == results["steps_run"] - 2
    assert math.isfinite(results["best_metric"])


def test_too_many_skipped_in_a_row_stop_the_run(trainer):
    made = trainer(on_non_finite="skip", batch_size=2, num_epochs=2)
    poison(made, set(range(3, 100)))
    with pytest.raises(NonFiniteLossError, match=r"at step 13 .*after 10 skipped steps in a row"):
        made.train()


@pytest.mark.parametrize("precision", ["off", "bf16", "fp16"])
def test_reading_late_changes_nothing(trainer, precision):
    found = []
    for late in (False, True):
        made = trainer(
            dropout=0.1, name=str(late), num_epochs=2, eval_every=3, save_every=2, use_mixed_precision=precision
        )
        made.reads_late = late
        made.train()
        journal = made.tracker.directory.journal
        found.append(
            (
                made.model.state_dict(),
                [tiny.points(journal, name) for name in ("train_loss", "grad_norm", "learning_rate", "eval_loss")],
            )
        )
    assert_equal(found[1][0], found[0][0])
    assert found[1][1] == found[0][1]


def test_a_gradient_scaler_finds_its_scale_without_an_error(trainer):
    """A scale far beyond fp16's range: the scaler halves it, the steps count as skipped, and nothing stops."""
    made = trainer(use_mixed_precision="fp16", num_epochs=4)
    made.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    results = made.train()
    skipped = tiny.points(made.tracker.directory.journal, "skipped_steps")
    assert {1, 2, 3} <= set(skipped)
    assert results["steps_run"] == made.plan.total_steps
    assert made.precision.scaler.get_scale() == 2.0 ** (24 - len(skipped))


def test_the_norm_is_that_of_the_unscaled_gradient_before_clipping(trainer):
    norms = []
    for precision in ("off", "fp16"):
        made = trainer(dropout=0.0, name=precision, use_mixed_precision=precision, max_grad_norm=1e-3)
        made.train()
        norms.append(tiny.points(made.tracker.directory.journal, "grad_norm")[1])
    assert norms[0] > 1e-2
    assert norms[1] == pytest.approx(norms[0], rel=0.05)
