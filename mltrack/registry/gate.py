"""The promotion gate: does a version replace the champion?

Invariant: a pure function of both versions' tags; metrics are compared only if they were measured on the same data in
the same way."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

EVAL_DIGEST, METRIC, MODE, VALUE, TOKENS = (
    "mltrack.eval_digest",
    "mltrack.metric_name",
    "mltrack.metric_mode",
    "mltrack.metric_value",
    "mltrack.eval_tokens",
)
POLICY, MARGIN = "mltrack.promote", "mltrack.promote_margin"
EVAL_PATH = "mltrack.eval_path"
DECISION, DECIDE = "mltrack.decision", "mltrack.decide"
_ROUNDING = 1e-9
"""Tolerance, as a share of the margin, for decimal fractions: 0.35 - 0.30 is less than 0.05."""

Tags = Mapping[str, str]


@dataclass(frozen=True)
class Verdict:
    """The gate's decision on one version."""

    promoted: bool
    why: str
    open: bool = False
    """True if only an evaluation of both on one data set can tell."""


def judge(challenger: Tags, champion: Tags | None, champion_version: int | None) -> Verdict:
    """Whether the challenger replaces the champion.

    Args:
        challenger: tags of its version; `mltrack.promote` is auto, never or always.
        champion: tags of the present one; None if there is none.
        champion_version: its number.
    """
    policy = challenger.get(POLICY, "auto")
    if policy == "never":
        return Verdict(False, "promote=never")
    if policy == "always":
        return Verdict(True, "promote=always")
    metric, value = challenger.get(METRIC, ""), number(challenger.get(VALUE))
    if value is None:
        return Verdict(False, f"it has no {metric or 'metric'} to be judged by")
    if champion is None:
        return Verdict(True, f"there was no champion; {metric} {value:.6g}")
    differs = incomparable(challenger, champion)
    if differs:
        return Verdict(False, f"it cannot be compared with version {champion_version}: {differs}", open=True)
    held = number(champion.get(VALUE))
    assert held is not None
    better, why = compare(metric, value, held, challenger.get(MODE, "min"), number(challenger.get(MARGIN)) or 0.0)
    return Verdict(better, why.format(other=f"version {champion_version}"))


def compare(metric: str, value: float, held: float, mode: str, margin: float) -> tuple[bool, str]:
    """Whether `value` is better than `held` by the margin, and a sentence with the placeholder `{other}`.

    Equal is not better, whatever the margin.
    """
    gain = held - value if mode == "min" else value - held
    better = gain > 0 and gain >= margin * (1 - _ROUNDING)
    wanted = f" (margin {margin:g})" if margin else ""
    relation = (
        "is better than"
        if better
        else ("is not better than" if gain <= 0 or not margin else "is not enough better than")
    )
    return better, f"{metric} {value:.6g} {relation} {held:.6g} of {{other}}{wanted}, on the same data"


def incomparable(challenger: Tags, champion: Tags) -> str:
    """Why the metrics of two versions cannot be compared; empty if they can."""
    if champion.get(METRIC) is None or number(champion.get(VALUE)) is None:
        return "that version has no metric value"
    for key, noun in (
        (METRIC, "metric"),
        (MODE, "direction"),
        (EVAL_DIGEST, "evaluation data"),
        (TOKENS, "tokens of the evaluation"),
    ):
        ours, theirs = challenger.get(key), champion.get(key)
        if ours != theirs:
            return f"other {noun} ({_short(ours)} here, {_short(theirs)} there)"
    return ""


def deciding_command(name: str, version: int, tags: Tags) -> str:
    """The command that evaluates version and champion on one data set and decides."""
    words = [
        "mltrack",
        "models",
        "promote",
        name,
        "--version",
        str(version),
        "--dataset-path",
        tags.get(EVAL_PATH) or "FILE",
    ]
    return shlex.join(words)


def open_command(name: str, version: int, tags: Tags) -> str | None:
    """That command if the version's tags say that it is undecided. The tag's text itself is not trusted."""
    return deciding_command(name, version, tags) if tags.get(DECIDE, "decided") != "decided" else None


def number(text: str | None) -> float | None:
    """The finite number that a tag holds, or None."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _short(text: str | None) -> str:
    return "none" if not text else (text if len(text) <= 24 else f"{text[:12]}...")
