"""Byte-level BPE for scratch models, trained on the training split only.

Invariant: decoding an encoded text gives the same bytes, even with leading white space or text that looks like a
special token. The same texts in any order give the same tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mltrack.errors import ConfigurationError

BOS, EOS, PAD, UNK = "<|bos|>", "<|eos|>", "<|pad|>", "<|unk|>"
_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int, kind: str) -> Any:
    """A PreTrainedTokenizerFast of at most `vocab_size` tokens.

    Args:
        texts: the training texts, prompts and completions alike.
        vocab_size: upper bound, special tokens and the 256 bytes included.
        kind: "encoder" puts cls (= bos) before and sep (= eos) after a text; "decoder" puts bos before it.

    Raises:
        ConfigurationError: no text at all, or a vocabulary that cannot hold the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    assert kind in ("encoder", "decoder"), kind
    special = [BOS, PAD, EOS, UNK]  # RoBERTa's order: padding is 1
    smallest = len(special) + _BYTES
    if vocab_size < smallest:
        raise ConfigurationError(
            f"vocab_size must be a whole number >= {smallest} (256 bytes and {len(special)} special tokens), not"
            f" {vocab_size}"
        )
    known = [text for text in texts if text]
    if not known:
        raise ConfigurationError(
            "tokenizer: there is no text to train it on; at least one training record must not be empty"
        )
    # tokenizers breaks ties between equally frequent pairs by id, ids follow the alphabet, and the alphabet is
    # complete: nothing depends on order
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(known, trainer)
    ids = {token: bpe.token_to_id(token) for token in special}
    template = f"{BOS} $A {EOS}" if kind == "encoder" else f"{BOS} $A"
    bpe.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B:1", special_tokens=[(token, ids[token]) for token in (BOS, EOS)]
    )
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
    if kind == "encoder":
        names |= {"cls_token": BOS, "sep_token": EOS}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "<|eos|>" in a program is text, not the end of it
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )
