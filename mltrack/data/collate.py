"""Examples of several lengths into one padded batch.

Invariant: padding is to the right, is 0 in the attention mask and -100 in the labels, so it changes no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

IGNORED = -100
"""The label that the loss ignores."""
PADDED_TO = 8
"""A batch is padded to a multiple of this many tokens."""


def padded_width(longest: int, max_length: int | None = None, pad_to_multiple_of: int = PADDED_TO) -> int:
    """Tokens per row if the longest example has `longest`: the next multiple, but at most `max_length`."""
    padded = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    return padded if max_length is None else max(longest, min(padded, max_length))


def collate(
    examples: Sequence[Mapping[str, Any]],
    pad_token_id: int,
    pad_to_multiple_of: int = PADDED_TO,
    max_length: int | None = None,
) -> dict[str, torch.Tensor]:
    """One batch, padded to the longest example rounded up to `pad_to_multiple_of`, but never beyond `max_length`.

    Returns:
        int64 tensors: "input_ids" [B, T], "attention_mask" [B, T], "labels" [B] or [B, T], "index" [B].
    """
    assert examples, "a batch has at least one example"
    lengths = [len(example["input_ids"]) for example in examples]
    shape = (len(examples), padded_width(max(lengths), max_length, pad_to_multiple_of))
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    per_token = np.ndim(examples[0]["labels"]) == 1
    labels = np.full(shape if per_token else shape[:1], IGNORED, dtype=np.int64)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        input_ids[row, :length] = example["input_ids"]
        attention_mask[row, :length] = 1
        if per_token:
            labels[row, :length] = example["labels"]
        else:
            labels[row] = example["labels"]
    index = np.fromiter((example["index"] for example in examples), dtype=np.int64, count=len(examples))
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "index": index}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
