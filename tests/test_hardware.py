"""Devices and precisions: what is there is chosen, what is not is refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mltrack import hardware
from mltrack.errors import ConfigurationError
from mltrack.hardware.precision import Precision
from mltrack.tasks.token_loss import supports_packing

CPU = torch.device("cpu")


def test_auto_is_a_device_that_works():
    device = hardware.choose_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2
    assert hardware.choose_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_one_line():
    with pytest.raises(ConfigurationError, match=r"device=cuda .*auto, cpu") as caught:
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
    flags = hardware.cpuinfo("flags").split()
    if flags:
        assert hardware.cpu_multiplies_bf16() == bool({"avx512_bf16", "amx_bf16"}.intersection(flags))


def test_mps_runs_in_fp32():
    mps = torch.device("mps")
    assert hardware.choose_precision("auto", mps) == "off"
    with pytest.raises(ConfigurationError, match=r"precision must be auto or off .*device mps, not bf16"):
        hardware.choose_precision("bf16", mps)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_multiplies_in_the_precision(precision: str, dtype: torch.dtype):
    with Precision(precision, CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_facts_and_doctor_lines_are_words():
    facts = hardware.environment()
    assert facts["torch"] == torch.__version__
    assert int(facts["cpu_cores"]) >= 1
    assert all(isinstance(value, str) and value for value in facts.values())
    assert set(hardware.describe()) == {"python", "cpu", "torch", "device", "allocator", "bf16"}


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"pod/cpu.max": "400000 100000", "pod/box/cpu.max": "max 100000"}, "0::/pod/box", 4.0),
        ({"pod/cpu.max": "200000 100000", "pod/box/cpu.max": "400000 100000"}, "0::/pod/box", 2.0),
        (
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "50000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"},
            "4:memory:/\n3:cpu,cpuacct:/box",
            0.5,
        ),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/", None),
        ({}, "0::/", None),
    ],
)
def test_the_quota_is_the_least_of_the_control_groups(
    tmp_path: Path, files: dict[str, str], own: str, cores: float | None
):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    assert hardware.cpu_quota(tmp_path, tmp_path / "own") == cores


def test_threads_fit_the_quota_unless_the_user_has_set_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mltrack.hardware.cpu._allowed_cores", lambda: 64)
    monkeypatch.setattr("mltrack.hardware.cpu.cpu_quota", lambda: 1.5)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert hardware.fit_threads() is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    assert hardware.fit_threads() == 2
    assert hardware.usable_cores() == 2
    assert os.environ["OMP_NUM_THREADS"] == os.environ["RAYON_NUM_THREADS"] == "2"
    monkeypatch.setattr("mltrack.hardware.cpu.cpu_quota", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert hardware.fit_threads() is None
    assert hardware.usable_cores() == 64


@pytest.mark.skipif(not hardware.cpu._has_glibc(), reason="glibc's own functions")
def test_memory_of_freed_tensors_is_kept_until_it_is_given_back():
    script = """
import os, psutil, torch
from mltrack.hardware import give_back_freed_memory, keep_freed_memory
assert keep_freed_memory()
held = lambda: psutil.Process().memory_info().rss / 2**20
before = held()
tensors = [torch.ones(4 << 20) for _ in range(16)]       # 256 MiB
del tensors
kept = held() - before
assert give_back_freed_memory()
print(round(kept), round(held() - before))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    kept, left = map(int, ended.stdout.split())
    assert kept > 240
    assert left < 40


def test_an_older_glibc_that_refuses_large_thresholds_gets_the_largest_it_takes(monkeypatch: pytest.MonkeyPatch):
    """Where it takes none, nothing else is set: that would end glibc's own raising of the threshold and make it
    worse.
    """
    import ctypes

    asked: list[tuple[int, int]] = []
    for largest, expected in ((32 << 20, True), (1 << 20, False)):
        asked.clear()

        class OldGlibc:
            def mallopt(self, name: int, value: int, largest: int = largest) -> int:
                asked.append((name, value))
                return int(name != -3 or value <= largest)

        monkeypatch.setattr(ctypes, "CDLL", lambda _: OldGlibc())
        assert hardware.keep_freed_memory() is expected
        assert [name for name, _ in asked] == ([-3, -3, -1, -2] if expected else [-3, -3])


def test_products_are_whole_inside_and_as_before_afterwards():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with hardware.full_fp32_matmul():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_products_chosen_by_the_newer_switches_are_left_alone():
    """torch does not let the two ways be mixed; in a process of its own, since there is no way back."""
    script = """
import torch
torch.backends.cuda.matmul.fp32_precision = "tf32"
from mltrack import hardware
with hardware.full_fp32_matmul():
    pass
print(torch.backends.cuda.matmul.fp32_precision)
"""
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
        == "tf32"
    )


def test_models_are_asked_in_whole_products(trainer):
    """Else a GPU that multiplies with TF32 would show a difference that is only its rounding."""
    made = trainer("code_generation", packing=True)
    seen = set()
    made.model.register_forward_pre_hook(lambda *_: seen.add(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert supports_packing(made.model)
        assert seen == {"highest"}
    finally:
        torch.set_float32_matmul_precision(before)


def test_attention_that_is_planned_for_each_shape_is_allowed_on_a_gpu_alone_and_as_asked_for():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for wanted in (False, True):
            hardware.allow_planned_attention(torch.device("cuda"), wanted)
            hardware.allow_planned_attention(CPU, not wanted)
            assert torch.backends.cuda.cudnn_sdp_enabled() == wanted
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
