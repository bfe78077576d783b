"""What the machine can do: device, precision, allocator, and the facts that a run records about it.

Invariant: `auto` never picks something slower than plain fp32 on the CPU for want of an instruction, and what was asked for by name is
either there or refused in one line. torch is imported inside the functions, so `mltrack doctor --help` stays quick.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrack.config.options import OPTIONS
from mltrack.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def choose_device(name: str = "auto") -> torch.device:
    """The device that `name` means here; `auto` is the first of cuda, mps, cpu that is there.

    Raises:
        ConfigurationError: an unknown name, or a device that this machine or this build of torch does not have.
    """
    import torch

    name = OPTIONS["device"].check(name)
    there = [kind for kind, present in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True)) if present]
    if name == "auto":
        return torch.device(there[0])
    if name not in there:
        why = "this torch is built without CUDA" if name == "cuda" and torch.version.cuda is None else "there is none on this machine"
        raise ConfigurationError(f"device: seen {name}, but {why} (torch {torch.__version__}); accepted here: auto|{'|'.join(there)}")
    return torch.device(name)


def choose_precision(use_mixed_precision: str | bool, device: torch.device) -> str:
    """fp16, bf16 or off. `auto` (and True) is bf16 where the device multiplies it natively, fp16 on older GPUs, else off.

    Raises:
        ConfigurationError: an unknown word, or a mixed precision on mps.
    """
    import torch

    word = str(OPTIONS["use_mixed_precision"].check(use_mixed_precision))
    if device.type == "mps":
        if word not in ("auto", "off"):
            raise ConfigurationError(f"use_mixed_precision: seen {word} with device mps; accepted there: auto|off (both are fp32)")
        return "off"
    if word != "auto":
        return word
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16" if cpu_multiplies_bf16() else "off"


def cpu_multiplies_bf16() -> bool:
    """True where the CPU has avx512_bf16 or AMX tiles; elsewhere bf16 is emulated and slower than fp32."""
    import torch

    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, probe, None)  # private names: where a release drops one, the kernel's flags answer below
        if supported is not None and supported():
            return True
    flags = _cpuinfo("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The autocast context of a precision that `choose_precision` gave; no context for off."""
    import torch

    if precision == "off":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def visible_gpus() -> int:
    """Number of CUDA devices that this process sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def yield_idle_cores() -> None:
    """Let threads that wait for each other sleep soon instead of spinning; call it before torch is imported.

    The OpenMP of GCC spins for milliseconds at each barrier. Where another process (a second training, the relay) has one of the cores,
    that is time taken from the very thread that is waited for: a step takes ten times as long. A user's own setting wins.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors and give it out again; True where that took effect.

    By default every large tensor is mapped, faulted in page by page and unmapped; on a CPU that costs up to a third of a training loop.
    The price: the process never gives its peak memory back. Call it before the first tensor.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    # glibc caps M_MMAP_THRESHOLD at half of a heap (32 MiB on 64 bit) in older releases and then answers 0: not an error, only no gain
    answers = [mallopt(_M_MMAP_THRESHOLD, 1 << 30), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 256 << 20)]
    return all(answer == 1 for answer in answers)


def facts() -> dict[str, str]:
    """Tags about machine and software: CPU, cores, memory in GiB, GPUs, versions."""
    import psutil
    import torch

    tags = {
        "mltrack.cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "mltrack.cpu_cores": str(usable_cores()),
        "mltrack.memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "mltrack.gpu_count": str(visible_gpus()),
        "mltrack.platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "mltrack.python": platform.python_version(),
        "mltrack.torch": str(torch.__version__),
        "mltrack.torch_threads": str(torch.get_num_threads()),
    }
    names = [torch.cuda.get_device_name(i) for i in range(visible_gpus())]
    if names:
        tags["mltrack.gpus"] = ", ".join(names)
        tags["mltrack.cuda"] = str(torch.version.cuda)
    tags["mltrack.transformers"] = metadata.version("transformers")
    return tags


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def describe() -> dict[str, str]:
    """The lines of `mltrack doctor` about hardware, by topic."""
    import torch

    device, seen = choose_device("auto"), facts()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    precision = choose_precision("auto", device)
    native = {"cuda": "natively", "mps": "not used on mps", "cpu": "has the instruction"}[device.type]
    lines = {
        "python": f"{seen['mltrack.python']} on {seen['mltrack.platform']}",
        "cpu": f"{seen['mltrack.cpu']}, {seen['mltrack.cpu_cores']} cores, {seen['mltrack.memory_gib']} GiB memory",
        "torch": f"{seen['mltrack.torch']} ({build}), transformers {seen['mltrack.transformers']}",
        "device": f"{device.type}" + (f": {seen['mltrack.gpus']}" if "mltrack.gpus" in seen else ""),
        "bf16": f"yes, {device.type} {native}" if precision == "bf16" else f"no, {device.type} runs in {'fp16' if precision == 'fp16' else 'fp32'}",
    }
    return lines


def _cpuinfo(key: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return ""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


@contextmanager
def repeating_exactly(wanted: bool) -> Iterator[None]:
    """Where wanted, torch computes the same bits each time on a GPU too, and fails at an operation that it cannot repeat (`deterministic=true`).

    Source: torch's notes on reproducibility. cuBLAS reads its setting when the device is first used.
    """
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if wanted:
            torch.use_deterministic_algorithms(before[0])
            torch.backends.cudnn.benchmark = before[1]
