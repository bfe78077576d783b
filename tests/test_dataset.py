"""Token by token: what the model reads, and on which tokens the loss is."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mltrack.config import TrainingConfig
from mltrack.data import CodeDataset, DatasetLoader, Record
from mltrack.data.collate import collate
from mltrack.errors import ConfigurationError, DatasetError
from mltrack.runs.description import data_summary, long_text_warnings, one_class_warning

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = {
    token: index for index, token in enumerate(["<s>", "</s>", "<pad>", *ALPHABET, "re", "tu", "rn", "retu", "return"])
}


def byte_tokenizer(*, wraps: str = "", **special: str) -> PreTrainedTokenizerFast:
    """Bytes and the merges that make "return"; `wraps` says which special tokens it puts around a text."""
    merges = [("r", "e"), ("t", "u"), ("r", "n"), ("re", "tu"), ("retu", "rn")]
    backend = Tokenizer(models.BPE(vocab=VOCABULARY, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if wraps:
        backend.post_processor = processors.TemplateProcessing(single=wraps, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def plain() -> PreTrainedTokenizerFast:
    return byte_tokenizer(eos_token="</s>", bos_token="<s>")


def pair(description: str, code: str, number: int = 1) -> Record:
    return Record(code, None, description, "a.jsonl", number)


def texts(tokenizer: Any, ids: Any) -> list[str]:
    return [tokenizer.decode([int(token)]) for token in ids]


def test_completion_mask_token_by_token() -> None:
    tokenizer = plain()
    dataset = CodeDataset([pair("Ten", "return 1\n")], tokenizer, "code_generation", max_length=64)
    example = dataset[0]
    assert texts(tokenizer, example["input_ids"]) == [
        '"',
        '"',
        '"',
        "T",
        "e",
        "n",
        '"',
        '"',
        '"',
        "\n",
        "return",
        " ",
        "1",
        "\n",
        "</s>",
    ]
    assert example["labels"].tolist() == [-100] * 10 + example["input_ids"][10:].tolist()
    assert (dataset.lengths.tolist(), dataset.target_counts.tolist(), dataset.truncated) == ([15], [5], 0)
    assert example["index"] == 0


def test_a_start_token_leads_where_the_tokenizer_adds_one() -> None:
    tokenizer = byte_tokenizer(wraps="<s> $A </s>", bos_token="<s>", eos_token="</s>")
    ids = CodeDataset([pair("T", "x")], tokenizer, "code_generation", max_length=64)[0]["input_ids"]
    assert texts(tokenizer, ids) == ["<s>", *'"""T"""\n', "x", "</s>"]


def test_the_boundary_never_merges() -> None:
    # tokenized as one text, the prompt's last byte and the code's first could become one token
    tokenizer = plain()
    for code in ("return", "\n\n", '"', "\u00e9"):
        dataset = CodeDataset([pair("T", code)], tokenizer, "code_generation", max_length=64)
        labels = dataset[0]["labels"]
        assert tokenizer.decode(labels[labels != -100][:-1]) == code


@pytest.mark.parametrize(
    ("prompt_chars", "code_chars", "kept_prompt", "kept_code", "ends"),
    [
        (10, 21, 10, 21, True),  # fits exactly: 10 + 21 + 1
        (10, 22, 10, 22, False),  # the end token goes first
        (10, 99, 10, 22, False),
        (60, 99, 16, 16, False),  # both too long: half each
        (60, 5, 26, 5, True),  # a short code leaves room to the prompt
    ],
)
def test_what_is_cut_when_too_long(
    prompt_chars: int, code_chars: int, kept_prompt: int, kept_code: int, ends: bool
) -> None:
    tokenizer = plain()
    description = "".join(chr(ord("a") + n % 10) for n in range(prompt_chars - 7))  # the template has 7 characters
    dataset = CodeDataset([pair(description, "c" * code_chars)], tokenizer, "code_generation", max_length=32)
    example = dataset[0]
    assert example["labels"].tolist() == [-100] * kept_prompt + example["input_ids"][kept_prompt:].tolist()
    prompt = f'"""{description}"""\n'
    assert tokenizer.decode(example["input_ids"]) == prompt[len(prompt) - kept_prompt :] + "c" * kept_code + (
        "</s>" if ends else ""
    )
    assert dataset.full_lengths.tolist() == [prompt_chars + code_chars + 1]
    assert dataset.truncated == (prompt_chars + code_chars + 1 > 32)


def test_a_cut_prompt_keeps_its_start_token() -> None:
    tokenizer = byte_tokenizer(wraps="<s> $A", bos_token="<s>", eos_token="</s>")
    ids = CodeDataset([pair("d" * 50, "c" * 50)], tokenizer, "code_generation", max_length=16)[0]["input_ids"]
    assert texts(tokenizer, ids) == ["<s>", *'ddd"""\n', *"cccccccc"]


