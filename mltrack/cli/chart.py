"""Curves in a terminal: one line of blocks, or a small chart.

Invariant: where the terminal's encoding has no blocks, plain ASCII is drawn; values that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

WIDEST_COLUMN = 6
"""Characters, where there are few values."""
BLOCKS, ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " ..::||##"


def can_draw_blocks(encoding: str | None) -> bool:
    """True if the encoding has the characters of a chart."""
    try:
        BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def sparkline(values: Sequence[float], width: int, *, blocks: bool = True) -> str:
    """The values in one line of at most `width` characters, the lowest at the bottom; empty if there are none."""
    means = _means(values, width)
    if not means:
        return ""
    drawn = BLOCKS if blocks else ASCII_BLOCKS
    return "".join(drawn[1 + round(7 * share)] for share in _shares(means))


def chart(values: Sequence[float], width: int, height: int, *, blocks: bool = True) -> list[str]:
    """The values in `height` lines, the highest at the top, with the range in front.

    Args:
        width: of the drawing alone, in characters; each one is the mean of the values that fall into it.
    """
    means = _means(values, width)
    if not means:
        return []
    drawn = BLOCKS if blocks else ASCII_BLOCKS
    each = max(1, min(WIDEST_COLUMN, width // len(means)))
    levels = [1 + round((8 * height - 1) * share) for share in _shares(means) for _ in range(each)]
    labels = ["" for _ in range(height)]
    labels[0], labels[-1] = f"{max(means):.4g}", f"{min(means):.4g}"
    return [
        f"{labels[row]:>9} "
        + "".join(drawn[min(8, max(0, level - 8 * (height - 1 - row)))] for level in levels).rstrip()
        for row in range(height)
    ]


def _means(values: Sequence[float], width: int) -> list[float]:
    finite = [value for value in values if math.isfinite(value)]
    count = min(max(1, width), len(finite))
    cuts = [len(finite) * part // count for part in range(count + 1)] if count else []
    return [math.fsum(finite[start:end]) / (end - start) for start, end in pairwise(cuts)]


def _shares(means: Sequence[float]) -> list[float]:
    low, high = min(means), max(means)
    return [(value - low) / (high - low) if high > low else 0.5 for value in means]
