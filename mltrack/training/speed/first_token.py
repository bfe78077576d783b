"""The last layer of an encoder, computed only for the one token that its classification head reads.

The heads of the BERT family read only the first token of the last layer's output. Keys and values are needed for every
token, but the query, attention's output and the whole feed-forward part, five sixths of the layer, only for that one.

Invariant: the logits and every gradient are those of the whole layer. If a probe fails to show this, the model is left
unchanged. The probe asks which tokens have a gradient, which does not depend on how far the model is trained. The
model's modules and the names of its weights do not change, even inside.

    with only_first_token(model, reads_first_token(model)):
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

from mltrack.hardware import full_fp32_matmul


def fingerprint(*, cls_only: bool) -> dict[str, Any]:
    """Which tokens draw dropout masks in the last layer."""
    return {"last layer": "for its first token" if cls_only else "whole"}


def reads_first_token(model: Any) -> bool:
    """True if the model's head reads only the last layer's first token, and the layer can be computed for it alone."""
    attention = _last_attention(model)
    if attention is None:
        return False
    was_training = model.training
    model.eval()
    try:
        with full_fp32_matmul():
            return _only_first_has_a_gradient(model) and _same_logits(model, attention)
    except Exception:  # not built as its names suggest; it is trained unchanged
        return False
    finally:
        model.train(was_training)


@contextmanager
def only_first_token(model: Any, wanted: bool = True) -> Iterator[None]:
    """Inside, if wanted, the last layer of a model that `reads_first_token` gives only that token, [B, 1, width]."""
    if not wanted:
        yield
        return
    with _narrowed(_last_attention(model)):
        yield


def last_layer(model: Any) -> nn.Module | None:
    """The layer that is computed for the first token, of a model that `reads_first_token`."""
    layers = _layers(model)
    return layers[-1] if layers else None


def _last_attention(model: Any) -> Any:
    """The attention of the last layer if the model is built like the BERT family of transformers; else None."""
    last = last_layer(model)
    if (
        last is None
        or getattr(model.config, "is_decoder", False)
        or getattr(model.config, "_attn_implementation", None) not in ("eager", "sdpa")
    ):
        return None  # other implementations have masks of another shape
    attention = getattr(last, "attention", None)
    own = getattr(attention, "self", None)
    there = all(
        hasattr(own, name) for name in ("query", "key", "value", "scaling", "attention_head_size", "dropout")
    ) and hasattr(attention, "output")
    return attention if there else None


def _layers(model: Any) -> Any:
    body = getattr(model, getattr(model, "base_model_prefix", "") or "_", None)
    return getattr(getattr(body, "encoder", None), "layer", None)


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


def _attend_from_first(
    own: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
) -> tuple[torch.Tensor, None]:
    """The output of the module's own forward for the first token: [B, 1, width]."""

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.view(
            len(projected), -1, projected.shape[-1] // own.attention_head_size, own.attention_head_size
        ).transpose(1, 2)

    query, key, value = (
        heads(own.query(hidden_states[:, :1])),
        heads(own.key(hidden_states)),
        heads(own.value(hidden_states)),
    )
    mask = None if attention_mask is None else attention_mask[..., :1, :]
    dropout = own.dropout.p if own.training else 0.0
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=own.scaling)
    return attended.transpose(1, 2).reshape(len(hidden_states), 1, -1), None


def _first_of_both(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    attended, residual = arguments
    return attended, residual[:, :1]


def _only_first_has_a_gradient(model: Any) -> bool:
    """Whether, of the last layer's output, only the first token affects the logits; False for a head of zeros."""
    outputs: list[torch.Tensor] = []

    def cut(module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = _layers(model)[-1].register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = model(**_probe_batch(model)).logits
            (gradient,) = torch.autograd.grad(
                (logits * torch.arange(1, logits.shape[-1] + 1, device=logits.device)).sum(), outputs[-1]
            )
    finally:
        handle.remove()
    return bool(gradient[:, 0].any()) and not bool(gradient[:, 1:].any())


def _same_logits(model: Any, attention: Any) -> bool:
    batch = _probe_batch(model)
    with torch.no_grad():
        whole = model(**batch).logits
        with _narrowed(attention):
            narrow = model(**batch).logits
    return whole.shape == narrow.shape and bool(
        (whole - narrow).abs().max() <= 1e-4 * whole.abs().max().clamp(min=1e-3)
    )


def _probe_batch(model: Any) -> dict[str, torch.Tensor]:
    """Two rows, one of them padded."""
    device = next(model.parameters()).device
    ids = torch.arange(3, 15, device=device).reshape(2, 6) % model.get_input_embeddings().num_embeddings
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}