def test_classification_keeps_the_special_tokens_when_cut() -> None:
    tokenizer = byte_tokenizer(wraps="<s> $A </s>", bos_token="<s>", eos_token="</s>")
    records = [
        Record("abc", "x", None, "a", 1),
        Record("c" * 20, "y", None, "a", 2),
        Record("d" * 8, "y", None, "a", 3),
    ]
    dataset = CodeDataset(records, tokenizer, "text_classification", max_length=10)
    assert [tokenizer.decode(dataset[i]["input_ids"]) for i in range(3)] == [
        "<s>abc</s>",
        "<s>cccccccc</s>",
        "<s>dddddddd</s>",
    ]
    assert [dataset[i]["labels"] for i in range(3)] == [0, 1, 1]
    assert (dataset.full_lengths.tolist(), dataset.truncated) == ([5, 22, 10], 1)
    assert dataset.target_counts.tolist() == [1, 1, 1]
    assert (dataset.num_labels, dataset.id2label, dataset.class_counts) == (2, {0: "x", 1: "y"}, {"x": 1, "y": 2})


def test_a_mapping_in_another_order_than_that_of_its_indices_means_the_same_classes(tmp_path) -> None:
    in_order = {str(number): number for number in range(12)}
    as_saved = dict(sorted(in_order.items()))  # as a config.json holds it: 0, 1, 10, 11, 2
    assert list(as_saved) != list(in_order)
    counts = {label: 2 + 3 * (label == "2") for label in in_order}
    lines = [
        {"code": f"x{label} = {number}", "label": label} for label, count in counts.items() for number in range(count)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loader = DatasetLoader(tmp_path / "data.jsonl", plain(), label_mapping=as_saved)
    dataset = CodeDataset(list(loader.records), plain(), "text_classification", max_length=16, label_mapping=as_saved)
    for mapping in (
        loader.label_mapping,
        loader.get_statistics()["classes"],
        dataset.label_mapping,
        dataset.class_counts,
        dataset.record_counts,
    ):
        assert list(mapping) == list(in_order)
    assert dataset.class_counts == counts
    weights = dataset.task.objective(TrainingConfig(class_weights="balanced"), dataset).weights
    assert min(weights) == weights[2]
    assert weights == pytest.approx([27 / (12 * count) for count in counts.values()])


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [("head", "<s>abcdefgh</s>"), ("tail", "<s>mnopqrst</s>"), ("both", "<s>abcdqrst</s>")],
)
def test_what_is_kept_of_a_long_text(truncation: str, kept: str) -> None:
    tokenizer = byte_tokenizer(wraps="<s> $A </s>", bos_token="<s>", eos_token="</s>")
    records = [Record("abcdefghijklmnopqrst", "x", None, "a", 1), Record("abcdefgh", "y", None, "a", 2)]
    dataset = CodeDataset(records, tokenizer, "text_classification", max_length=10, truncation=truncation)
    assert [tokenizer.decode(dataset[i]["input_ids"]) for i in range(2)] == [kept, "<s>abcdefgh</s>"]
    assert (dataset.full_lengths.tolist(), dataset.truncated, dataset.truncated_share) == ([22, 10], 1, 0.5)
    odd = CodeDataset(records, tokenizer, "text_classification", max_length=9, truncation=truncation)
    assert odd.lengths.tolist() == [9, 9]


