"""Where a model runs and in which numbers.

Invariant: `auto` never picks something slower than plain fp32 on the CPU for want of an instruction, and what was asked
for by name is either there or refused in one line. torch is imported inside the functions, so `mltrack doctor --help`
stays quick."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mltrack.config import OPTIONS
from mltrack.errors import ConfigurationError
from mltrack.hardware.cpu import cpu_multiplies_bf16

if TYPE_CHECKING:
    import torch


def choose_device(name: str = "auto") -> torch.device:
    """The device that `name` means here; `auto` is the first of cuda, mps, cpu that is there.

    Raises:
        ConfigurationError: an unknown name, or a device that this machine or this build of torch does not have.
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
            f"device: seen {name}, but {why} (torch {torch.__version__}); accepted here: auto|{'|'.join(there)}"
        )
    return torch.device(name)


def choose_precision(precision: str | bool, device: torch.device) -> str:
    """fp16, bf16 or off. `auto` (and True) is bf16 where the device multiplies it natively, fp16 on older GPUs, else
    off.

    Raises:
        ConfigurationError: an unknown word, or a mixed precision on mps.
    """
    import torch

    word = str(OPTIONS["precision"].check(precision))
    if device.type == "mps":
        if word not in ("auto", "off"):
            raise ConfigurationError(
                f"precision: seen {word} with device mps; accepted there: auto|off (both are fp32)"
            )
        return "off"
    if word == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        raise ConfigurationError(
            f"precision: seen bf16, which {torch.cuda.get_device_name(device)} does not multiply itself;"
            " accepted there: auto|fp16|off"
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
    """Let a GPU that is asked for fp32 multiply with TF32's 10 bits of mantissa and add in fp32, several times as fast
    (Ampere and later), or forbid it.

    It holds for the whole process, also for the evaluation that comes after a training; each training sets it anew.
    """
    import torch

    if device.type == "cuda" and precision == "off":
        torch.set_float32_matmul_precision("high" if wanted else "highest")


def allow_planned_attention(device: torch.device, wanted: bool) -> None:
    """Let `scaled_dot_product_attention` take cuDNN's kernels on a GPU, or leave it flash and the memory-efficient
    ones.

    cuDNN makes a plan for each new shape, which takes longer than the steps of a short training, whose batches have
    dozens of lengths (docs/performance.md). It holds for the whole process, as `allow_tf32` does."""
    import torch

    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(wanted)


@contextmanager
def full_fp32_matmul() -> Iterator[None]:
    """Inside, fp32 is multiplied in fp32 on a GPU too: what two computations are compared in, whose difference would
    else be TF32's rounding.
    """
    import torch

    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody has chosen by torch's newer switches, which do not mix with this one
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def prepare_to_repeat(wanted: bool) -> None:
    """Where wanted, set what cuBLAS and flash attention need to repeat their results; a user's own value stays.

    cuBLAS reads it once, when a product is first computed: this belongs before anything that touches the device.
    Source: torch's notes on reproducibility.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # which transformers reads at each call


@contextmanager
def repeating_exactly(wanted: bool) -> Iterator[None]:
    """Where wanted, torch computes the same bits each time on a GPU too, and fails at an operation that it cannot
    repeat (`deterministic=true`).

    `prepare_to_repeat` comes before it.
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
    filling.fill_uninitialized_memory = False  # nobody reads memory that nobody has written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory = before[1:]
