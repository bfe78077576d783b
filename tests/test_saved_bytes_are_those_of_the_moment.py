"""Saving behind the training: what is written is the state at the moment of the call, one save at a time, no error
unheard, none lost at exit.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mltrack import CheckpointManager, TrainingMetricsTracker
from mltrack.checkpoints.snapshot import HostBuffers
from mltrack.checkpoints.tensor_file import write_tensors
from mltrack.errors import CheckpointError
from mltrack.training.saving import Saving


def _large():
    """60 MB of weights, and as much again twice in the optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7500, 1000), nn.Linear(1000, 7500))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


class Gate:
    """Holds the writer after a checkpoint is on the disk until it is opened."""

    def __init__(self):
        self.reached, self.open, self.steps = threading.Event(), threading.Event(), []

    def __call__(self, metadata, milliseconds):
        assert milliseconds > 0
        assert metadata.num_bytes > 0
        self.steps.append(metadata.step)
        self.reached.set()
        assert self.open.wait(60)


def test_the_model_steps_while_the_write_runs(tmp_path):
    model, optimizer = _large()
    written = threading.Event()
    manager = CheckpointManager(tmp_path, background=True, on_written=lambda *_: written.set())
    extra = {"numbers": [1, 2], "rng": torch.get_rng_state(), "array": torch.from_numpy(np.arange(5))}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = {
        number: {name: tensor.clone() for name, tensor in held.items()}
        for number, held in optimizer.state_dict()["state"].items()
    }
    rng = extra["rng"].clone()
    returned = manager.save_checkpoint(
        model=model, optimizer=optimizer, epoch=0, step=1, metric_value=0.5, extra_state=extra
    )
    assert returned.files == {}
    steps_during_the_write = 0
    while not written.is_set():
        optimizer.step()
        extra["numbers"].append(3)
        extra["rng"].zero_()
        optimizer.param_groups[0]["lr"] *= 2
        steps_during_the_write += not written.is_set()
    assert steps_during_the_write >= 1, "the model is too small for this test"
    held = manager.load_latest_checkpoint()
    assert held["metadata"].path == returned.path
    assert all(torch.equal(held["model_state_dict"][name], tensor) for name, tensor in weights.items())
    for number, tensors in moments.items():
        assert all(
            torch.equal(held["optimizer_state_dict"]["state"][number][name], tensor) for name, tensor in tensors.items()
        )
    assert held["optimizer_state_dict"]["param_groups"][0]["lr"] == 1e-2
    assert held["extra_state"]["numbers"] == [1, 2]
    assert torch.equal(held["extra_state"]["rng"], rng)
    assert not torch.equal(model.state_dict()["1.weight"], weights["1.weight"])
    manager.close()


def test_a_second_save_waits_and_each_has_its_own_bytes(tmp_path):
    model = nn.Linear(1000, 1000, bias=False)
    manager = CheckpointManager(tmp_path, max_checkpoints=9, background=True)
    for step in range(1, 6):
        model.weight.data.fill_(step)
        manager.save_checkpoint(model=model, epoch=0, step=step, metric_value=float(step))
    assert [one.step for one in manager.list_checkpoints()] == [1, 2, 3, 4, 5]
    for one in manager.list_checkpoints():
        assert manager.load_checkpoint(one)["model_state_dict"]["weight"].unique().tolist() == [one.step]
    assert manager.skipped_saves == 0


def test_a_busy_writer_is_not_waited_for_where_the_save_is_not_required(tmp_path):
    gate = Gate()
    manager = CheckpointManager(tmp_path, background=True, when_busy="skip", on_written=gate)
    model = nn.Linear(3, 3)
    manager.save_checkpoint(model=model, epoch=0, step=1, required=False)
    assert gate.reached.wait(60)
    assert manager.save_checkpoint(model=model, epoch=0, step=2, required=False) is None
    assert manager.skipped_saves == 1
    waiting = threading.Thread(target=manager.save_checkpoint, kwargs={"model": model, "epoch": 0, "step": 3})
    waiting.start()
    assert gate.steps == [1]
    gate.open.set()
    waiting.join(60)
    assert manager.get_latest_checkpoint_info().step == 3
    assert gate.steps == [1, 3]
    assert manager.save_checkpoint(model=model, epoch=0, step=4, required=False) is not None, (
        "nothing is in flight any more"
    )
    manager.close()


