"""The last layer of an encoder, computed for the one token that its classification head reads.

Of the last layer's output the heads of the BERT family take the first token and nothing else. Keys and values are needed of every token; the query,
attention's output and the whole feed-forward part only of that one: five sixths of the layer.

Invariant: the logits and every gradient are those of the whole layer; a model for which a probe says otherwise is left as it is. The model's modules
and the names of its weights stay as they are, also inside.

    with only_first_token(model):
        ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@contextmanager
def only_first_token(model: nn.Module, wanted: bool = True) -> Iterator[bool]:
    """Inside, the last layer of the model gives its first token alone, [B, 1, width]; gives whether that is so."""
    attention = _last_attention(model) if wanted else None
    if attention is None or not _same_logits(model, attention):
        yield False
        return
    with _narrowed(attention):
        yield True


def _last_attention(model: Any) -> Any:
    """The attention of the last layer, where the model is built as transformers builds those of the BERT family; else None."""
    body = getattr(model, getattr(model, "base_model_prefix", "") or "_", None)
    layers = getattr(getattr(body, "encoder", None), "layer", None)
    if not layers or getattr(model.config, "is_decoder", False):
        return None
    attention = getattr(layers[-1], "attention", None)
    own = getattr(attention, "self", None)
    there = all(hasattr(own, name) for name in ("query", "key", "value", "scaling", "attention_head_size", "dropout")) and hasattr(attention, "output")
    return attention if there else None


@contextmanager
def _narrowed(attention: Any) -> Iterator[None]:
    own = attention.self
    own.forward = partial(_attend_from_first, own)
    handle = attention.output.register_forward_pre_hook(_first_of_both)
    try:
        yield
    finally:
        handle.remove()
        del own.forward


def _attend_from_first(own: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> tuple[torch.Tensor, None]:
    """What the module's own forward gives for the first token: [B, 1, width]."""

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.view(len(projected), -1, projected.shape[-1] // own.attention_head_size, own.attention_head_size).transpose(1, 2)

    query, key, value = heads(own.query(hidden_states[:, :1])), heads(own.key(hidden_states)), heads(own.value(hidden_states))
    mask = None if attention_mask is None else attention_mask[..., :1, :]
    dropout = own.dropout.p if own.training else 0.0
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=own.scaling)
    return attended.transpose(1, 2).reshape(len(hidden_states), 1, -1), None


def _first_of_both(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    attended, residual = arguments
    return attended, residual[:, :1]


def _same_logits(model: Any, attention: Any) -> bool:
    """On two rows, one of them padded."""
    device = next(model.parameters()).device
    batch = {"input_ids": torch.arange(3, 15, device=device).reshape(2, 6) % model.get_input_embeddings().num_embeddings}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1, 4:] = 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            whole = model(**batch).logits
            with _narrowed(attention):
                narrow = model(**batch).logits
    finally:
        model.train(was_training)
    return whole.shape == narrow.shape and bool((whole - narrow).abs().max() <= 1e-4 * whole.abs().max().clamp(min=1e-3))
