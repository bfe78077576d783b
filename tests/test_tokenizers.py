"""The scratch tokenizers: lossless, deterministic, never fooled by text that looks like a special token."""

from __future__ import annotations

import random

import pytest

from mltrack.errors import ConfigurationError
from mltrack.models import train_tokenizer

TEXTS = [f"def f{i}(x, y={i}):\n    if x > {i}:\n\treturn  [x, '{i}']\n    return None\n" for i in range(60)]
ODD = [
    "    return x\n",
    "\t\tx  =  1   \n\n\n",
    "print('a , b . c ! don ' t')",
    "s = '<|eos|><|bos|> <|pad|>'",
    "# h\u00e9llo \u4f60\u597d \U0001f600\r\n",
    "\x00\x7f",
    " ",
]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_decoding_gives_back_every_byte(kind: str, tmp_path):
    from transformers import AutoTokenizer

    trained = train_tokenizer(TEXTS, 400, kind)
    trained.save_pretrained(tmp_path)
    for tokenizer in (trained, AutoTokenizer.from_pretrained(tmp_path)):
        for text in TEXTS + ODD:
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
            assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_order_of_the_texts_changes_nothing(kind: str):
    shuffled = random.Random(3).sample(TEXTS, len(TEXTS))
    one, other = (train_tokenizer(texts, 400, kind).backend_tokenizer.to_str() for texts in (TEXTS, shuffled))
    assert one == other


def test_special_tokens_stand_where_the_kind_says():
    encoder, decoder = (train_tokenizer(TEXTS, 400, kind) for kind in ("encoder", "decoder"))
    assert len(encoder) == len(decoder) <= 400
    ids = encoder("x = 1").input_ids
    assert (ids[0], ids[-1]) == (encoder.cls_token_id, encoder.sep_token_id)
    ids = decoder("x = 1").input_ids
    assert ids[0] == decoder.bos_token_id
    assert decoder.eos_token_id not in ids
    assert len({decoder.bos_token_id, decoder.eos_token_id, decoder.pad_token_id, decoder.unk_token_id}) == 4


def test_text_that_looks_like_an_end_token_is_text():
    tokenizer = train_tokenizer(TEXTS, 400, "decoder")
    assert tokenizer.eos_token_id not in tokenizer("x = '<|eos|>'").input_ids


def test_what_cannot_be_trained_is_said_in_one_line():
    with pytest.raises(ConfigurationError, match=r"vocab_size.* >= 260 .*not 100"):
        train_tokenizer(TEXTS, 100, "decoder")
    with pytest.raises(ConfigurationError, match="tokenizer: there is no text"):
        train_tokenizer(["", ""], 400, "decoder")
