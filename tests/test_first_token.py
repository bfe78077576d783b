"""The last layer for one token alone: the same logits and gradients, for every model of the family; others are left as
they are.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    MobileBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from mltrack.training.speed.first_token import only_first_token, reads_first_token

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 3,
}
FAMILY = [BertConfig, RobertaConfig, XLMRobertaConfig, CamembertConfig, ElectraConfig]


def made(config: type, **options: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config(**{**SIZES, **options}))


def batch(padded: bool = True) -> dict[str, torch.Tensor]:
    mask = torch.ones(4, 12, dtype=torch.int64)
    if padded:
        for row, length in enumerate((12, 7, 3, 1)):
            mask[row, length:] = 0
    ids = torch.randint(5, 100, (4, 12), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask} if padded else {"input_ids": ids}


def logits_and_gradients(model: Any, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(**given).logits
    logits.square().sum().backward()
    return logits.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("config", FAMILY)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
def test_logits_and_gradients_are_those_of_the_whole_layer(config: type, attention: str, padded: bool):
    model = made(config).train()
    model.set_attn_implementation(attention)
    expected, gradients = logits_and_gradients(model, batch(padded))
    names = list(model.state_dict())
    widths = []
    assert reads_first_token(model)
    with only_first_token(model):
        assert list(model.state_dict()) == names
        body = getattr(model, model.base_model_prefix)
        handle = body.encoder.layer[-1].register_forward_hook(lambda module, given, out: widths.append(out.shape[1]))
        found, narrow_gradients = logits_and_gradients(model, batch(padded))
        handle.remove()
    assert widths == [1]
    assert torch.allclose(found, expected, atol=1e-5)
    assert narrow_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(narrow_gradients[name], gradient, atol=2e-5), name
    again, _ = logits_and_gradients(model, batch(padded))
    assert torch.equal(again, expected), "afterwards it is as before"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_in_bf16_it_is_the_whole_layer_up_to_its_rounding(attention: str):
    """Eager attention in bf16 is what `auto` gives an encoder with dropout on a CPU that multiplies bf16."""
    model = made(RobertaConfig, initializer_range=0.3).train()
    model.set_attn_implementation(attention)
    found = []
    for narrow in (False, True):
        with torch.autocast("cpu", torch.bfloat16), only_first_token(model, narrow):
            found.append(logits_and_gradients(model, batch()))
    (expected, gradients), (logits, narrow_gradients) = found
    assert expected.abs().max() > 0.1
    assert torch.allclose(logits, expected, atol=2e-2 * expected.abs().max().item())
    assert narrow_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        if not name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding alone
            assert (narrow_gradients[name] - gradient).norm() <= 5e-2 * gradient.norm(), name


def test_dropout_of_the_layer_is_still_drawn():
    model = made(RobertaConfig, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    assert reads_first_token(model)
    with only_first_token(model):
        assert not torch.equal(model(**batch()).logits, model(**batch()).logits)
        model.eval()
        assert torch.equal(model(**batch()).logits, model(**batch()).logits)


class MeanHead(torch.nn.Module):
    """A head that reads every token."""

    def __init__(self, inner: Any):
        super().__init__()
        self.out = inner.out_proj

    def forward(self, features: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.out(features.mean(dim=1))


def test_a_head_that_reads_more_than_the_first_token_keeps_the_whole_layer():
    model = made(RobertaConfig)
    model.classifier = MeanHead(model.classifier)
    assert not reads_first_token(model)


def test_a_head_of_zeros_shows_nothing_and_keeps_the_whole_layer():
    """Its logits are the same whatever it reads; what it reads once it has learned something, nobody knows."""
    model = made(RobertaConfig)
    for head in (model.classifier, MeanHead(model.classifier)):
        model.classifier = head
        torch.nn.init.zeros_(head.out_proj.weight if hasattr(head, "out_proj") else head.out.weight)
        assert not reads_first_token(model)


def test_a_trained_head_is_judged_as_a_new_one():
    """Logits that hardly differ from text to text, as those of a model that is sure: the gradient still tells."""
    model = made(RobertaConfig)
    with torch.no_grad():
        model.classifier.out_proj.bias.add_(torch.tensor([100.0, 0.0, -100.0]))
    assert reads_first_token(model)
    model.classifier = MeanHead(model.classifier)
    assert not reads_first_token(model)


def test_recomputed_activations_change_nothing():
    model = made(RobertaConfig, hidden_dropout_prob=0.0).train()
    expected, gradients = logits_and_gradients(model, batch())
    model.gradient_checkpointing_enable()
    assert reads_first_token(model)
    with only_first_token(model):
        found, narrow_gradients = logits_and_gradients(model, batch())
    assert torch.allclose(found, expected, atol=1e-5)
    assert all(torch.allclose(narrow_gradients[name], gradient, atol=2e-5) for name, gradient in gradients.items())


@pytest.mark.parametrize(
    "model",
    [
        DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
        GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, pad_token_id=0),
    ],
)
def test_models_that_are_built_otherwise_are_left_as_they_are(model: Any):
    model = AutoModelForSequenceClassification.from_config(model).train()
    assert not reads_first_token(model)
    assert model.training


def test_a_layer_that_cannot_be_computed_for_one_token_is_left_as_it_is():
    """A feed-forward part that takes its tokens in chunks of six, and a model whose own call of attention is
    another.
    """
    assert not reads_first_token(made(BertConfig, chunk_size_feed_forward=6))
    small = {
        "vocab_size": 100,
        "hidden_size": 32,
        "embedding_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    model = AutoModelForSequenceClassification.from_config(
        MobileBertConfig(**small, true_hidden_size=16, intra_bottleneck_size=16)
    )
    assert not reads_first_token(model)
    model(**batch())
