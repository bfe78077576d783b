"""The speed-ups that can be switched off: `speedups=buckets=off,dropout_masks=off`. Those that change neither a bit nor
the memory that the process keeps are always on and have no switch.

Invariant: none of them changes what a training computes beyond rounding; `buckets` decides the order of the records,
`dropout_masks` and `first_token` which random numbers are drawn, `any_shape_attention` which GPU kernels compute
attention, `tf32` the precision of fp32 products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from mltrack.config.pairs import parse_pairs

ON, OFF = "on", "off"


@dataclass(frozen=True, kw_only=True)
class Speedups:
    """Which of them are on."""

    allocator: bool = True
    """glibc keeps the memory of freed tensors for the next ones."""
    buckets: bool = True
    """The records of a batch have similar lengths."""
    dropout_masks: bool = True
    """On a CPU one random number decides four elements."""
    target_logits: bool = True
    """In generation logits are computed only where a token is predicted."""
    first_token: bool = True
    """In classification an encoder's last layer is computed only for the first token, if its head reads no other."""
    fused_adamw: bool = True
    """AdamW runs in one kernel instead of torch's default."""
    any_shape_attention: bool = True
    """On a GPU attention uses kernels that take any shape; cuDNN's need a plan for each."""
    tf32: bool = True
    """A GPU multiplies fp32 matrices in TF32."""

    @classmethod
    def of(cls, given: str | Mapping[str, str] | None) -> Speedups:
        """The speed-ups that a value of the option `speedups` leaves on; None: all."""
        pairs = parse_pairs(given) if isinstance(given, str) else given or {}
        return cls(**{name: value == ON for name, value in pairs.items()})


NAMES = tuple(f.name for f in fields(Speedups))
ALWAYS_ON = ("threads", "prefetch", "gc_freeze", "late_loss", "pinned_memory")
"""Switches of mltrack 0.1: still accepted, but without effect."""
