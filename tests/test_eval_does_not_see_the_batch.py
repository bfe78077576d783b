"""One evaluation for training, reports and `mltrack evaluate`: the batch does not matter, a stop is heard, the mode
comes back.
"""

from __future__ import annotations

import pytest
import tiny
import torch

from mltrack.errors import Interrupted
from mltrack.evaluation.evaluate import evaluate
from mltrack.hardware.precision import Precision
from mltrack.training.speed import training_context

pytestmark = pytest.mark.device


@pytest.fixture
def evaluated(records_file):
    """evaluated(task, batch_size, precision) -> (metrics, evaluator, model)."""

    def run(task, batch_size, precision="off", on_batch=None):
        source, train, _ = tiny.data(records_file(task, 40), task)
        device = torch.device(tiny.DEVICE)
        model = tiny.model(source, train).to(device)
        metrics, evaluator = evaluate(
            model,
            train,
            batch_size=batch_size,
            device=device,
            precision=Precision(precision, device),
            on_batch=on_batch,
        )
        return metrics, evaluator, model

    return run


@pytest.mark.parametrize("task", ["text_classification", "code_generation"])
@pytest.mark.parametrize(("precision", "tolerance"), [("off", 1e-6), ("bf16", 1e-2)])
def test_the_batch_size_does_not_matter(evaluated, task, precision, tolerance):
    reference = evaluated(task, 5, precision)[0]
    for batch_size in (1, 3, 8, 64):
        assert evaluated(task, batch_size, precision)[0]["loss"] == pytest.approx(reference["loss"], rel=tolerance)


@pytest.mark.parametrize(("precision", "tolerance"), [("off", 1e-6), ("bf16", 1e-2)])
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("text_classification", {}),
        ("security_classification", {}),
        ("code_generation", {"packing": True}),
        ("code_generation", {"max_batch_tokens": 128}),
    ],
)
def test_a_training_evaluates_the_same_whatever_the_batch(trainer, task, options, precision, tolerance):
    """With all that surrounds the loop, an encoder's last layer for one token among it; every metric, in bf16 the loss
    alone: a tie falls either way.
    """
    found = []
    for size in (5, 1, 3, 8, 64):
        made = trainer(task, name=str(size), eval_batch_size=size, use_mixed_precision=precision, **options)
        assert made.cls_only == (task != "code_generation")
        with training_context(made.model, made.config, made.device, cls_only=made.cls_only):
            metrics, _ = made.evaluated(made.eval_dataset)
        made.tracker.close()
        found.append(metrics if precision == "off" else {"loss": metrics["loss"]})
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=tolerance)


def test_a_stop_is_heard_between_batches_and_the_mode_comes_back(evaluated):
    heard = []

    def on_batch(done, total):
        heard.append((done, total))
        if done == 2:
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        evaluated("text_classification", 4, on_batch=on_batch)
    assert heard == [(0, 8), (1, 8), (2, 8)]


def test_the_classes_are_named_and_the_model_trains_on(evaluated):
    metrics, evaluator, model = evaluated("security_classification", 8)
    assert {f"f1_{name}" for name in ("safe", "low", "medium", "high", "critical")} <= set(metrics)
    assert len(evaluator.labels) == len(evaluator.predictions) == 30
    assert model.training
