"""The machine: device, precision, threads, allocator, and the facts that a run records about it."""

from __future__ import annotations

from mltrack.hardware.cpu import (
    cpu_multiplies_bf16,
    cpu_quota,
    cpuinfo,
    fit_threads,
    give_back_freed_memory,
    keep_freed_memory,
    usable_cores,
    yield_idle_cores,
)
from mltrack.hardware.device import (
    allow_planned_attention,
    allow_tf32,
    choose_device,
    choose_precision,
    full_fp32_matmul,
    prepare_to_repeat,
    repeating_exactly,
    visible_gpus,
)
from mltrack.hardware.facts import describe, environment
from mltrack.hardware.process import prepare_process

__all__ = [
    "allow_planned_attention",
    "allow_tf32",
    "choose_device",
    "choose_precision",
    "cpu_multiplies_bf16",
    "cpu_quota",
    "cpuinfo",
    "describe",
    "environment",
    "fit_threads",
    "full_fp32_matmul",
    "give_back_freed_memory",
    "keep_freed_memory",
    "prepare_process",
    "prepare_to_repeat",
    "repeating_exactly",
    "usable_cores",
    "visible_gpus",
    "yield_idle_cores",
]