@pytest.mark.parametrize("on_disk_full", ["stop", "continue"])
def test_a_training_leaves_out_what_would_wait_for_a_busy_writer(tmp_path, on_disk_full):
    gate, model = Gate(), nn.Linear(3, 3)
    manager = CheckpointManager(tmp_path / "checkpoints", background=True, when_busy="skip", on_written=gate)
    steps = iter(range(1, 4))
    with TrainingMetricsTracker(tmp_path / "run") as tracker:
        saving = Saving(
            manager,
            tracker,
            lambda: {"model": model, "step": next(steps)},
            metric_name="eval_loss",
            on_disk_full=on_disk_full,
        )
        saving.save(0, {}, required=False)
        assert gate.reached.wait(60)
        assert saving.save(0, {}, required=False) is None, "no callback is told of a save"
        gate.open.set()
        saving.save(0, {})
        saving.finish()
    assert [one.step for one in manager.list_checkpoints()] == [2], (
        "the first is not the latest any more, and the second save was left out"
    )


def test_deciding_what_stays_and_telling_it_happen_behind_too(tmp_path):
    told = []

    def on_change(kept, best_step):
        told.append((threading.current_thread() is threading.main_thread(), [one["step"] for one in kept], best_step))
        assert manager.list_checkpoints(), "a listener may ask the manager, which does not wait for itself"

    manager = CheckpointManager(tmp_path, max_checkpoints=1, background=True, on_change=on_change)
    for step, value in ((1, 0.5), (2, 0.9), (3, 0.7)):
        manager.save_checkpoint(model=nn.Linear(3, 3), epoch=0, step=step, metric_value=value)
    manager.finish()
    assert told == [(False, [1], 1), (False, [1, 2], 1), (False, [1, 3], 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


CALLS = {
    "save_checkpoint": lambda manager: manager.save_checkpoint(model=nn.Linear(3, 3), epoch=0, step=2),
    "finish": lambda manager: manager.finish(),
    "list_checkpoints": lambda manager: manager.list_checkpoints(),
    "get_best_checkpoint_info": lambda manager: manager.get_best_checkpoint_info(),
    "get_latest_checkpoint_info": lambda manager: manager.get_latest_checkpoint_info(),
    "load_best_checkpoint": lambda manager: manager.load_best_checkpoint(),
    "load_latest_checkpoint": lambda manager: manager.load_latest_checkpoint(),
    "set_aside_all": lambda manager: manager.set_aside_all(),
    "close": lambda manager: manager.close(),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_error_behind_comes_back_on_the_next_call_whichever_it_is(tmp_path, call):
    manager = CheckpointManager(tmp_path / "checkpoints", background=True)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("a file stands where the folder was")
    manager.save_checkpoint(model=nn.Linear(3, 3), epoch=0, step=1)
    with pytest.raises(CheckpointError, match=r"step-00000001: not written: .* bytes are needed") as caught:
        CALLS[call](manager)
    assert "\n" not in str(caught.value)
    (tmp_path / "checkpoints").unlink()
    manager.save_checkpoint(model=nn.Linear(3, 3), epoch=0, step=3)
    assert [one.step for one in manager.list_checkpoints()] == [3], "it is said once, and saving goes on"


def test_what_cannot_be_saved_is_said_at_once(tmp_path):
    manager = CheckpointManager(tmp_path, background=True)
    with pytest.raises(CheckpointError, match=r"extra_state\.deep\.1 must be .*, not object"):
        manager.save_checkpoint(model=nn.Linear(3, 3), epoch=0, step=1, extra_state={"deep": [1, object()]})
    with pytest.raises(CheckpointError, match=r"extra_state\.odd is a tensor of .*sparse.*; use a dense tensor"):
        manager.save_checkpoint(model=nn.Linear(3, 3), epoch=0, step=1, extra_state={"odd": torch.eye(3).to_sparse()})
    assert manager.list_checkpoints() == []


def test_the_memory_is_used_again_and_is_one_copy():
    model, optimizer = _large()
    tensors = {
        **model.state_dict(),
        **{f"{number}.{name}": held[name] for number, held in enumerate(optimizer.state.values()) for name in held},
    }
    buffers = HostBuffers()
    first, again = (buffers.take({"file": tensors}).content["file"] for _ in range(2))
    places = [{name: held.data_ptr() for name, held in taken.items()} for taken in (first, again)]
    assert places[0] == places[1]
    assert sum(held.nbytes for held in first.values()) == sum(tensor.nbytes for tensor in tensors.values())
    assert len({held.untyped_storage().data_ptr() for held in first.values()}) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_tensors_of_a_kind_are_copied_together_and_keep_their_values(threads, tmp_path):
    """Lengths, strides, conjugates, scalars and nothing at all, among others of the same type; then the same names in
    other types and shapes.
    """
    odd = {
        "rows": torch.randn(3, 4),
        "more rows": torch.randn(50_000, 4),
        "transposed": torch.randn(4, 5).t(),
        "no rows": torch.zeros(0, 4),
        "every other": torch.arange(20.0)[::2],
        "row": torch.tensor([float("nan"), -0.0]),
        "nothing": torch.zeros(0),
        "number": torch.tensor(1.5),
        "another": torch.tensor(2.5),
        "half": torch.randn(2, 4).half(),
        "half rows": torch.randn(3, 4).bfloat16(),
        "complex": torch.randn(2, 2, dtype=torch.complex64),
        "conjugate": torch.randn(2, 2, dtype=torch.complex64).conj(),
        "trained": nn.Parameter(torch.randn(2, 4)),
    }
    changed = {**odd, "rows": odd["rows"].double(), "row": torch.ones(7), "number": torch.tensor(3)}
    buffers = HostBuffers()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for tensors in (odd, odd, changed, odd):
            write_tensors(buffers.take({"file": tensors}).content["file"], tmp_path / "file")
            held = safetensors.torch.load_file(tmp_path / "file")
            for name, tensor in tensors.items():
                assert (held[name].dtype, held[name].shape) == (tensor.dtype, tensor.shape), name
                plain = tensor.detach().resolve_conj().contiguous().view(-1)
                assert torch.equal(held[name].view(-1).view(torch.uint8), plain.view(torch.uint8)), name
    finally:
        torch.set_num_threads(before)


def test_an_optimizer_that_changes_between_two_saves_is_saved_as_it_is(tmp_path):
    """Parameters that are added, momentum that there is not yet: what was named for the save before does not count."""
    first, second = nn.Linear(3, 3), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9)
    manager = CheckpointManager(tmp_path, max_checkpoints=9, background=True)

    def step(*models):
        for parameter in (parameter for model in models for parameter in model.parameters()):
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    def empty_momentum():
        optimizer.state[first.bias]["momentum_buffer"] = None

    def add_parameters():
        optimizer.add_param_group({"params": list(second.parameters())})

    changes = [
        lambda: None,
        lambda: step(first),
        lambda: step(first),
        add_parameters,
        lambda: step(first, second),
        empty_momentum,
        lambda: step(first),
    ]
    for number, change in enumerate(changes, start=1):
        change()
        expected = copy.deepcopy(optimizer.state_dict()["state"])
        manager.save_checkpoint(model=first, optimizer=optimizer, epoch=0, step=number)
        held = manager.load_latest_checkpoint()["optimizer_state_dict"]["state"]
        assert held.keys() == expected.keys()
        for key, values in expected.items():
            assert held[key].keys() == values.keys()
            for name, value in values.items():
                assert held[key][name] is value is None or torch.equal(held[key][name], value)


EXIT = """
import sys
from pathlib import Path
import torch
from torch import nn
from mltrack import CheckpointManager, TrainingMetricsTracker

folder = Path(sys.argv[1])
manager = CheckpointManager(folder, background=True)
if sys.argv[2] == "broken":
    folder.rmdir()
    folder.write_text("")
model = nn.Linear(3000, 3000)
model.weight.data.fill_(1.0)
manager.save_checkpoint(model=model, epoch=0, step=1)
model.weight.data.zero_()
if sys.argv[2] == "exception":
    raise SystemExit(3)
"""


def test_the_interpreter_does_not_end_before_the_save_in_flight(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", EXIT, str(tmp_path / "checkpoints"), "exception"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (3, "")
    assert CheckpointManager(tmp_path / "checkpoints").load_latest_checkpoint()["model_state_dict"][
        "weight"
    ].unique().tolist() == [1.0]


def test_an_error_that_nobody_asks_for_any_more_is_logged_at_exit(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", EXIT, str(tmp_path / "checkpoints"), "broken"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the last checkpoint was not saved: " in ended.stderr
    assert "step-00000001: not written" in ended.stderr
    assert "Traceback" not in ended.stderr
