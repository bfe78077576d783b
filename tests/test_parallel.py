"""Which strategy a machine gets: one GPU unless data parallelism is asked for."""

from __future__ import annotations

import warnings

import pytest
import torch

from mltrack.tasks import task_named
from mltrack.training import parallel
from mltrack.training.parallel import DataParallelReplicas, SingleDevice, choose_parallel

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three GPUs; that they are not all used has not been said yet."""
    for variable in parallel.RANKS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(parallel, "visible_gpus", lambda: 3)
    parallel.say_one_of.cache_clear()


def _lines(name: str, device: torch.device, *, compiled: bool = False) -> tuple[object, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen = [choose_parallel(name, device, task_named("code_generation"), compiled=compiled) for _ in range(3)]
    return chosen[0], [str(one.message) for one in caught]


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("compiled", [False, True])
def test_auto_is_one_gpu_and_says_once_how_to_use_all(compiled: bool) -> None:
    chosen, lines = _lines("auto", GPU, compiled=compiled)
    assert isinstance(chosen, SingleDevice)
    (line,) = lines
    assert "3 GPUs" in line
    assert "--parallel dp" in line
    assert ("--compile false" in line) is compiled


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("name", "device"), [("none", GPU), ("auto", CPU), ("dp", GPU)])
def test_an_explicit_choice_is_not_commented_on(name: str, device: torch.device) -> None:
    chosen, lines = _lines(name, device)
    assert isinstance(chosen, DataParallelReplicas if name == "dp" else SingleDevice)
    assert lines == []


@pytest.mark.usefixtures("gpus")
def test_on_one_gpu_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "visible_gpus", lambda: 1)
    chosen, lines = _lines("auto", GPU)
    assert isinstance(chosen, SingleDevice)
    assert lines == []
