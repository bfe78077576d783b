"""Sums and counts: equal to torch's own losses, and independent of how the records were batched."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mltrack.config import OPTIONS
from mltrack.data.collate import collate
from mltrack.errors import ConfigurationError
from mltrack.evaluation.metrics import classification_metrics, metric_mode
from mltrack.models import resolve_model
from mltrack.tasks import TaskType, task_named

LABELS = {"safe": 0, "low": 1, "medium": 2}
TEXTS = [f"def f{i}(x):\n    return x + {i}\n" for i in range(50)]
CLASSIFY, GENERATE = TaskType.TEXT_CLASSIFICATION, TaskType.CODE_GENERATION


def build(task: TaskType) -> nn.Module:
    source = resolve_model("scratch:tiny", task)
    source.train_tokenizer(TEXTS)
    return source.build(label_mapping=LABELS if task_named(task).has_classes else None, max_length=64, seed=1).eval()


def examples(task: TaskType, count: int = 29) -> list[dict]:
    """Records of very different lengths and numbers of targets."""
    draw = random.Random(5)
    made = []
    for i in range(count):
        ids = [draw.randrange(10, 200) for _ in range(draw.randrange(4, 60))]
        prompt = draw.randrange(1, len(ids))
        labels = i % 3 if task_named(task).has_classes else [-100] * prompt + ids[prompt:]
        made.append({"input_ids": ids, "labels": labels, "index": i})
    return made


def batches(made: list[dict], size: int) -> list[dict[str, torch.Tensor]]:
    return [collate(made[i : i + size], 1) for i in range(0, len(made), size)]


@pytest.fixture(scope="module", params=[CLASSIFY, GENERATE])
def task_and_model(request: pytest.FixtureRequest) -> tuple[TaskType, nn.Module]:
    return request.param, build(request.param)


def test_sums_are_what_torch_says(task_and_model: tuple[TaskType, nn.Module]):
    task, model = task_and_model
    made = examples(task)
    batch = batches(made, len(made))[0]
    loss_sum, count = task_named(task).sums(model, batch)
    assert (loss_sum.shape, loss_sum.dtype, count.shape, count.dtype) == ((), torch.float32, (), torch.int64)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if task_named(task).has_classes:
        expected, number = F.cross_entropy(logits, batch["labels"], reduction="sum"), len(made)
    else:
        shifted, targets = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        expected = F.cross_entropy(shifted, targets, ignore_index=-100, reduction="sum")
        number = sum(label != -100 for example in made for label in example["labels"][1:])
        own_mean = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
        ).loss
        assert math.isclose(own_mean.item() * number, loss_sum.item(), rel_tol=1e-5)
    assert int(count) == number
    assert torch.allclose(loss_sum, expected, rtol=1e-5)
    assert loss_sum.requires_grad


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_accumulated_gradients_do_not_depend_on_the_micro_batch(task_and_model: tuple[TaskType, nn.Module], size: int):
    task, model = task_and_model

    def gradient(size: int) -> torch.Tensor:
        model.zero_grad()
        total = 0
        for batch in batches(examples(task, 13), size):  # 13: the tail is ragged
            loss_sum, count = task_named(task).sums(model, batch)
            loss_sum.backward()
            total += int(count)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) / total

    whole, parts = gradient(13), gradient(size)
    assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_evaluation_does_not_depend_on_the_batch_size_or_the_order(
    task_and_model: tuple[TaskType, nn.Module], size: int
):
    task, model = task_and_model

    def evaluate(size: int, made: list[dict]) -> dict[str, float]:
        evaluator = task_named(task).evaluator(list(LABELS))
        with torch.inference_mode():
            for batch in batches(made, size):
                evaluator.update(model, batch)
        return evaluator.compute()

    made = examples(task)
    reference = evaluate(64, made)
    for other in (evaluate(size, made), evaluate(size, made[::-1])):
        assert set(other) == set(reference)
        for name, value in reference.items():
            assert math.isclose(value, other[name], rel_tol=1e-6), name


def test_evaluators_of_ranks_merge_to_the_whole(task_and_model: tuple[TaskType, nn.Module]):
    task, model = task_and_model
    whole, one, other = (task_named(task).evaluator(list(LABELS)) for _ in range(3))
    with torch.inference_mode():
        for evaluator, batch in zip(itertools.cycle((one, other)), batches(examples(task), 4), strict=False):
            evaluator.update(model, batch)
            whole.update(model, batch)
    other.merge(one)
    assert other.compute() == whole.compute()


def test_the_evaluated_loss_is_the_sum_over_the_count(task_and_model: tuple[TaskType, nn.Module]):
    task, model = task_and_model
    batch = batches(examples(task), 64)[0]
    evaluator = task_named(task).evaluator(list(LABELS))
    with torch.inference_mode():
        loss_sum, count = task_named(task).sums(model, batch)
        evaluator.update(model, batch)
    assert math.isclose(evaluator.compute()["loss"], loss_sum.item() / int(count), rel_tol=1e-5)


def test_an_evaluator_without_records_says_nan(task_and_model: tuple[TaskType, nn.Module]):
    task, _ = task_and_model
    assert all(math.isnan(value) for value in task_named(task).evaluator(list(LABELS)).compute().values())


def test_generation_metrics():
    model, made = build(GENERATE), examples(GENERATE)
    evaluator = task_named(GENERATE).evaluator()
    with torch.inference_mode():
        evaluator.update(model, batches(made, 64)[0])
        hits, total = 0, 0
        for example in made:
            predicted = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].argmax(-1)
            for position, label in enumerate(example["labels"][1:]):
                hits, total = hits + (label != -100 and int(predicted[position]) == label), total + (label != -100)
    metrics = evaluator.compute()
    assert metrics["token_accuracy"] == hits / total
    assert metrics["perplexity"] == math.exp(metrics["loss"])


def test_a_batch_without_targets_adds_nothing():
    model = build(GENERATE)
    batch = collate([{"input_ids": [5, 6, 7], "labels": [-100] * 3, "index": 0}], 1)
    loss_sum, count = task_named(GENERATE).sums(model, batch)
    loss_sum.backward()
    assert (loss_sum.item(), int(count)) == (0.0, 0)


class _Plain(nn.Module):
    """A causal model that knows nothing of `logits_to_keep` or `use_cache`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.inner = model

    def forward(self, input_ids: torch.Tensor):
        return self.inner(input_ids=input_ids)


