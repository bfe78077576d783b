"""Several examples in one row, for a causal model that separates them by their positions.

Invariant: every token has the position that it would have in its own row, and the first token of an example is not a
target. So targets and losses equal those of the padded batch, in a model that `supports_packing`. There is no attention
mask; padding is a separate example at the row's end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mltrack.data.collate import IGNORED, padded_width

Rows = list[list[Mapping[str, Any]]]


def pack(examples: Sequence[Mapping[str, Any]], pad_token_id: int, row_length: int) -> dict[str, torch.Tensor]:
    """One batch of rows with one or more examples each: the longest first, each in the first row with room for it; or
    one row per example, if that takes fewer tokens.

    Args:
        examples: `input_ids` and `labels` int64 [T] of at most `row_length` tokens, and `index`.

    Returns:
        int64 tensors: "input_ids", "position_ids", "labels" [rows, T]; "index" and "row" [B]: the row of each
            example.
    """
    assert examples, "a batch has at least one example"
    longest_first = sorted(examples, key=lambda one: -len(one["input_ids"]))
    rows = min(
        _filled(longest_first, row_length),
        [[one] for one in longest_first],
        key=lambda these: math.prod(_shape(these, row_length)),
    )
    shape = _shape(rows, row_length)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for number, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example["input_ids"])
            input_ids[number, start:end] = example["input_ids"]
            position_ids[number, start:end] = np.arange(end - start)
            labels[number, start:end] = example["labels"]
            labels[number, start] = IGNORED
            start = end
        position_ids[number, start:] = np.arange(shape[1] - start)
    index = np.fromiter((example["index"] for row in rows for example in row), dtype=np.int64)
    row_of = np.fromiter((number for number, row in enumerate(rows) for _ in row), dtype=np.int64)
    arrays = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels, "index": index, "row": row_of}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _filled(examples: Sequence[Mapping[str, Any]], row_length: int) -> Rows:
    rows: Rows = []
    used: list[int] = []
    for example in examples:
        length = len(example["input_ids"])
        place = next((number for number, taken in enumerate(used) if taken + length <= row_length), len(rows))
        if place == len(rows):
            rows.append([])
            used.append(0)
        rows[place].append(example)
        used[place] += length
    return rows


def _shape(rows: Rows, row_length: int) -> tuple[int, int]:
    return len(rows), padded_width(max(sum(len(example["input_ids"]) for example in row) for row in rows), row_length)
