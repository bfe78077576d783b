"""Each task learns: 32 records by heart, to a training loss below 0.05."""

from __future__ import annotations

import pytest
import tiny

from mltrack import AdvancedTrainer


@pytest.mark.parametrize(
    ("task", "rate"), [("text_classification", 2e-3), ("security_classification", 2e-3), ("code_generation", 3e-3)]
)
def test_32_records_are_learned_by_heart(tmp_path, records_file, task, rate):
    source, train, _ = tiny.data(records_file(task, 48), task, test_size=1 / 3)
    assert len(train) == 32
    trainer = AdvancedTrainer(
        tiny.model(source, train, dropout=0.0),
        train,
        train,
        output_dir=tmp_path / "out",
        num_epochs=200,
        batch_size=8,
        learning_rate=rate,
        weight_decay=0.0,
        early_stopping_patience=50,
        save_every=10_000,
        device="cpu",
    )
    results = trainer.train()
    assert results["history"][0]["eval_loss"] > 0.3
    assert results["best_metric"] < 0.05
