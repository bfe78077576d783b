"""On the built-in source the default models beat their baselines: what the README shows is what a user gets."""

from __future__ import annotations

import commands
import pytest
import tiny

pytestmark = pytest.mark.long


def _trained(folder, *words):
    finished = commands.mltrack(
        "train", *words, "--offline", "true", "--output", "json", cwd=folder, timeout_s=280, OMP_NUM_THREADS="2"
    )
    assert finished.returncode == 0, finished.stderr
    response = tiny.last_json_line(finished.stdout)
    return response, folder / "mltrack-runs" / response["run_id"] / "journal"


def test_text_classification_beats_the_majority(tmp_path):
    response, journal = _trained(
        tmp_path, "--task", "text_classification", "--metric-name", "eval_macro_f1", "--epochs", "3"
    )
    assert response["best_metric"] > response["baselines"]["baseline_majority_macro_f1"] + 0.1
    losses = list(tiny.points(journal, "eval_loss").values())
    assert min(losses) < losses[0]


def test_the_demo_beats_the_unigram_loss_long_before_its_end(tmp_path):
    """A twelfth of the demo's steps."""
    response, journal = _trained(
        tmp_path, "--task", "code_generation", "--max-steps", "60", "--eval-every", "30", "--validation-split", "0.03"
    )
    losses = list(tiny.points(journal, "eval_loss").values())
    assert losses[-1] < response["baselines"]["baseline_unigram_loss"]
    assert losses[-1] < losses[0] - 0.3
