"""The device and the number formats that a model uses.

Invariant: `auto` never picks a format that a missing instruction makes slower than fp32 on the CPU, and an explicit
choice is either available or refused in one line. torch is imported inside the functions, so `mltrack doctor --help`
stays quick."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mltrack.config import OPTIONS
from mltrack.errors import ConfigurationError, one_of
from mltrack.hardware.cpu import cpu_multiplies_bf16

if TYPE_CHECKING:
    import torch


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the first available one of cuda, mps, cpu.

    Raises:
        ConfigurationError: the name is unknown, or this machine or build of torch does not have the device.
    """
    import torch

    name = OPTIONS["device"].check(name)
    there = [
        kind
        for kind, present in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
            ("cpu", True),
        )
        if present
    ]
    if name == "auto":
        return torch.device(there[0])
    if name not in there:
        why = (
            "this torch is built without CUDA"
            if name == "cuda" and torch.version.cuda is None
            else "there is none on this machine"
        )
        raise ConfigurationError(
            f"device={name} is not available: {why} (torch {torch.__version__}); use {one_of(('auto', *there))}"
        )
    return torch.device(name)


def choose_precision(precision: str | bool, device: torch.device) -> str:
    """fp16, bf16 or off. `auto` (and True) is bf16 if the device has the instruction, fp16 on older GPUs, else off.

    Raises:
        ConfigurationError: the word is unknown, or the device does not support it.
    """
    import torch

    word = str(OPTIONS["precision"].check(precision))
    if device.type == "mps":
        if word not in ("auto", "off"):
            raise ConfigurationError(f"precision must be auto or off (both are fp32) with device mps, not {word}")
        return "off"
    if word == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        raise ConfigurationError(
            f"precision=bf16 needs a GPU with bf16 instructions, which {torch.cuda.get_device_name(device)} lacks; use"
            " auto, fp16 or off"
        )
    if word != "auto":
        return word
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16" if cpu_multiplies_bf16() else "off"


def visible_gpus() -> int:
    """Number of CUDA devices that this process sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def allow_tf32(device: torch.device, precision: str, wanted: bool = True) -> None:
    """Let a GPU multiply fp32 matrices in TF32 (10 bits of mantissa) and add in fp32, several times as fast (Ampere and
    later), or forbid it.

    It holds for the whole process, including an evaluation after the training; each training sets it anew.
    """
    import torch

    if device.type == "cuda" and precision == "off":
        torch.set_float32_matmul_precision("high" if wanted else "highest")


def allow_planned_attention(device: torch.device, wanted: bool) -> None:
    """Let `scaled_dot_product_attention` use cuDNN's kernels on a GPU, or only flash and the memory-efficient ones.

    cuDNN makes a plan for each new shape, which takes longer than the steps of a short training, whose batches have
    dozens of lengths (docs/performance.md). It holds for the whole process, like `allow_tf32`."""
    import torch

    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(wanted)


@contextmanager
def full_fp32_matmul() -> Iterator[None]:
    """Inside, a GPU multiplies fp32 in fp32, for comparing two computations without TF32's rounding."""
    import torch

    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer switches, which do not mix with this one
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def prepare_to_repeat(wanted: bool) -> None:
    """If wanted, set what cuBLAS and flash attention need to repeat their results; a user's own value is kept.

    cuBLAS reads it once, at the first product: call this before anything uses the device.
    Source: torch's notes on reproducibility.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # which transformers reads at each call


@contextmanager
def repeating_exactly(wanted: bool) -> Iterator[None]:
    """If wanted, torch computes the same bits each time on a GPU too, and fails at an operation that it cannot repeat
    (`deterministic=true`).

    Call `prepare_to_repeat` before it.
    """
    import torch

    if not wanted:
        yield
        return
    filling: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        filling.fill_uninitialized_memory,
    )
    prepare_to_repeat(wanted)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    filling.fill_uninitialized_memory = False  # uninitialized memory is never read
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory = before[1:]
