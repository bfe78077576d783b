"""The scratch presets: sizes and the transformers configurations made from them.

Invariant: name, task and tokenizer describe a preset fully; two builds with the same seed give equal weights.

    scratch:tiny    2 layers of 64     for tests: an epoch in seconds
    scratch:small   4 layers of 256    for the demo: about 5 million parameters with a vocabulary of 8,192
    scratch:base    12 layers of 768   the size of CodeBERT: about 125 million parameters
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from mltrack.errors import ConfigurationError, did_you_mean, one_of


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model's size."""

    vocab_size: int
    """Largest vocabulary of the tokenizer, special tokens included; small data gives fewer tokens."""
    hidden_size: int
    """Width."""
    num_layers: int
    """Depth."""
    num_heads: int
    """Attention heads; `hidden_size` is a multiple of it."""
    max_positions: int
    """Longest sequence in tokens."""
    dropout: float
    """On embeddings and residual branches of the encoder. The decoder has none, like Llama."""


PRESETS: dict[str, Preset] = {
    "scratch:tiny": Preset(vocab_size=1024, hidden_size=64, num_layers=2, num_heads=2, max_positions=512, dropout=0.0),
    "scratch:small": Preset(
        vocab_size=8192, hidden_size=256, num_layers=4, num_heads=4, max_positions=1024, dropout=0.1
    ),
    "scratch:base": Preset(
        vocab_size=50265, hidden_size=768, num_layers=12, num_heads=12, max_positions=1024, dropout=0.1
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in PRESETS:
        raise ConfigurationError(
            f"model_name: unknown preset '{name}'; use {one_of(PRESETS)}{did_you_mean(name, PRESETS)}"
        )
    return PRESETS[name]


def encoder_config(preset: Preset, tokenizer: PreTrainedTokenizerFast, label_mapping: Mapping[str, int]) -> Any:
    """RoBERTa-style: learned positions, counted from the padding id + 1, so the table has that many more rows."""
    from transformers import RobertaConfig

    return RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.hidden_size,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        intermediate_size=4 * preset.hidden_size,
        max_position_embeddings=preset.max_positions + tokenizer.pad_token_id + 1,
        type_vocab_size=1,
        hidden_dropout_prob=preset.dropout,
        # a mask over T x T scores is the slowest dropout on a CPU, and keeps SDPA off its fast path
        attention_probs_dropout_prob=0.0,
        classifier_dropout=preset.dropout,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        id2label={index: label for label, index in label_mapping.items()},
        label2id=dict(label_mapping),
    )


def decoder_config(preset: Preset, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Llama-style: rotary positions, RMS norms, gated MLP of 8/3 the width (a multiple of 32), tied embeddings."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.hidden_size,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        num_key_value_heads=preset.num_heads,
        intermediate_size=-(-preset.hidden_size * 8 // 3 // 32) * 32,
        max_position_embeddings=preset.max_positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
