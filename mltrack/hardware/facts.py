"""Facts about the machine, for a run's tags and `mltrack doctor`."""

from __future__ import annotations

import platform
from importlib import metadata

from mltrack.hardware.cpu import cpuinfo, keep_freed_memory, usable_cores
from mltrack.hardware.device import choose_device, choose_precision, visible_gpus

PACKAGES = ("transformers", "tokenizers", "safetensors", "datasets", "mlflow", "numpy")
"""Whose versions may decide a result, or how it is stored."""


def environment() -> dict[str, str]:
    """Machine and software of this process, for `environment.json`: CPU, cores, memory in GiB, GPUs, versions."""
    import psutil
    import torch

    found = {
        "cpu": cpuinfo("model name") or platform.processor() or platform.machine(),
        "cpu_cores": str(usable_cores()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "gpu_count": str(visible_gpus()),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch_threads": str(torch.get_num_threads()),
    }
    names = [torch.cuda.get_device_name(i) for i in range(visible_gpus())]
    if names:
        found |= {"gpus": ", ".join(names), "cuda": str(torch.version.cuda)}
    return found | {name: metadata.version(name) for name in PACKAGES}


def describe() -> dict[str, str]:
    """The lines of `mltrack doctor` about hardware, by topic."""
    import torch

    device, seen = choose_device("auto"), environment()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    precision = choose_precision("auto", device)
    native = {"cuda": "natively", "mps": "not used on mps", "cpu": "has the instruction"}[device.type]
    lines = {
        "python": f"{seen['python']} on {seen['platform']}",
        "cpu": f"{seen['cpu']}, {seen['cpu_cores']} cores, {seen['memory_gib']} GiB memory",
        "torch": f"{seen['torch']} ({build}), transformers {seen['transformers']}",
        "device": f"{device.type}" + (f": {seen['gpus']}" if "gpus" in seen else ""),
        "allocator": "glibc, which a training lets keep the memory of freed tensors"
        if keep_freed_memory()
        else "the system's, as it is",
        "bf16": f"yes, {device.type} {native}"
        if precision == "bf16"
        else f"no, {device.type} runs in {'fp16' if precision == 'fp16' else 'fp32'}",
    }
    return lines