def test_what_is_too_long_can_be_left_out_and_is_counted() -> None:
    tokenizer = plain()
    records = [pair("T", "c" * count, number) for number, count in enumerate((30, 5, 31, 6), start=1)]
    dataset = CodeDataset(records, tokenizer, "code_generation", max_length=16, truncation="drop")
    assert [record.number for record in dataset.records] == [2, 4]
    assert (len(dataset), dataset.dropped, dataset.truncated, dataset.truncated_share) == (2, 2, 0, 0.5)
    assert [tokenizer.decode(dataset[i]["input_ids"]) for i in range(2)] == [
        '"""T"""\nccccc</s>',
        '"""T"""\ncccccc</s>',
    ], "each completion is whole"
    assert [dataset[i]["index"] for i in range(2)] == [0, 1]
    assert dataset.location(1) == "a.jsonl: record 4"
    assert dataset.target_counts.tolist() == [6, 7]
    head = CodeDataset(records, tokenizer, "code_generation", max_length=16)
    assert (dataset.digest, head.dropped, head.truncated) == (
        head.digest,
        0,
        2,
    ), "the digest is of what was given: another tokenizer leaves out others"
    classes = [Record("c" * count, label, None, "a", 1) for count, label in ((30, "x"), (3, "y"), (4, "y"))]
    classified = CodeDataset(classes, tokenizer, "text_classification", max_length=16, truncation="drop")
    assert classified.class_counts == {"x": 0, "y": 2}
    assert (sum(classified.record_counts.values()), classified.record_counts["y"]) == (
        len(classified) + classified.dropped,
        2,
    ), "what the digest is of"
    with pytest.raises(
        DatasetError,
        match=r"^a\.jsonl: none of the 1 records .*max_length=8 .*truncation=head",
    ):
        CodeDataset(records[:1], tokenizer, "code_generation", max_length=8, truncation="drop")


def test_a_completion_keeps_its_beginning() -> None:
    for truncation in ("tail", "both"):
        with pytest.raises(ConfigurationError) as caught:
            CodeDataset([pair("T", "x")], plain(), "code_generation", truncation=truncation)
        assert re.search(f"truncation must be .*head, drop for code_generation, not '{truncation}'", str(caught.value))
    with pytest.raises(
        ConfigurationError, match=r"truncation must be .*head, tail, both, drop, not 'heads' .did you mean 'head'"
    ):
        CodeDataset([pair("T", "x")], plain(), "code_generation", truncation="heads")


def test_many_long_records_are_told() -> None:
    tokenizer = plain()
    few, many = ([pair("T", "c" * (20 if number < count else 3), number) for number in range(10)] for count in (2, 3))
    quiet, told = (CodeDataset(records, tokenizer, "code_generation", max_length=16) for records in (few, many))
    assert long_text_warnings(quiet, quiet) == []
    assert long_text_warnings(quiet, told) == [
        "30% of the evaluation records are longer than max_length=16 tokens and were cut"
    ]
    dropping = CodeDataset(many, tokenizer, "code_generation", max_length=16, truncation="drop")
    assert long_text_warnings(dropping, quiet) == [
        "30% of the training records are longer than max_length=16 tokens and were left out"
    ]
    summary = data_summary(quiet, dropping, {}, None)
    assert (summary["training"]["truncated_share"], summary["evaluation"]["truncated_share"]) == (0.2, 0.3)
    assert (summary["evaluation"]["records"], summary["evaluation"]["dropped_records"]) == (10, 3)


def test_an_evaluation_set_of_one_class_is_told() -> None:
    tokenizer = plain()
    both = CodeDataset(
        [Record("a", "safe", None, "a", 0), Record("b", "unsafe", None, "a", 1)], tokenizer, "text_classification"
    )
    one = CodeDataset(
        [Record("a", "safe", None, "a", 0)], tokenizer, "text_classification", label_mapping=both.label_mapping
    )
    assert one_class_warning(both, both) == []
    (line,) = one_class_warning(both, one)
    assert line.startswith("all 1 evaluation records are 'safe'")


def test_the_five_levels_keep_their_order_when_some_are_absent() -> None:
    dataset = CodeDataset(
        [Record("a", "high", None, "a", 1), Record("b", "safe", None, "a", 2)], plain(), "security_classification"
    )
    assert dataset.id2label == {0: "safe", 1: "low", 2: "medium", 3: "high", 4: "critical"}
    assert [dataset[i]["labels"] for i in range(2)] == [3, 0]


@pytest.mark.parametrize(
    ("special", "pad"), [({"eos_token": "</s>"}, 1), ({"eos_token": "</s>", "pad_token": "<pad>"}, 2), ({}, 0)]
)
def test_padding_without_a_pad_token(special: dict[str, str], pad: int) -> None:
    tokenizer = byte_tokenizer(**special)
    size = len(tokenizer)
    dataset = CodeDataset(
        [Record("ab", "x", None, "a", 1), Record("abcdefghi", "y", None, "a", 2)],
        tokenizer,
        "text_classification",
        max_length=64,
    )
    batch = dataset.collate([dataset[0], dataset[1]])
    assert batch["input_ids"][0].tolist() == [*dataset[0]["input_ids"].tolist(), *[pad] * 14]
    assert batch["attention_mask"].sum(1).tolist() == [2, 9]
    assert len(tokenizer) == size


