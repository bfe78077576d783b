"""Cores, threads, memory and instructions of the processor.

Invariant: the user's settings in the environment win; functions that must run before torch is imported do not import
it.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def yield_idle_cores() -> None:
    """Make waiting threads sleep soon instead of spinning; call it before torch is imported.

    The OpenMP of GCC spins for milliseconds at each barrier. If another process (a second training, the relay) uses one
    of the cores, spinning takes time from the thread that the others wait for: a step takes ten times as long. A user's
    own setting wins."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def fit_threads() -> int | None:
    """Give torch and the tokenizers as many threads as the container's quota has cores; call it before torch is
    imported.

    Both count the cores of the machine. If a container may use two of 64, 64 threads take turns on two, and each
    barrier waits for all.

    Returns:
        The number of threads; None if no quota is below the number of cores or the user has set OMP_NUM_THREADS.
    """
    quota = cpu_quota()
    if "OMP_NUM_THREADS" in os.environ or quota is None or quota >= _allowed_cores():
        return None
    threads = max(1, math.ceil(quota))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    return threads


def keep_freed_memory() -> bool:
    """Make glibc keep and reuse the memory of freed tensors; True if it took effect.

    By default every large tensor is mapped, faulted in page by page and unmapped; on a CPU that costs up to a third of
    a training loop. The price: the process keeps its peak memory until `give_back_freed_memory`. Call it before the
    first tensor."""
    if not _has_glibc():
        return False
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    # older releases return 0 above half of a heap (32 MiB on 64 bit). Without this setting the others would do harm:
    # they stop glibc from raising the threshold itself
    if not any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in (1 << 30, 32 << 20)):
        return False
    answers = [mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 256 << 20)]
    return all(answer == 1 for answer in answers)


def give_back_freed_memory() -> bool:
    """Return the memory that `keep_freed_memory` kept to the kernel, after the last step; True if any was returned."""
    if not _has_glibc():
        return False
    import ctypes

    return bool(ctypes.CDLL(None).malloc_trim(0))


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota."""
    quota = cpu_quota()
    return _allowed_cores() if quota is None else max(1, min(_allowed_cores(), math.ceil(quota)))


def cpu_quota(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest number of cores that a control group of this process or a parent allows; None without a limit.

    Args:
        mount: folder of the control groups: `cpu.max` of version 2, `cpu.cfs_quota_us` and `cpu.cfs_period_us` of
            version 1.
        own: lines `id:controllers:path` of this process; no controllers: version 2.
    """
    limits = []
    for line in _lines(own):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers
        inside = Path(path.lstrip("/"))
        for folder in (root / inside, *(root / parent for parent in inside.parents)):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            words = " ".join(line for name in names for line in _lines(folder / name)).split()
            if len(words) == 2 and words[0].isdigit():  # else "max 100000", or -1: no limit
                limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def cpu_multiplies_bf16() -> bool:
    """True if the CPU has avx512_bf16 or AMX tiles; without them bf16 is emulated and slower than fp32."""
    import torch

    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(
            torch.cpu, probe, None
        )  # private names: if a release drops one, the kernel's flags decide below
        if supported is not None and supported():
            return True
    flags = cpuinfo("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cpuinfo(key: str) -> str:
    """A field of the first processor in /proc/cpuinfo; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return ""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _has_glibc() -> bool:
    return sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _lines(file: Path) -> list[str]:
    """The lines of a kernel file; none if it does not exist."""
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
