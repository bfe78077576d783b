"""The same data, seed and thread count give the same run."""

from __future__ import annotations

import os

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mltrack import TrainModelRequest, TrainModelUseCase
from mltrack.errors import TrainingError

pytestmark = pytest.mark.device


def outcome(made):
    made.train()
    journal = made.tracker.directory.journal
    return made.model.state_dict(), [
        tiny.points(journal, name) for name in ("train_loss", "grad_norm", "learning_rate", "eval_loss")
    ]


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_on_the_cpu_repeats_to_the_last_bit(trainer, deterministic):
    options = {
        "device": "cpu",
        "dropout": 0.2,
        "num_epochs": 2,
        "use_mixed_precision": "bf16",
        "deterministic": deterministic,
    }
    first, second = (outcome(trainer("code_generation", name=name, **options)) for name in ("first", "second"))
    assert first[1] == second[1]
    for name, tensor in first[0].items():
        assert torch.equal(tensor, second[0][name]), name


def test_another_seed_is_another_run(trainer):
    first, second = (outcome(trainer(name=str(seed), seed=seed, num_epochs=2)) for seed in (1, 2))
    assert first[1] != second[1]


class Products(TorchDispatchMode):
    """Notes how cuBLAS would be set up at each matrix product."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        if any(word in operation.name() for word in ("mm", "matmul", "bmm", "linear")):
            self.seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        return operation(*given, **(named or {}))


def test_cublas_is_set_up_before_the_first_product_even_that_of_a_probe(records_file, tmp_path, monkeypatch):
    """Packing is probed while the trainer is made, and the shortcut of the last layer before a resume."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # what the test sets is taken back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    request = TrainModelRequest(
        task="code_generation",
        model_name="scratch:tiny",
        dataset_path=str(records_file("code_generation", 40)),
        output_dir=str(tmp_path / "runs"),
        max_length=64,
        max_steps=1,
        packing=True,
        deterministic=True,
        offline=True,
        device="cpu",
    )
    with Products() as products:
        response = TrainModelUseCase().execute(request)
    assert response.success, response.errors
    assert products.seen[:1] == [":4096:8"]
    assert set(products.seen) == {":4096:8"}


def test_cublas_is_set_up_before_the_device_is_chosen(trainer, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # what the test sets is taken back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    seen = []

    def chosen(name):
        seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        return torch.device("cpu")

    monkeypatch.setattr("mltrack.training.trainer.choose_device", chosen)
    trainer(deterministic=True, device="cpu")
    assert seen == [":4096:8"]


def test_cublas_that_was_in_use_before_is_said_in_one_line(trainer, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    made = trainer(deterministic=True, device="cpu")

    def sums(model, batch):
        raise RuntimeError(
            "this operation is not deterministic because it uses CuBLAS\nyou must set CUBLAS_WORKSPACE_CONFIG=:4096:8"
        )

    made.parallel.sums = sums
    with pytest.raises(TrainingError, match=r"CUBLAS_WORKSPACE_CONFIG was :0:0 .*deterministic=false"):
        made.train()


def test_what_cannot_be_repeated_ends_with_one_line(trainer):
    made = trainer(deterministic=True, device="cpu")
    inner = made.parallel.sums

    def sums(model, batch):
        loss, count = inner(model, batch)
        spread = torch.zeros(4).put_(torch.tensor([0, 1]), loss.detach().repeat(2))  # torch has no deterministic put_
        return loss + 0 * spread.sum(), count

    made.parallel.sums = sums
    with pytest.raises(
        TrainingError, match=r"deterministic: put_ .*cannot be repeated exactly on cpu; use deterministic=false"
    ):
        made.train()
    assert not torch.are_deterministic_algorithms_enabled(), "what the process had set is set again"