def test_a_model_without_logits_to_keep_gives_the_same_sums():
    model, batch = build(GENERATE), batches(examples(GENERATE), 64)[0]
    one, other = (task_named(GENERATE).sums(m, batch) for m in (model, _Plain(model)))
    assert torch.allclose(one[0], other[0], rtol=1e-5)
    assert one[1] == other[1]


@pytest.mark.parametrize("family", ["gpt2", "codegen", "gpt_neo", "opt", "qwen2"])
def test_families_that_padding_could_touch_ignore_it(family: str):
    """No attention mask is passed: on the right of a causal model padding cannot matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
    }
    special: dict[str, dict] = {
        "codegen": {"rotary_dim": 4},
        "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "qwen2": {"num_key_value_heads": 2},
        "opt": {"ffn_dim": 32, "word_embed_proj_dim": 32},
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **small, **special.get(family, {}))
    model = AutoModelForCausalLM.from_config(config).eval()
    made = examples(GENERATE, 9)
    whole = task_named(GENERATE).sums(model, batches(made, 9)[0])[0].item()
    alone = sum(task_named(GENERATE).sums(model, batch)[0].item() for batch in batches(made, 1))
    assert math.isclose(whole, alone, rel_tol=1e-5)


def _overfit(task: TaskType) -> float:
    model, batch = build(task).train(), batches(examples(task, 12), 12)[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss_sum, count = task_named(task).sums(model, batch)
        (loss_sum / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (loss_sum / count).item()


@pytest.mark.parametrize("task", [CLASSIFY, GENERATE])
def test_the_objective_can_be_learned(task: TaskType):
    assert _overfit(task) < 0.3


def test_classification_metrics_name_the_classes_and_survive_absent_ones():
    from sklearn.metrics import f1_score

    labels, predictions = [0, 0, 1, 1, 1, 3], [0, 1, 1, 1, 0, 3]
    metrics = classification_metrics(labels, predictions, ["safe", "low", "medium", "high"])
    assert math.isclose(metrics["accuracy"], 4 / 6)
    assert math.isclose(metrics["macro_f1"], f1_score(labels, predictions, average="macro"))
    assert math.isclose(metrics["weighted_f1"], f1_score(labels, predictions, average="weighted"))
    assert metrics["f1_medium"] == 0.0
    assert metrics["f1_high"] == 1.0
    assert not any(math.isnan(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("eval_loss", "min"),
        ("epoch/eval_loss", "min"),
        ("valid_loss", "min"),
        ("eval_perplexity", "min"),
        ("error_rate", "min"),
        ("eval_accuracy", "max"),
        ("eval_macro_f1", "max"),
        ("eval_f1_error", "max"),
        ("eval_f1_high", "max"),
        ("macro_precision", "max"),
        ("roc_auc", "max"),
        ("eval_token_accuracy", "max"),
        ("syntax_valid_share", "max"),
    ],
)
def test_metric_mode_is_told_by_the_name(name: str, mode: str):
    assert metric_mode(name) == mode


@pytest.mark.parametrize("name", ["learning_rate", "tokens_per_second", "glossary"])
def test_a_name_that_does_not_tell_asks_for_the_mode(name: str):
    with pytest.raises(ConfigurationError, match=f"metric_mode: .*'{name}'.*metric_mode=min or metric_mode=max"):
        metric_mode(name)


@pytest.mark.parametrize("task", list(TaskType))
@pytest.mark.parametrize("model_name", ["scratch:tiny", "scratch:small", "scratch:base", "microsoft/codebert-base"])
def test_defaults_fill_every_option_that_the_task_decides(task: TaskType, model_name: str):
    defaults = task_named(task).defaults(model_name)
    assert set(defaults) == {name for name, option in OPTIONS.items() if option.by_task}
    assert all(OPTIONS[name].check(value) == value for name, value in defaults.items())
    assert task_named(task) == task


def test_names_and_defaults_need_no_torch():
    code = (
        "import sys, json, mltrack.evaluation.metrics, mltrack.tasks.classification, mltrack.tasks.generation, mltrack.evaluation;"
        " print(json.dumps(list(sys.modules)))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert {"torch", "transformers", "sklearn", "mlflow"}.isdisjoint(loaded)
