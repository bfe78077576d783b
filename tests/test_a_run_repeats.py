"""The same data, seed and thread count give the same run."""

from __future__ import annotations

import pytest
import tiny
import torch

from mltrack.errors import TrainingError

pytestmark = pytest.mark.device


def outcome(made):
    made.train()
    journal = made.tracker.directory.journal
    return made.model.state_dict(), [tiny.points(journal, name) for name in ("train_loss", "grad_norm", "learning_rate", "eval_loss")]


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_on_the_cpu_repeats_to_the_last_bit(trainer, deterministic):
    options = {"device": "cpu", "dropout": 0.2, "num_epochs": 2, "use_mixed_precision": "bf16", "deterministic": deterministic}
    first, second = (outcome(trainer("code_generation", name=name, **options)) for name in ("first", "second"))
    assert first[1] == second[1]
    for name, tensor in first[0].items():
        assert torch.equal(tensor, second[0][name]), name


def test_another_seed_is_another_run(trainer):
    first, second = (outcome(trainer(name=str(seed), seed=seed, num_epochs=2)) for seed in (1, 2))
    assert first[1] != second[1]


def test_what_cannot_be_repeated_ends_with_one_line(trainer):
    made = trainer(deterministic=True, device="cpu")
    inner = made.parallel.sums

    def sums(model, batch):
        loss, count = inner(model, batch)
        spread = torch.zeros(4).put_(torch.tensor([0, 1]), loss.detach().repeat(2))  # torch has no deterministic put_
        return loss + 0 * spread.sum(), count

    made.parallel.sums = sums
    with pytest.raises(TrainingError, match=r"deterministic: put_ .*cannot be repeated exactly on cpu; accepted: deterministic=false"):
        made.train()
    assert not torch.are_deterministic_algorithms_enabled(), "what the process had set is set again"
