"""Packed examples have the losses and gradients of padded ones, and a budget of tokens bounds every batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch
from transformers import MambaConfig, MambaForCausalLM

from mltrack import AdvancedTrainer
from mltrack.checkpoints.state import capture_rng
from mltrack.data import DatasetLoader, Sampler
from mltrack.data.collate import IGNORED, padded_width
from mltrack.data.packing import pack
from mltrack.errors import ConfigurationError
from mltrack.tasks.token_loss import supports_packing

pytestmark = pytest.mark.device


def example(length: int, index: int, prompt: int = 2) -> dict:
    ids = np.arange(100 * index, 100 * index + length, dtype=np.int64)
    labels = ids.copy()
    labels[:prompt] = IGNORED
    return {"input_ids": ids, "labels": labels, "index": index}


def test_every_token_and_target_is_there_once_at_its_own_position():
    lengths = [5, 30, 12, 7, 3, 32, 9]
    batch = pack([example(length, number + 1) for number, length in enumerate(lengths)], pad_token_id=0, row_length=32)
    assert batch["input_ids"].shape == batch["position_ids"].shape == batch["labels"].shape == (4, 32)
    real = batch["input_ids"] > 0
    assert int(real.sum()) == sum(lengths)
    assert torch.equal(batch["position_ids"][real], batch["input_ids"][real] % 100)
    assert int((batch["labels"] != IGNORED).sum()) == sum(lengths) - 2 * len(lengths)
    assert sorted(batch["index"].tolist()) == list(range(1, 8))
    for number, row in zip(batch["index"].tolist(), batch["row"].tolist(), strict=True):
        assert int((batch["input_ids"][row] // 100 == number).sum()) == lengths[number - 1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_gradient_is_that_of_the_padded_batch(trainer, attention):
    found = {}
    for packing in (False, True):
        made = trainer(
            "code_generation", count=40, name=str(packing), batch_size=16, max_grad_norm=1e9, packing=packing
        )
        made.model.set_attn_implementation(attention)
        group = next(made.batches.groups(0, 0))
        assert ("row" in group[0].tensors) == packing
        gradient = made.gradient.accumulate(group, capture_rng())
        *losses, norm = gradient.measured.wait()
        found[packing] = (sorted(group[0].records), gradient.targets, gradient.tokens, sum(losses), norm)
        if packing:
            assert group[0].rows < len(group[0].records), "several examples a row"
    assert found[True][:3] == found[False][:3]
    assert found[True][3:] == pytest.approx(found[False][3:], rel=1e-5)


def test_a_packed_training_has_the_losses_of_a_padded_one_and_saves(trainer):
    losses = []
    for packing in (False, True):
        made = trainer("code_generation", count=40, name=f"run-{packing}", packing=packing, num_epochs=2)
        made.train()
        losses.append(tiny.points(made.tracker.directory.journal, "train_loss"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_memory_that_runs_out_cuts_packed_rows_and_changes_nothing(trainer):
    made = trainer("code_generation", count=40, name="rows", batch_size=16, packing=True)
    batch = next(made.batches.groups(0, 0))[0]
    parts = batch.split(1)
    assert len(parts) == batch.rows > 1
    assert [record for part in parts for record in part.records] == batch.records
    assert sum(part.targets for part in parts) == batch.targets
    assert all(part.rows == 1 for part in parts)
    whole = made.gradient.accumulate([batch], capture_rng()).measured.wait()
    made.optimizer.zero_grad()
    made.gradient.micro_batch_size = 1
    assert made.gradient.accumulate([batch], capture_rng()).measured.wait() == pytest.approx(whole, rel=1e-5)


def test_a_model_that_mixes_packed_examples_is_refused(trainer):
    mixing = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
    assert not supports_packing(mixing)
    made = trainer("code_generation", count=16)
    assert supports_packing(made.model)
    with pytest.raises(ConfigurationError, match=r"packing must be false.* MambaForCausalLM"):
        AdvancedTrainer(mixing, made.train_dataset, packing=True, device=tiny.DEVICE)
    made.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ConfigurationError,
        match=r"packing=true .*flash_attention_2.*attention=sdpa",
    ):
        AdvancedTrainer(made.model, made.train_dataset, packing=True, device=tiny.DEVICE)
    with pytest.raises(ConfigurationError, match=r"packing must be false.* text_classification"):
        trainer("text_classification", name="text", packing=True)


# -- a budget of tokens

LENGTHS = np.random.default_rng(0).integers(3, 200, size=501)


@pytest.mark.parametrize("world", [1, 3])
def test_no_batch_is_above_its_budget_and_every_example_comes_once(world: int):
    budget = 1024
    counts = set()
    for epoch in range(3):
        ranks = [
            list(Sampler(LENGTHS, 5, epoch, rank, world, batch_size=64, max_tokens=budget)) for rank in range(world)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        batches = [batch for of_rank in ranks for batch in of_rank if batch]
        counts.add(len(batches))
        assert sorted(index for batch in batches for index in batch) == list(range(len(LENGTHS)))
        padded = [len(batch) * -(-LENGTHS[batch].max() // 8) * 8 for batch in batches]
        assert max(padded) <= budget
        assert np.mean(padded) > 0.7 * budget, "batches are filled"
        assert len(ranks[0]) == len(Sampler(LENGTHS, 5, 0, 0, world, batch_size=64, max_tokens=budget))
    assert len(counts) == 1, "as many batches in every epoch"


def test_epochs_differ_and_repeat():
    def order(seed: int, epoch: int) -> list[list[int]]:
        return list(Sampler(LENGTHS, seed, epoch, batch_size=8, max_tokens=512))

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert max(map(len, order(1, 0))) == 8, "batch_size is still the most"


def test_a_training_with_a_budget_takes_each_record_once_an_epoch(trainer):
    made = trainer("code_generation", count=40, batch_size=32, max_batch_tokens=256, num_epochs=2)
    made.train()
    assert made.state.tokens == 2 * int(made.train_dataset.lengths.sum())
    assert made.state.step == made.plan.total_steps == 2 * made.batches.num_batches


def test_evaluation_keeps_to_the_budget_too(trainer):
    made = trainer("code_generation", count=80, batch_size=32, max_batch_tokens=256)
    sizes = []
    made.model.register_forward_pre_hook(
        lambda _, args, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    made.evaluated(made.eval_dataset)
    made.tracker.close()
    assert 128 < max(sizes) <= 256, "filled, and not beyond it"
    assert len(sizes) > 1


def test_a_budget_that_the_longest_example_of_the_evaluation_does_not_fit_into_is_refused(trainer, tmp_path):
    made = trainer("code_generation")
    fits = padded_width(int(made.train_dataset.lengths.max()))
    assert fits < 64
    (tmp_path / "long.jsonl").write_text(
        json.dumps({"description": "Add up.", "code": "def f(x):\n    return " + " + ".join("x" * 60)})
    )
    long = DatasetLoader(
        tmp_path / "long.jsonl", made.train_dataset.tokenizer, task="code_generation", max_length=64
    ).load()
    with pytest.raises(ConfigurationError, match=f"max_batch_tokens must be >= 64, .* not {fits};"):
        AdvancedTrainer(made.model, made.train_dataset, long, max_batch_tokens=fits, device=tiny.DEVICE)


def test_packing_never_takes_more_than_a_row_for_each():
    """Five of 100 tokens in rows of 256 would be three rows of 200; four of 60 are one row of 240."""
    alone = pack([example(100, number + 1) for number in range(5)], pad_token_id=0, row_length=256)
    assert alone["input_ids"].shape == (5, 104)
    assert alone["row"].tolist() == list(range(5))
    together = pack([example(60, number + 1) for number in range(4)], pad_token_id=0, row_length=256)
    assert together["input_ids"].shape == (1, 240)


def test_a_budget_that_the_longest_example_does_not_fit_into_is_refused(trainer):
    said = r"max_batch_tokens must be >= \d+, .* not {};.* max_length"
    with pytest.raises(ConfigurationError, match=said.format(8)):
        trainer("code_generation", max_batch_tokens=8)
    longest = int(trainer("code_generation", name="longest").train_dataset.lengths.max())
    assert longest % 8, "its padding must count"
    with pytest.raises(ConfigurationError, match=said.format(longest)):
        trainer("code_generation", name="unpadded", max_batch_tokens=longest)