def test_a_batch_is_padded_to_the_right() -> None:
    tokenizer = plain()
    dataset = CodeDataset([pair("T", "x"), pair("Ten", "return 1\n", 2)], tokenizer, "code_generation", max_length=64)
    batch = dataset.collate([dataset[1], dataset[0]])
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "input_ids": (torch.int64, (2, 16)),
        "attention_mask": (torch.int64, (2, 16)),
        "labels": (torch.int64, (2, 16)),
        "index": (torch.int64, (2,)),
    }
    assert batch["index"].tolist() == [1, 0]
    for row, index in enumerate((1, 0)):
        length = int(dataset.lengths[index])
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (16 - length)
        assert batch["labels"][row].tolist() == [*dataset[index]["labels"].tolist(), *[-100] * (16 - length)]
        assert (batch["labels"][row] != -100).sum() == dataset.target_counts[index]


@pytest.mark.parametrize(
    ("multiple", "limit", "width"), [(8, None, 16), (1, None, 9), (8, 12, 12), (8, 9, 9), (32, 64, 32)]
)
def test_padding_is_rounded_up_but_not_beyond_max_length(multiple: int, limit: int | None, width: int) -> None:
    batch = collate([{"input_ids": [5] * 9, "labels": 0, "index": 0}], 0, multiple, limit)
    assert tuple(batch["input_ids"].shape) == (1, width)
    assert batch["labels"].tolist() == [0]


def test_digest_is_of_the_contents_alone() -> None:
    records = [Record("a", "x", None, "a.jsonl", 1), Record("b", "y", None, "a.jsonl", 2)]

    def digest(*records: Record) -> str:
        return CodeDataset(records, plain(), "text_classification", label_mapping={"x": 0, "y": 1}).digest

    moved = [Record("b", "y", None, "other.csv", 7), Record("a", "x", None, "other.csv", 9)]
    assert digest(*records) == digest(*moved)
    assert (
        len(
            {
                digest(*records),
                digest(records[0]),
                digest(records[0], Record("b", "x", None, "a", 2)),
                digest(*records, records[0]),
            }
        )
        == 4
    )
    assert len(digest(*records)) == 64


def test_many_records_keep_their_own_tokens() -> None:
    # more than one call of the tokenizer
    records = [pair(f"number {n}", f"x = {n}", n) for n in range(1, 2101)]
    tokenizer = plain()
    dataset = CodeDataset(records, tokenizer, "code_generation", max_length=64)
    for index in (0, 999, 1000, 2099, -1):
        number = index % 2100 + 1
        assert tokenizer.decode(dataset[index]["input_ids"]) == f'"""number {number}"""\nx = {number}</s>'
        assert dataset[index]["index"] == number - 1
    assert dataset.location(999) == "a.jsonl: record 1000"
    with pytest.raises(IndexError):
        dataset[2100]
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again[5]["labels"], dataset[5]["labels"])


def test_an_example_is_a_copy() -> None:
    dataset = CodeDataset([pair("T", "x")], plain(), "code_generation", max_length=64)
    dataset[0]["input_ids"][:] = 0
    assert dataset[0]["input_ids"].any()


def test_what_cannot_be_a_data_set() -> None:
    record = Record("a", "z", None, "a.jsonl", 3)
    with pytest.raises(DatasetError) as caught:
        CodeDataset([record], plain(), "text_classification", label_mapping={"x": 0, "y": 1})
    assert str(caught.value).startswith("a.jsonl, record 3, field 'label': ")
    assert "x, y" in str(caught.value)
    assert "'z'" in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"has no end token.* eos_token"):
        CodeDataset([pair("T", "x")], byte_tokenizer(), "code_generation")
    with pytest.raises(ConfigurationError, match=r"max_length must be .*>= 8, not 4"):
        CodeDataset([record], plain(), "text_classification", max_length=4)
    letters = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"x": 0}, merges=[])))
    with pytest.raises(DatasetError) as caught:
        CodeDataset([record], letters, "text_classification")
    assert str(caught.value).startswith("a.jsonl, record 3, field 'code': the tokenizer makes no token ")
