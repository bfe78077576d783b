"""The baselines: on the given split, counted as the model is, within bounded time."""

from __future__ import annotations

import math
import random
import time

import pytest
import torch

from mltrack.data.dataset import CodeDataset
from mltrack.evaluation import classification_baselines, unigram_loss
from mltrack.models import resolve_model
from mltrack.records.record import Record
from mltrack.tasks import task_named

MAPPING = {"safe": 0, "unsafe": 1}


def snippet(i: int, unsafe: bool) -> Record:
    call = "eval(user_input)" if unsafe else "int(user_input)"
    return Record(
        text=f"def f{i}(user_input):\n    value = {call}\n    return value * {i}\n",
        label="unsafe" if unsafe else "safe",
        description=None,
        file="x",
        number=i + 1,
    )


def test_the_majority_and_what_tfidf_learns():
    records = [snippet(i, i % 4 == 0) for i in range(120)]
    result = classification_baselines(records[:80], records[80:], MAPPING)
    assert list(result) == ["majority_accuracy", "majority_macro_f1", "tfidf_accuracy", "tfidf_macro_f1"]
    assert result["majority_accuracy"] == 0.75
    assert math.isclose(result["majority_macro_f1"], (2 * 0.75 / 1.75) / 2)
    assert result["tfidf_macro_f1"] == 1.0


def test_a_class_that_training_lacks_is_no_crash():
    records = [snippet(i, False) for i in range(20)]
    result = classification_baselines(records, [*records[:3], snippet(99, True)], MAPPING)
    assert result["tfidf_accuracy"] == result["majority_accuracy"] == 0.75


def test_five_thousand_records_take_seconds():
    draw = random.Random(0)
    words = [f"name_{i}" for i in range(3000)]

    def record(i: int) -> Record:
        text = "\n".join(
            f"    {draw.choice(words)} = {draw.choice(words)}({draw.choice(words)}, {i % 7})" for _ in range(20)
        )
        return Record(text=text, label=str(i % 5), description=None, file="x", number=i + 1)

    records = [record(i) for i in range(5000)]
    start = time.monotonic()
    classification_baselines(records[:4000], records[4000:], {str(i): i for i in range(5)})
    assert time.monotonic() - start < 60  # 5 to 10 s alone on two cores; the suite's machine may be busy


@pytest.fixture(scope="module")
def pairs() -> tuple[CodeDataset, CodeDataset, int]:
    records = [
        Record(text=f"def f(x):\n    return x + {i}\n", label=None, description=f"Add {i}", file="x", number=i + 1)
        for i in range(40)
    ]
    source = resolve_model("scratch:tiny", "code_generation")
    tokenizer = source.train_tokenizer([record.text for record in records])
    return *(
        CodeDataset(part, tokenizer, "code_generation", max_length=64) for part in (records[:30], records[30:])
    ), len(tokenizer)


def test_unigram_loss_is_the_cross_entropy_of_the_smoothed_frequencies(pairs: tuple[CodeDataset, CodeDataset, int]):
    train, held_out, vocabulary = pairs
    counts = torch.ones(vocabulary, dtype=torch.float64)
    for dataset in (train,):
        for i in range(len(dataset)):
            for label in dataset[i]["labels"][1:]:
                if label != -100:
                    counts[label] += 1
    logits = (counts / counts.sum()).log()
    targets = torch.tensor(
        [int(label) for i in range(len(held_out)) for label in held_out[i]["labels"][1:] if label != -100]
    )
    expected = -logits[targets].mean().item()
    assert math.isclose(unigram_loss(train, held_out, vocabulary)["unigram_loss"], expected, rel_tol=1e-9)


def test_unigram_loss_counts_the_targets_of_eval_loss(pairs: tuple[CodeDataset, CodeDataset, int]):
    """A model whose logits are the frequencies has exactly that eval_loss."""
    train, held_out, vocabulary = pairs

    class Frequencies(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            counts = torch.ones(vocabulary)
            for i in range(len(train)):
                for label in train[i]["labels"]:
                    if label != -100:
                        counts[int(label)] += 1
            self.logits = (counts / counts.sum()).log()

        def forward(self, input_ids: torch.Tensor):
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, vocabulary))

    evaluator = task_named("code_generation").evaluator()
    evaluator.update(Frequencies(), held_out.collate([held_out[i] for i in range(len(held_out))]))
    assert math.isclose(
        evaluator.compute()["loss"], unigram_loss(train, held_out, vocabulary)["unigram_loss"], rel_tol=1e-5
    )
