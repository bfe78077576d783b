"""What only a GPU has: losses read late, batches and checkpoints copied behind the host, memory of its own, TF32."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import commands
import pytest
import tiny
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

import mltrack
from mltrack.data.batches import MicroBatch
from mltrack.hardware import choose_precision

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(tiny.DEVICE != "cuda", reason="MLTRACK_TEST_DEVICE is not cuda (make test-gpu)"),
]
TASKS = ("text_classification", "code_generation")
PACKAGE = f"{Path(mltrack.__file__).parent}/"


def outcome(made):
    """Losses, norms and final weights."""
    made.train()
    journal = made.tracker.directory.journal
    weights = torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])
    return tiny.points(journal, "train_loss"), tiny.points(journal, "grad_norm"), weights


def waits(call) -> list[str]:
    """Where the host waited for the GPU in a call: file and line of each."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{one.filename}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_read_late_is_the_loss(trainer, task):
    late, at_once = (trainer(task, name=name, num_epochs=2) for name in ("late", "at-once"))
    assert late.reads_late
    at_once.reads_late = False
    found, expected = outcome(late), outcome(at_once)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-4)
    assert torch.allclose(found[2], expected[2], atol=2e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_gpu_learns_what_a_cpu_learns(trainer, task):
    found = [
        outcome(trainer(task, name=device, device=device, num_epochs=2, dropout=0.0)) for device in ("cuda", "cpu")
    ]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert torch.allclose(found[0][2].cpu(), found[1][2], atol=1e-4)


def test_mixed_precision_is_bf16_where_the_gpu_multiplies_it():
    assert choose_precision("auto", torch.device("cuda")) == (
        "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_host_waits_for_nothing_but_the_number_of_targets(trainer, task):
    """Which the selection of a decoder's targets asks for (docs/performance.md); what transformers waits for is its
    own.
    """
    made = trainer(task, batch_size=8, use_mixed_precision="bf16", num_epochs=4)
    groups = iter(made.batches.groups(0, 0))
    made._begin()
    for _ in range(2):
        made._take_step(next(groups))
    found = waits(lambda: [made._take_step(next(groups)) for _ in range(2)])
    own = {place.removeprefix(PACKAGE).split(":")[0] for place in found if place.startswith(PACKAGE)}
    assert own == ({"tasks/generation.py"} if task == "code_generation" else set()), found


def test_a_batch_is_copied_from_pinned_memory(trainer):
    made = trainer()
    batch: MicroBatch = next(made.batches.groups(0, 0))[0]
    assert all(tensor.is_pinned() for tensor in batch.tensors.values())
    assert waits(lambda: batch.to(made.device)) == []


def test_a_checkpoint_holds_the_weights_of_its_step_while_training_goes_on(trainer):
    """Copies are queued on the GPU; what was saved is compared with copies taken at the same steps."""
    made = trainer(name="saved", num_epochs=3, save_every=1, max_checkpoints=20, learning_rate=1e-2)
    seen: dict[int, dict[str, torch.Tensor]] = {}
    save = made.saving.save

    def remembered(*given, **named):
        seen[made.state.step] = {
            name: tensor.detach().cpu().clone() for name, tensor in made.model.state_dict().items()
        }
        return save(*given, **named)

    made.saving.save = remembered
    made.train()
    kept = made.checkpoint_manager.list_checkpoints()
    assert len(kept) >= 2
    for one in kept:
        held = load_file(one.path / "model.safetensors")
        assert held.keys() <= seen[one.step].keys()
        assert all(torch.equal(held[name], seen[one.step][name]) for name in held), one.step


@pytest.mark.filterwarnings("ignore:out of memory")
def test_memory_of_the_gpu_that_really_runs_out(trainer):
    """A micro-batch that does not fit into what the process may have is halved until it does; the sums stay."""
    options = {
        "task": "code_generation",
        "count": 600,
        "batch_size": 256,
        "max_steps": 2,
        "eval_batch_size": 8,
        "dropout": 0.0,
    }
    torch.cuda.reset_peak_memory_stats()
    enough = outcome(trainer(name="enough", **options))
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    made = trainer(name="short", **options)
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    try:
        found = outcome(made)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert made.gradient.micro_batch_size is not None
    assert made.gradient.micro_batch_size < 256
    assert found[0] == pytest.approx(enough[0], rel=1e-4)
    assert torch.allclose(found[2], enough[2], atol=1e-4)


def test_fp32_uses_tf32_unless_switched_off(trainer):
    left = torch.randn(512, 512, device="cuda")
    trainer(name="exact", speedups={"tf32": "off"})
    whole = left @ left
    trainer(name="fast", speedups={"tf32": "on"})
    quick = left @ left
    trainer(name="again", speedups={"tf32": "off"})
    reference = (left.double() @ left.double()).float()
    assert (whole - reference).abs().max() < (quick - reference).abs().max() / 4


def test_no_shape_of_attention_is_planned_unless_asked_for(trainer):
    trainer(name="any-shape")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    trainer(name="planned", speedups={"any_shape_attention": "off"})
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_from_the_command_line_to_mlflow(records_file, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = (
        "train",
        "--task",
        "code_generation",
        "--dataset-path",
        records_file("code_generation", 64),
        *commands.TINY,
    )
    options = ("--device", "cuda", "--tracking-uri", uri, "--max-steps", 12, "--eval-every", 4, "--output", "json")
    finished = commands.mltrack(*words, *options, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    response = json.loads(finished.stdout.strip().splitlines()[-1])
    assert (response["status"], response["delivery"], response["steps_run"]) == ("FINISHED", "complete", 12)
    client = MlflowClient(uri)
    assert [point.step for point in client.get_metric_history(response["run_id"], "train_loss")] == list(range(1, 13))
    resumed = commands.mltrack(
        "train",
        "--resume",
        response["run_id"],
        "--tracking-uri",
        uri,
        "--max-steps",
        16,
        "--output",
        "json",
        cwd=tmp_path,
    )
    assert resumed.returncode == 0, resumed.stderr
    run = client.get_run(response["run_id"])
    assert run.info.status == "FINISHED"
    assert "mltrack.resume_drift" not in run.data.tags
    assert [point.step for point in client.get_metric_history(response["run_id"], "train_loss")] == list(range(1, 17))
