"""Devices and precisions: what is there is chosen, what is not is refused in one line."""

from __future__ import annotations

import pytest
import torch

from mltrack import hardware
from mltrack.errors import ConfigurationError

CPU = torch.device("cpu")


def test_auto_is_a_device_that_works():
    device = hardware.choose_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2
    assert hardware.choose_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_one_line():
    with pytest.raises(ConfigurationError, match=r"device: seen cuda, but .*; accepted here: auto\|.*cpu") as caught:
        hardware.choose_device("cuda")
    assert "\n" not in str(caught.value)
    assert hardware.visible_gpus() == 0


def test_an_unknown_device_names_the_accepted_ones():
    with pytest.raises(ConfigurationError, match=r"auto.*cpu.*cuda.*mps"):
        hardware.choose_device("gpu")


@pytest.mark.parametrize(("word", "precision"), [("off", "off"), (False, "off"), ("fp16", "fp16"), ("bf16", "bf16")])
def test_what_is_asked_for_by_name_is_given(word: str | bool, precision: str):
    assert hardware.choose_precision(word, CPU) == precision


def test_auto_takes_bf16_on_a_cpu_exactly_where_it_has_the_instruction():
    expected = "bf16" if hardware.cpu_multiplies_bf16() else "off"
    assert hardware.choose_precision("auto", CPU) == hardware.choose_precision(True, CPU) == expected
    flags = hardware._cpuinfo("flags").split()
    if flags:
        assert hardware.cpu_multiplies_bf16() == bool({"avx512_bf16", "amx_bf16"}.intersection(flags))


def test_mps_runs_in_fp32():
    mps = torch.device("mps")
    assert hardware.choose_precision("auto", mps) == "off"
    with pytest.raises(ConfigurationError, match=r"seen bf16 with device mps; accepted there: auto\|off"):
        hardware.choose_precision("bf16", mps)


@pytest.mark.parametrize(("precision", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_multiplies_in_the_precision(precision: str, dtype: torch.dtype):
    with hardware.autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_facts_and_doctor_lines_are_words():
    facts = hardware.facts()
    assert facts["mltrack.torch"] == torch.__version__
    assert int(facts["mltrack.cpu_cores"]) >= 1
    assert all(isinstance(value, str) and value for value in facts.values())
    assert set(hardware.describe()) == {"python", "cpu", "torch", "device", "bf16"}
