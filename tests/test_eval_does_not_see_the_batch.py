"""One evaluation for training, reports and `mltrack evaluate`: the batch does not matter, a stop is heard, the mode comes back."""

from __future__ import annotations

import pytest
import tiny
import torch

from mltrack.errors import Interrupted
from mltrack.training import Precision, evaluate


@pytest.fixture
def evaluated(records_file):
    """evaluated(task, batch_size, precision) -> (metrics, evaluator, model)."""

    def run(task, batch_size, precision="off", on_batch=None):
        source, train, _ = tiny.data(records_file(task, 40), task)
        model = tiny.model(source, train)
        device = torch.device("cpu")
        metrics, evaluator = evaluate(model, train, batch_size=batch_size, device=device, precision=Precision(precision, device), on_batch=on_batch)
        return metrics, evaluator, model

    return run


@pytest.mark.parametrize("task", ["text_classification", "code_generation"])
@pytest.mark.parametrize(("precision", "tolerance"), [("off", 1e-6), ("bf16", 1e-2)])
def test_the_batch_size_does_not_matter(evaluated, task, precision, tolerance):
    reference = evaluated(task, 5, precision)[0]
    for batch_size in (1, 3, 8, 64):
        assert evaluated(task, batch_size, precision)[0]["loss"] == pytest.approx(reference["loss"], rel=tolerance)


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
