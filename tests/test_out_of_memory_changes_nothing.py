"""Memory that runs out halves the micro-batch; the gradient is the same."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import tiny
import torch

from mltrack.errors import TrainingError
from mltrack.journal import read_journal

pytestmark = pytest.mark.device


class _FailingBackward(torch.autograd.Function):
    """Passes a loss on and has no memory for its gradient."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")


def small_memory(made, most, where="forward", from_call=1):
    """Micro-batches of more than `most` examples fail to allocate."""
    inner, calls = made.parallel.sums, iter(range(1, 10**6))

    def sums(model, batch):
        fails = len(batch["labels"]) > most and next(calls) >= from_call
        if fails and where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")
        loss, count = inner(model, batch)
        return (_FailingBackward.apply(loss) if fails else loss), count

    made.parallel.sums = sums


def outcome(made):
    """Losses, norms and final weights."""
    made.train()
    journal = made.tracker.directory.journal
    weights = torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])
    return tiny.points(journal, "train_loss"), tiny.points(journal, "grad_norm"), weights


@pytest.fixture(scope="module")
def enough():
    """{what is trained: its outcome where nothing fails}, for the cases that are compared with the same one."""
    return {}


@pytest.mark.parametrize(
    ("task", "most", "late", "given"),
    [
        ("text_classification", 2, False, {}),
        ("text_classification", 2, True, {}),
        ("code_generation", 2, False, {}),
        ("code_generation", 1, False, {"packing": True, "batch_size": 16}),
        ("code_generation", 2, False, {"max_batch_tokens": 256, "batch_size": 8}),
    ],
    ids=["classification", "read a step later", "generation", "packed", "a budget of tokens"],
)
@pytest.mark.parametrize(("where", "from_call"), [("forward", 1), ("backward", 1), ("forward", 2), ("backward", 2)])
@pytest.mark.filterwarnings("ignore:out of memory")
def test_the_result_is_that_of_enough_memory(trainer, enough, task, most, late, given, where, from_call):
    options = {"dropout": 0.0, "batch_size": 4, "gradient_accumulation_steps": 2, "num_epochs": 2, **given}
    if (key := f"{task} {options}") not in enough:
        enough[key] = outcome(trainer(task, name="enough", **options))
    losses, norms, weights = enough[key]
    made = trainer(task, name="small", **options)
    made.reads_late = late
    small_memory(made, most, where, from_call)
    found = outcome(made)
    assert made.state.micro_batch_size is not None, "it did run out"
    assert found[0] == pytest.approx(losses, rel=1e-5)
    assert found[1] == pytest.approx(norms, rel=1e-4)
    assert torch.allclose(found[2], weights, atol=2e-5)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_the_size_that_fits_is_remembered_logged_and_in_the_checkpoint(trainer):
    made = trainer(batch_size=8)
    small_memory(made, 3)
    made.train()
    assert made.state.micro_batch_size == made.gradient.micro_batch_size == 2, "8 -> 4 -> 2"
    tags = [record["values"] for record in read_journal(made.tracker.directory.journal) if record["type"] == "tags"]
    assert [values["mltrack.micro_batch_size"] for values in tags if "mltrack.micro_batch_size" in values] == ["4", "2"]
    checkpoint = made.checkpoint_manager.load_latest_checkpoint()
    resumed = trainer(name="resumed", batch_size=8, num_epochs=2)
    resumed.load_checkpoint(checkpoint)
    small_memory(resumed, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed.train()
    assert not [warning for warning in caught if "out of memory" in str(warning.message)], "what fits is known already"


@pytest.mark.filterwarnings("ignore:out of memory")
def test_the_random_numbers_start_again_with_the_step(trainer):
    """With dropout: after the failed attempt, the step draws what a trainer draws that has known the size from the
    start.
    """
    found = []
    for name in ("failing", "knowing"):
        made = trainer(dropout=0.3, name=name)
        if name == "failing":
            small_memory(made, 4)
        else:
            made.gradient.micro_batch_size = 4
        found.append(outcome(made))
    assert found[0][:2] == found[1][:2]
    assert torch.equal(found[0][2], found[1][2])


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_single_record_that_does_not_fit_ends_with_one_line(trainer):
    made = trainer(batch_size=4)
    small_memory(made, 0)
    with pytest.raises(
        TrainingError, match=r"record \d+: a single record of \d+ tokens does not fit .*use a smaller max_length"
    ) as caught:
        made.train()
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_packed_row_that_does_not_fit_names_packing(trainer):
    made = trainer("code_generation", batch_size=16, packing=True)
    small_memory(made, 0)
    with pytest.raises(
        TrainingError,
        match=r"a row of \d+ packed records of \d+ tokens does not fit .*use packing=false, a smaller max_length",
    ):
        made.train()


def test_evaluation_takes_halves_too_and_goes_on_with_what_fits(trainer, monkeypatch):
    made = trainer("code_generation", count=80, eval_batch_size=8)
    expected = made._evaluate(made.eval_dataset)
    inner = type(made.model).forward
    refused = []

    def forward(self, input_ids=None, **arguments):
        if input_ids.numel() > 100:
            refused.append(len(input_ids))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return inner(self, input_ids=input_ids, **arguments)

    forward.__signature__ = inspect.signature(inner)
    monkeypatch.setattr(type(made.model), "forward", forward)
    found = made._evaluate(made.eval_dataset)
    made.tracker.close()
    assert refused == [8, 4], "the later batches begin with what fits"
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is Linux's")
def test_a_process_that_really_has_no_memory(tmp_path, records_file):
    """A child whose address space is limited while it trains: torch's own allocator fails, and the run goes on with
    smaller parts.
    """
    script = textwrap.dedent(f"""
        import resource, sys, warnings
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import tiny, torch
        from mltrack import AdvancedTrainer
        torch.set_num_threads(1)
        source, train, evaluation = tiny.data({str(records_file("code_generation", 40))!r}, "code_generation")
        made = AdvancedTrainer(tiny.model(source, train), train, evaluation, output_dir={str(tmp_path / "out")!r}, num_epochs=1, batch_size=32,
                               learning_rate=1e-3, use_mixed_precision=False, device="cpu", eval_batch_size=1)
        inner = made.parallel.sums
        def sums(model, batch):                     # activations that grow with the batch: 64 MiB an example
            loss, count = inner(model, batch)
            ballast = torch.ones(len(batch["labels"]), 16 << 20)
            return loss + 0 * ballast[0, 0], count
        made.parallel.sums = sums
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (900 << 20), resource.RLIM_INFINITY))
        made.train()
        print("size", made.state.micro_batch_size, "steps", made.state.step)
        """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["size", "8"], (done.stdout, done.stderr)
    assert "out of memory with 30 examples at once" in done.stderr
