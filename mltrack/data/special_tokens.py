"""Special tokens in a text, such as `</s>` in a program, are read as text; only mltrack adds special tokens.

Invariant: the tokenizer itself is switched and saved that way. So training, evaluation, samples, the served model and
MLflow's flavor read a text alike, and a model of mltrack 0.1 keeps the encoding of its training.

    read_as_text(tokenizer)
    tokenizer("x = '</s>'")          # no end token in the middle
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mltrack.journal import read_json

KEPT = "mltrack_keeps_special_tokens"
"""Attribute of a tokenizer whose model was trained with special tokens in texts as tokens."""

_NEVER = -1e6
"""Score of a piece that is never used."""


def read_as_text(tokenizer: Any) -> None:
    """Make a tokenizer read special tokens in a text as text, also once saved; `keep_as_tokens` takes precedence."""
    if getattr(tokenizer, KEPT, False) or getattr(tokenizer, "split_special_tokens", None) is not False:
        return
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True
    _leave_out_of_unigram(tokenizer)


def keep_as_tokens(tokenizer: Any) -> None:
    """Keep a tokenizer as it was saved, which is how the training of its model read texts."""
    setattr(tokenizer, KEPT, True)


def was_read_as_text(checkpoints: Path) -> bool:
    """Whether a run's checkpoints hold a tokenizer that reads special tokens as text; True if they hold none."""
    saved = [read_json(file) for file in sorted(checkpoints.glob("step-*/tokenizer_config.json"))]
    whole = [config for config in saved if config is not None]  # a damaged checkpoint is reported when it is loaded
    return not whole or bool(whole[-1].get("split_special_tokens"))


def _leave_out_of_unigram(tokenizer: Any) -> None:
    """A Unigram model has its special tokens as normal pieces with the best score, and would join them again."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "Unigram":
        return
    special = set(tokenizer.all_special_tokens) - {tokenizer.unk_token}
    definition = json.loads(backend.to_str())
    vocabulary = definition["model"]["vocab"]
    definition["model"]["vocab"] = [
        [piece, _NEVER if piece in special and len(piece) > 1 else score] for piece, score in vocabulary
    ]
    tokenizer._tokenizer = type(backend).from_str(json.dumps(definition))
