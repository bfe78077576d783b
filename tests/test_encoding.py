"""Token ids are those of the tokenizer's own call, whatever kind of tokenizer it is; the next part is made while the
last one is kept.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mltrack.data import encoding
from mltrack.data.encoding import EncodedRows, Encoder, prompt_ids
from mltrack.errors import DatasetError
from mltrack.models import train_tokenizer
from mltrack.records.record import PROMPT_TEMPLATE, Record
from mltrack.tasks import TaskType

TEXTS = [
    "def f(x):\n    return x",
    " <s> is text </s>",
    "\u00e9\U0001f600 \t",
    "Unknown W\u00f6rds",
    "x" * 300,
    "\n",
    "<|eos|>",
    "a  b\r\n\r\nc",
]


class Marked(PreTrainedTokenizerFast):
    """Has a way of its own, as some of the library's have."""

    def _encode_plus(self, text: Any, *args: Any, **options: Any) -> Any:
        return super()._encode_plus([f"ab {one}" for one in text] if isinstance(text, list) else text, *args, **options)


def words(kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast, **options: Any) -> PreTrainedTokenizerFast:
    """WordPiece as BERT has it, with special tokens that may stand in a text."""
    pieces = [
        "[UNK]",
        "<s>",
        "</s>",
        *"abcdefghijklmnopqrstuvwxyz():0",
        *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
        "return",
        "ab",
    ]
    backend = Tokenizer(
        models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return kind(
        tokenizer_object=backend, unk_token="[UNK]", bos_token="<s>", eos_token="</s>", pad_token="</s>", **options
    )


def unigram() -> PreTrainedTokenizerFast:
    scored = [("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz()")]
    backend = Tokenizer(models.Unigram(scored, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<unk>")


def cutting_and_padding() -> PreTrainedTokenizerFast:
    """As a call of somebody else has left it."""
    tokenizer = words()
    tokenizer(TEXTS, truncation=True, max_length=4, padding=True)
    return tokenizer


KINDS = {
    "words": words,
    "special tokens as text": lambda: words(split_special_tokens=True),
    "cutting and padding": cutting_and_padding,
    "unigram": unigram,
    "scratch encoder": lambda: train_tokenizer(TEXTS, 300, "encoder"),
    "scratch decoder": lambda: train_tokenizer(TEXTS, 300, "decoder"),
    "a way of its own": lambda: words(Marked),
    "in Python": ByT5Tokenizer,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_the_tokenizers_own_call(kind: str) -> None:
    tokenizer = KINDS[kind]()
    plain = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    if kind == "a way of its own":
        plain = [list(row) for row in tokenizer(TEXTS, add_special_tokens=False)["input_ids"]]
    records = [Record(text, "a", None, "a.jsonl", n) for n, text in enumerate(TEXTS, start=1)]
    tokenizer = KINDS[kind]()
    (rows,) = Encoder(tokenizer, TaskType.TEXT_CLASSIFICATION, 512).rows(records)
    before, behind = encoding.special_tokens_around(tokenizer)
    assert split(rows) == [[*before, *row, *behind] for row in plain]
    assert rows.full_lengths.tolist() == rows.lengths.tolist()

    prompts = [
        list(row)
        for row in tokenizer([PROMPT_TEMPLATE.format(description=text) for text in TEXTS], add_special_tokens=False)[
            "input_ids"
        ]
    ]
    start = encoding.start_ids(tokenizer)
    assert prompt_ids(tokenizer, TEXTS) == [[*start, *row] for row in prompts]
    pairs = [Record(text, None, text, "a.jsonl", n) for n, text in enumerate(TEXTS, start=1)]
    (rows,) = Encoder(tokenizer, TaskType.CODE_GENERATION, 2000).rows(pairs)
    assert split(rows) == [
        [*start, *prompt, *code, tokenizer.eos_token_id] for prompt, code in zip(prompts, plain, strict=True)
    ]
    assert rows.num_prompt.tolist() == [len(start) + len(prompt) for prompt in prompts]


def split(rows: EncodedRows) -> list[list[int]]:
    return [part.tolist() for part in np.split(rows.ids, np.cumsum(rows.lengths)[:-1])]


def numbered(count: int) -> list[Record]:
    return [Record(f"return {n}", "a", None, "a.jsonl", n) for n in range(1, count + 1)]


def test_many_parts_come_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(TEXTS, 300, "encoder")
    (whole,) = Encoder(tokenizer, TaskType.TEXT_CLASSIFICATION, 12).rows(numbered(500))
    monkeypatch.setattr(encoding, "MOST_RECORDS_AT_ONCE", 7)
    told: list[tuple[int, int]] = []
    parts = list(
        Encoder(tokenizer, TaskType.TEXT_CLASSIFICATION, 12).rows(numbered(500), lambda *done: told.append(done))
    )
    assert len(parts) == 72
    for name in ("ids", "lengths", "num_prompt", "full_lengths"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)), name
    assert told == [(min(7 * n, 500), 500) for n in range(1, 73)]
    monkeypatch.setattr(encoding, "MOST_RECORDS_AT_ONCE", 1000)
    monkeypatch.setattr(encoding, "MOST_CHARACTERS_AT_ONCE", 25)
    assert [len(part.lengths) for part in Encoder(tokenizer, TaskType.TEXT_CLASSIFICATION, 12).rows(numbered(9))] == [
        4,
        4,
        1,
    ]


def threads_ahead() -> set[threading.Thread]:
    """Those that make something before it is asked for; other tests may have left some to the collector."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("mltrack-ahead")}


def test_the_next_part_is_made_while_the_last_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MOST_RECORDS_AT_ONCE", 2)
    read: list[int] = []

    class Watched(list[Record]):
        def __iter__(self) -> Any:
            for record in super().__iter__():
                read.append(record.number)
                yield record

    before = threads_ahead()
    rows = Encoder(words(), TaskType.TEXT_CLASSIFICATION, 12).rows(Watched(numbered(8)))
    next(rows)
    assert len(threads_ahead() - before) == 1
    until = time.monotonic() + 10
    while len(read) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert read == [1, 2, 3, 4], "one part ahead and no more: memory holds two"
    rows.close()
    assert threads_ahead() <= before


def test_what_goes_wrong_ahead_is_told_behind_the_good_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MOST_RECORDS_AT_ONCE", 2)
    letters = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"x": 0}, merges=[])))
    records = [
        Record(text, "a", None, "a.jsonl", n) for n, text in enumerate(["x", "xx", "xxx", "\u00e9", "x"], start=1)
    ]
    rows = Encoder(letters, TaskType.TEXT_CLASSIFICATION, 12).rows(records)
    assert next(rows).lengths.tolist() == [1, 2]
    with pytest.raises(DatasetError) as caught:
        next(rows)
    assert (caught.value.record, caught.value.field) == (4, "code")

    class Broken(list[Record]):
        def __iter__(self) -> Any:
            yield from numbered(3)
            raise OSError("the disk is gone")

    before = threads_ahead()
    broken = Encoder(words(), TaskType.TEXT_CLASSIFICATION, 12).rows(Broken(numbered(9)))
    next(broken)
    with pytest.raises(OSError, match="the disk is gone"):
        next(broken)
    assert threads_ahead() <= before
