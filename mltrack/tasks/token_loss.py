"""A completion: cross entropy over its tokens; perplexity and token accuracy.

Invariant: a target is a label that is not -100 and has a token before it; the same targets are counted in training, in
evaluation and in the unigram baseline. Batches are padded on the right, and a causal model never attends to later
tokens, so no attention mask is passed, which lets attention take its fast path."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch.nn import functional as F

from mltrack.hardware import full_fp32_matmul
from mltrack.tasks.contract import Batch


def token_loss(
    model: torch.nn.Module, batch: Batch, *, target_logits: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """(summed cross entropy in nats, number of target tokens).

    Args:
        target_logits: compute logits only where a token is predicted.
    """
    logits, targets = _target_logits(model, batch, nowhere_else=target_logits)
    return F.cross_entropy(logits, targets, reduction="sum"), torch.full((), len(targets), device=targets.device)


@dataclass(frozen=True)
class AllLogits:
    """The objective with logits at every position: a larger matrix, the same loss but for rounding."""

    def sums(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Like `token_loss`."""
        return token_loss(model, batch, target_logits=False)


class GenerationEvaluator:
    """Keeps three numbers per batch: loss sum, hits, targets.

    Args:
        keeps_predictions: keep the token ids too.
    """

    def __init__(self, *, keeps_predictions: bool = False) -> None:
        self._keeps = keeps_predictions
        self._predictions: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []
        self._losses: list[torch.Tensor] = []
        self._hits: list[torch.Tensor] = []
        self._count = 0

    def update(self, model: torch.nn.Module, batch: Batch) -> None:
        """Add a batch."""
        logits, targets = _target_logits(model, batch)
        losses = F.cross_entropy(logits, targets, reduction="none")
        loss = (losses.cpu() if losses.device.type == "mps" else losses).double().sum()  # mps has no float64
        predictions = logits.argmax(dim=-1)
        hits = (predictions == targets).sum()
        self._losses.append(
            loss
        )  # added only once all of it is computed: a batch that runs out of memory leaves no trace
        self._hits.append(hits)
        self._count += len(targets)
        if self._keeps:
            self._predictions.append(predictions.int().cpu())
            self._targets.append(targets.int().cpu())

    def merge(self, other: Self) -> None:
        """Add another evaluator's batches."""
        self._losses += other._losses
        self._hits += other._hits
        self._count += other._count
        self._predictions += other._predictions
        self._targets += other._targets

    @property
    def predictions(self) -> list[int]:
        """The likeliest token at each target, if they are kept."""
        return [token for batch in self._predictions for token in batch.tolist()]

    @property
    def labels(self) -> list[int]:
        """The target tokens, in the same order."""
        return [token for batch in self._targets for token in batch.tolist()]

    def compute(self) -> dict[str, float]:
        """loss in nats per target token, perplexity = exp(loss), token_accuracy = share of targets that the model ranks
        first.
        """
        if not self._count:
            return dict.fromkeys(("loss", "perplexity", "token_accuracy"), math.nan)
        loss = math.fsum(value.item() for value in self._losses) / self._count
        hits = sum(int(value) for value in self._hits)
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "token_accuracy": hits / self._count,
        }


def _target_logits(
    model: torch.nn.Module, batch: Batch, *, nowhere_else: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 logits [N, vocabulary] and targets [N] of the N target tokens; the model's largest matrix is multiplied
    only for these.
    """
    input_ids, labels = batch["input_ids"], batch["labels"]
    inner: Any = getattr(model, "module", model)
    forward: Any = inner.__class__.forward
    names = _argument_names(forward)
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in names else {}
    if "position_ids" in batch:
        options["position_ids"] = batch["position_ids"]
    mask = torch.zeros_like(
        labels, dtype=torch.bool
    )  # positions that predict a target; the length stays a multiple, as collate made it
    mask[:, :-1] = labels[:, 1:] != -100
    targets = labels[:, 1:][mask[:, :-1]]
    if nowhere_else and "logits_to_keep" in names and _takes_mask(forward):
        return model(input_ids=input_ids, logits_to_keep=mask, **options).logits.float(), targets
    return model(input_ids=input_ids, **options).logits[mask].float(), targets


def supports_packing(model: torch.nn.Module) -> bool:
    """True if the model gives two examples in one row, separated only by their positions, the same logits as in rows of
    their own.
    """
    device = next(model.parameters()).device
    inner: Any = getattr(model, "module", model)
    if "position_ids" not in _argument_names(inner.__class__.forward):
        return False
    ids = torch.arange(24, device=device).reshape(2, 12) % inner.get_input_embeddings().num_embeddings
    positions = torch.cat([torch.arange(5), torch.arange(7)]).repeat(2, 1).to(device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), full_fp32_matmul():
            packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 5:].float()
            alone = model(input_ids=ids[:, 5:], use_cache=False).logits.float()
    finally:
        model.train(was_training)
    return bool((packed - alone).abs().max() <= 1e-3 * alone.abs().max())


@lru_cache
def _argument_names(forward: Callable[..., Any]) -> frozenset[str]:
    """Names of the arguments of a model's forward."""
    return frozenset(inspect.signature(forward).parameters)


@lru_cache
def _takes_mask(forward: Callable[..., Any]) -> bool:
    """True if `logits_to_keep` may be a boolean mask [B, T]: the model uses transformers' own slicing function."""
    return "slice_logits_to_keep" in inspect.unwrap(forward).__code__.co_names
