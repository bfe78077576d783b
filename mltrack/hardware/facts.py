"""What a run records about the machine, and what `mltrack doctor` says of it."""

from __future__ import annotations

import platform
from importlib import metadata

from mltrack.hardware.cpu import cpuinfo, keep_freed_memory, usable_cores
from mltrack.hardware.device import choose_device, choose_precision, visible_gpus


def facts() -> dict[str, str]:
    """Tags about machine and software: CPU, cores, memory in GiB, GPUs, versions."""
    import psutil
    import torch

    tags = {
        "mltrack.cpu": cpuinfo("model name") or platform.processor() or platform.machine(),
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
        "allocator": "glibc, which a training lets keep the memory of freed tensors"
        if keep_freed_memory()
        else "the system's, as it is",
        "bf16": f"yes, {device.type} {native}"
        if precision == "bf16"
        else f"no, {device.type} runs in {'fp16' if precision == 'fp16' else 'fp32'}",
    }
    return lines
