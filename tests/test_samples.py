"""Fixed prompts and greedy completions; the evaluation of a whole data set."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from mltrack.data.dataset import CodeDataset, prompt_ids
from mltrack.evaluation import fixed_prompts, generate_samples, syntax_valid_share
from mltrack.evaluation.samples import Sample, _prompt, is_valid_python
from mltrack.models import resolve_model
from mltrack.records.record import PROMPT_TEMPLATE, Record
from mltrack.tasks import task_named

NAMES = ["add", "remove", "open", "close", "sort", "merge", "split", "parse"]
RECORDS = [
    Record(
        text=f"def {name}(x):\n    return {name}_{i}(x)\n",
        label=None,
        description=f"{name.title()} the item number {i}, please" + " now" * (i % 3),
        file="x",
        number=i + 1,
    )
    for i, name in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def learned() -> tuple[Any, Any, CodeDataset]:
    """A tiny decoder that knows eight completions by heart."""
    source = resolve_model("scratch:tiny", "code_generation")
    tokenizer = source.train_tokenizer(
        PROMPT_TEMPLATE.format(description=record.description) + record.text for record in RECORDS * 2
    )
    model = source.build(label_mapping=None, max_length=128, seed=1)
    dataset = CodeDataset(RECORDS, tokenizer, "code_generation", max_length=128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    batch = dataset.collate([dataset[i] for i in range(len(dataset))])
    for _ in range(150):
        loss_sum, count = task_named("code_generation").sums(model, batch)
        (loss_sum / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, tokenizer, dataset


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_what_was_learned_by_heart_is_said_whatever_the_batch(learned: tuple[Any, Any, CodeDataset], batch_size: int):
    model, tokenizer, _ = learned
    samples = generate_samples(
        model,
        tokenizer,
        [str(record.description) for record in RECORDS],
        batch_size=batch_size,
        references=[record.text for record in RECORDS],
    )
    assert [sample.completion for sample in samples] == [record.text for record in RECORDS]
    assert [sample.reference for sample in samples] == [record.text for record in RECORDS]
    assert syntax_valid_share(samples) == 1.0
    assert model.training


def test_prompts_are_those_of_training(learned: tuple[Any, Any, CodeDataset]):
    _, tokenizer, _ = learned
    descriptions = [str(record.description) for record in RECORDS]
    assert [_prompt(tokenizer, text, PROMPT_TEMPLATE) for text in descriptions] == prompt_ids(tokenizer, descriptions)


def test_a_description_longer_than_the_model_is_cut_and_answered(learned: tuple[Any, Any, CodeDataset]):
    model, tokenizer, _ = learned
    assert len(generate_samples(model, tokenizer, ["word " * 2000], max_new_tokens=8)) == 1


def test_sampling_stops_when_asked(learned: tuple[Any, Any, CodeDataset]):
    model, tokenizer, _ = learned
    asked = iter(range(100))
    samples = generate_samples(
        model, tokenizer, ["a", "b", "c"], max_new_tokens=4, batch_size=1, stop_requested=lambda: next(asked) >= 7
    )
    assert len(samples) == 1, (
        "one whole sample (asked before it, for each of its tokens, after it); the second one is cut off and left out"
    )
    assert next(asked) <= 10, "the generation ended with the token that was being made"


def test_fixed_prompts_depend_on_the_records_alone():
    shuffled = random.Random(1).sample(RECORDS, len(RECORDS))
    assert fixed_prompts(RECORDS, 4) == fixed_prompts(shuffled + RECORDS, 4)
    assert fixed_prompts(RECORDS, 4) != fixed_prompts(RECORDS, 4, seed=1)
    assert len(fixed_prompts(RECORDS, 100)) == len(RECORDS)


@pytest.mark.parametrize(
    ("completion", "valid"),
    [
        ("def f():\n    return 1\n", True),
        ("    x = 1\n    return_value = x\n", True),
        ("    return 1\n", True),
        ("print('\\d')", True),
        ("", False),
        ("   \n", False),
        ("# nothing\n", False),
        ("defdefdef", False),
        ("def f(:\n", False),
        ("x = '\x00'", False),
        ("(" * 5000, False),
        ("-" * 100_000 + "1", False),
    ],
)
def test_valid_python(completion: str, valid: bool):
    assert is_valid_python(completion) is valid


def test_the_share_of_no_sample_is_nan():
    share = syntax_valid_share([])
    assert share != share
    assert syntax_valid_share([Sample("a", "x", None, True), Sample("b", "", None, False)]) == 0.5
