"""The speed-ups that may be switched off: `speedups=buckets=off,dropout_masks=off`. Those that change neither a bit nor
what the process keeps of the machine are always on and have no switch.

Invariant: none of them changes what a training computes beyond rounding; `buckets` decides the order of the records,
`dropout_masks` and `first_token` which random numbers are drawn, `any_shape_attention` which of a GPU's kernels compute
attention, `tf32` how many digits it multiplies in fp32."""

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
    """The records of a batch are of like length."""
    dropout_masks: bool = True
    """On a CPU one random number decides about four elements."""
    target_logits: bool = True
    """In generation the logits are computed where a token is predicted, nowhere else."""
    first_token: bool = True
    """In classification an encoder's last layer is computed for the one token that the head reads, where it is one."""
    fused_adamw: bool = True
    """AdamW in one kernel, instead of as torch does it by default."""
    any_shape_attention: bool = True
    """On a GPU attention is computed by kernels that take every shape as it comes; cuDNN's are planned anew for
    each.
    """
    tf32: bool = True
    """A GPU that is asked for fp32 multiplies with TF32."""

    @classmethod
    def of(cls, given: str | Mapping[str, str] | None) -> Speedups:
        """Those that a value of the option `speedups` leaves on; None: all."""
        pairs = parse_pairs(given) if isinstance(given, str) else given or {}
        return cls(**{name: value == ON for name, value in pairs.items()})


NAMES = tuple(f.name for f in fields(Speedups))
ALWAYS_ON = ("threads", "prefetch", "gc_freeze", "late_loss", "pinned_memory")
"""Switches of mltrack 0.1: still accepted, and without effect."""
