"""A checkpoint's metadata, and which checkpoints are kept.

Invariant: best and latest are decided by what `metadata.json` records, never by a folder's name or time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

FORMAT_VERSION = 1
_MOST = 2**63 - 1
_MOST_NAME_BYTES = 255
"""Of a file's name; file systems take no longer ones."""


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """One complete checkpoint."""

    epoch: int
    """0-based epoch in which it was taken."""
    step: int
    """Optimizer steps taken before it."""
    metric_value: float | None
    """None if nothing was evaluated since the last checkpoint."""
    metric_name: str
    path: Path
    """Its folder."""
    run_id: str | None = None
    created_ms: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """All evaluation metrics of that moment."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{file name: {bytes, sha256}}."""
    aliases: dict[str, str] = field(default_factory=dict)
    """{name: name that holds its weights} of tied weights."""
    format_version: int = FORMAT_VERSION

    @property
    def is_ranked(self) -> bool:
        """False for a NaN, an infinity or no metric at all: such a checkpoint is never the best."""
        return self.metric_value is not None and math.isfinite(self.metric_value)

    @property
    def num_bytes(self) -> int:
        """Size of its files."""
        return sum(held["bytes"] for held in self.files.values())


def from_json(content: Any, path: Path) -> CheckpointMetadata:
    """The metadata in `metadata.json`, after checking the type of every value.

    Raises:
        ValueError: one line about the first wrong value.
    """
    if not isinstance(content, dict):
        raise ValueError(f"metadata.json must be a JSON object, not a {type(content).__name__}")
    for name, kinds in _KINDS.items():
        if name not in content or not isinstance(content[name], kinds) or isinstance(content[name], bool):
            raise ValueError(
                f"metadata.json: {name} must be {' or '.join(one.__name__ for one in kinds)}, not"
                f" {str(content.get(name))[:80]!r}"
            )
        if isinstance(content[name], int) and not -_MOST <= content[name] <= _MOST:
            raise ValueError(f"metadata.json: {name} must fit into 64 bits")
    for name, held in content["files"].items():
        if len(name.encode(errors="surrogatepass")) > _MOST_NAME_BYTES:  # looking for such a file raises an OSError
            raise ValueError(
                f"metadata.json: files: the name {name[:40]!r}... of {len(name):,} characters must have at most"
                f" {_MOST_NAME_BYTES} bytes"
            )
        if not (
            isinstance(held, Mapping)
            and isinstance(held.get("bytes"), int)
            and 0 <= held["bytes"] <= _MOST
            and isinstance(held.get("sha256"), str)
        ):
            raise ValueError(f"metadata.json: files: {name[:80]!r} must have bytes and sha256, not {str(held)[:80]!r}")
    if not all(isinstance(value, (int, float)) for value in content["metrics"].values()):
        raise ValueError("metadata.json: metrics must be numbers")
    if not all(isinstance(value, str) for value in content["aliases"].values()):
        raise ValueError("metadata.json: aliases must be names of weights")
    known = {one.name for one in fields(CheckpointMetadata)}
    return CheckpointMetadata(
        **{name: value for name, value in content.items() if name in known and name != "path"}, path=path
    )


def is_inside(name: str) -> bool:
    """True for the name of a file in the checkpoint's folder or below it, on every system."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and not name.startswith("/")
        and ".." not in parts
        and not any(character in name for character in "\\:\0")
    )


_KINDS: dict[str, tuple[type, ...]] = {
    "epoch": (int,),
    "step": (int,),
    "metric_value": (int, float, type(None)),
    "metric_name": (str,),
    "run_id": (str, type(None)),
    "created_ms": (int,),
    "metrics": (dict,),
    "files": (dict,),
    "aliases": (dict,),
    "format_version": (int,),
}


def judged_by(one: CheckpointMetadata, metric_name: str) -> CheckpointMetadata:
    """The checkpoint ranked by its recorded value of this metric, which may differ from the one it was saved for."""
    if one.metric_name == metric_name:
        return one
    return replace(one, metric_name=metric_name, metric_value=one.metrics.get(metric_name))


def best_first(checkpoints: Sequence[CheckpointMetadata], mode: str) -> list[CheckpointMetadata]:
    """The ranked checkpoints, best first; equal ones by step."""
    sign = 1.0 if mode == "min" else -1.0
    ranked = [one for one in checkpoints if one.is_ranked]
    return sorted(ranked, key=lambda one: (sign * (one.metric_value or 0.0), one.step))


def latest(checkpoints: Sequence[CheckpointMetadata]) -> CheckpointMetadata | None:
    """The checkpoint with the most steps."""
    return max(checkpoints, key=lambda one: (one.step, one.created_ms), default=None)


def reasons_to_keep(
    checkpoints: Sequence[CheckpointMetadata], *, mode: str, max_checkpoints: int, keep_every: int | None
) -> dict[int, list[str]]:
    """{step: reasons} of the checkpoints to keep: the k best, the latest, the milestones."""
    reasons: dict[int, list[str]] = {}
    for one in best_first(checkpoints, mode)[:max_checkpoints]:
        reasons.setdefault(one.step, []).append("best")
    newest = latest(checkpoints)
    if newest is not None:
        reasons.setdefault(newest.step, []).append("latest")
    for one in checkpoints:
        if keep_every is not None and one.step % keep_every == 0:
            reasons.setdefault(one.step, []).append("milestone")
    return reasons


def described(info: CheckpointMetadata, reasons: Sequence[str]) -> dict[str, Any]:
    """A kept checkpoint as the journal records it."""
    return {
        "step": info.step,
        "epoch": info.epoch,
        "metric_name": info.metric_name,
        "metric_value": info.metric_value,
        "metrics": info.metrics,
        "path": str(info.path),
        "created_ms": info.created_ms,
        "reasons": list(reasons),
    }
