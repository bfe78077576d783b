"""Whatever changes at a resume, an epoch takes each of its examples once, and the schedule, the best and the remedy
follow what is said now.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resume_is_exact import StopAfter, _trainer

from mltrack.checkpoints import CheckpointManager
from mltrack.config import TrainingConfig, TrainModelRequest
from mltrack.data import CodeDataset, Sampler
from mltrack.data.batches import MicroBatch, TrainingBatches
from mltrack.errors import Interrupted
from mltrack.journal.retained_checkpoints import RetainedCheckpoints
from mltrack.runs.use_case import TrainModelUseCase

TASK = "code_generation"


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, CodeDataset, CodeDataset]:
    """(model source, training set, evaluation set) of functions of many lengths."""
    rows = []
    for n in range(50):
        body = f"    value = {n}\n" * (n % 7) + f"    return {n}"
        rows.append({"description": f"function {n}", "code": f"def f{n}(x):\n{body}"})
    path = tmp_path_factory.mktemp("skewed") / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tiny.data(path, TASK)


# -- the position in the data

orders = st.fixed_dictionaries(
    {
        "batch_size": st.sampled_from([1, 3, 4, 16, 64]),
        "gradient_accumulation_steps": st.sampled_from([1, 2, 5]),
        "seed": st.sampled_from([1, 2]),
        "packing": st.booleans(),
        "max_batch_tokens": st.sampled_from([None, 64, 200]),
        "speedups": st.sampled_from(["buckets=on", "buckets=off"]),
    }
)


def resumed(dataset: CodeDataset, options: dict[str, Any], state: dict[str, Any] | None, taken: int) -> TrainingBatches:
    batches = TrainingBatches(dataset, TrainingConfig(**options), rank=0, world=1, pin=False)
    if state is not None:
        batches.load_state_dict(state, 1, taken)
    return batches


def records_of(groups: Iterator[list[MicroBatch]], steps: int | None = None) -> list[list[int]]:
    """The records of each of the next steps."""
    found = []
    for group in groups:
        found.append([record for batch in group for record in batch.records])
        if len(found) == steps:
            break
    return found


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.tuples(orders, st.integers(0, 6)), min_size=1, max_size=3), last=orders)
def test_the_examples_of_an_epoch_come_once_whatever_changes(skewed, parts, last) -> None:
    dataset, state, taken = skewed[1], None, []
    for options, steps in parts:
        batches = resumed(dataset, options, state, len(taken))
        if steps:
            taken += [record for step in records_of(batches.groups(1, len(taken)), steps) for record in step]
        state = batches.state_dict(1, len(taken))
    batches = resumed(dataset, last, state, len(taken))
    rest = records_of(batches.groups(1, len(taken)))
    assert len(rest) == batches.num_steps(1, len(taken))
    assert sorted([*taken, *(record for step in rest for record in step)]) == list(range(len(dataset)))
    following = [record for step in records_of(batches.groups(2, 0)) for record in step]
    assert sorted(following) == list(range(len(dataset))), "the next epoch has all of them again"


@settings(max_examples=40, deadline=None)
@given(options=orders, changed=orders, steps=st.integers(1, 6), more=st.integers(0, 4))
def test_what_has_not_changed_goes_on_in_the_same_steps(skewed, options, changed, steps, more) -> None:
    """Also where the order had changed earlier in the epoch."""
    dataset = skewed[1]
    first = resumed(dataset, options, None, 0)
    taken = sum(map(len, records_of(first.groups(1, 0), steps)))
    second = resumed(dataset, changed, first.state_dict(1, taken), taken)
    expected = records_of(second.groups(1, taken))
    later = taken + sum(map(len, expected[:more]))
    third = resumed(dataset, changed, second.state_dict(1, later), later)
    assert records_of(third.groups(1, later)) == expected[more:]


@pytest.mark.parametrize("options", [{}, {"speedups": "buckets=off"}, {"max_batch_tokens": 200}])
@pytest.mark.parametrize("steps", [0, 2, 1000])
def test_a_position_of_mltrack_0_1_is_one_in_steps(skewed, options, steps) -> None:
    """Its epoch goes on in the order that it had, and where something else changes, with what it had not taken."""
    dataset = skewed[1]
    buckets = "speedups" not in options
    old = Sampler(
        dataset.lengths,
        7,
        1,
        batch_size=4,
        accumulation=2,
        bucket_window=50 if buckets else 1,
        max_tokens=options.get("max_batch_tokens"),
        one_window=True,
    )
    whole = [record for batch in old for record in batch]
    sampler = "length buckets of 50 steps, at most a quarter of an epoch" if buckets else "shuffled"
    if "max_batch_tokens" in options:
        sampler = "batches of at most 200 tokens"
    then = {"batch_size": 4, "gradient_accumulation_steps": 2, "seed": 7, "sampler": sampler}
    taken = sum(map(len, list(old)[: 2 * steps]))
    for batch_size in (4, 16):
        config = TrainingConfig(batch_size=batch_size, gradient_accumulation_steps=2, seed=7, **options)
        batches = TrainingBatches(dataset, config, rank=0, world=1, pin=False)
        state, position = batches.state_of_0_1(then, 1, steps)
        assert position == taken
        batches.load_state_dict(state, 1, position)
        rest = [record for step in records_of(batches.groups(1, position)) for record in step]
        assert sorted(rest) == sorted(whole[taken:])
        if batch_size == 4:
            assert rest == whole[taken:]


def test_with_a_budget_of_tokens_other_examples_meet_in_each_epoch() -> None:
    lengths = np.random.default_rng(0).integers(3, 200, size=501)

    def pairs(epoch: int, **options: bool) -> set[tuple[int, int]]:
        batches = Sampler(lengths, 5, epoch, batch_size=64, max_tokens=1024, **options)
        return {(one, other) for batch in batches for one in batch for other in batch if one < other}

    def share(**options: bool) -> float:
        first = pairs(0, **options)
        return max(len(first & pairs(epoch, **options)) / len(first) for epoch in range(1, 5))

    assert share() < 0.3
    assert share(one_window=True) > 0.6, "as it was before"
    real = lengths.sum() / sum(
        len(batch) * lengths[batch].max() for batch in Sampler(lengths, 5, 1, batch_size=64, max_tokens=1024)
    )
    assert real > 0.9, "batches are still of like length"


def test_the_order_of_mltrack_0_1_is_kept() -> None:
    lengths = np.random.default_rng(0).integers(3, 200, size=103)
    taken = list(Sampler(lengths, 5, 1, batch_size=8, max_tokens=512, one_window=True))
    assert taken[:3] == [[4, 37, 20, 3, 92, 48, 82, 93], [33, 25], [39, 72, 40, 100, 89]]


# -- a training that goes on with other options


def stopped(folder, skewed, *, polls: int = 9, **options: Any) -> dict[str, Any]:
    """The checkpoint of a training of 2 epochs that was stopped within the first one."""
    made = _trainer(folder, *skewed, stop=StopAfter(polls), **options)
    with pytest.raises(Interrupted):
        made.train()
    made.tracker.close()
    return made.checkpoint_manager.load_latest_checkpoint()


def gone_on(folder, skewed, checkpoint: dict[str, Any] | None = None, **options: Any) -> Any:
    """The trainer that has taken the checkpoint, which may be made into another one."""
    made = _trainer(folder, *skewed, **options)
    made.load_checkpoint(checkpoint or made.checkpoint_manager.load_latest_checkpoint())
    made.tracker.resume_from(made.state.step, made.state.epoch)
    return made


def as_of_0_1(checkpoint: dict[str, Any], losses: list[float]) -> dict[str, Any]:
    """The checkpoint as mltrack 0.1 would have written it."""
    made = {**checkpoint, "extra_state": copy.deepcopy(checkpoint["extra_state"])}
    extra, step = made["extra_state"], checkpoint["step"]
    for name in ("order", "plan", "metric"):
        del extra[name]
    for name in ("warmup_steps", "warmup_ratio"):
        extra["decisive"].pop(name, None)
    extra["decisive"]["threads"] = torch.get_num_threads()
    training = extra["training"]
    for name in [
        name for name in training if name == "examples" or name.startswith("epoch_loss") or name == "epoch_steps"
    ]:
        if name != "epoch_loss_sum":
            del training[name]
    training["position"], training["epoch_losses"] = step, losses
    return made


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 16},
        {"batch_size": 3, "gradient_accumulation_steps": 1},
        {"max_batch_tokens": 128, "batch_size": 32, "packing": True},
    ],
)
def test_a_larger_or_smaller_batch_takes_the_rest_of_the_epoch_and_the_whole_of_the_next(
    tmp_path, skewed, changed
) -> None:
    checkpoint = stopped(tmp_path, skewed)
    assert 0 < checkpoint["extra_state"]["training"]["examples"] < len(skewed[1])
    assert checkpoint["extra_state"]["training"]["epoch"] == 0
    made = gone_on(tmp_path, skewed, exact=False, **changed)
    made.train()
    assert made.state.tokens == 2 * int(skewed[1].lengths.sum()), "each example twice"
    assert (made.state.epoch, made.state.step) == (2, made.plan.total_steps)
    assert tiny.points(made.tracker.directory.journal, "learning_rate")[made.state.step] < 0.3e-3, (
        "the schedule ends with it"
    )
    made.tracker.close()


def test_of_a_checkpoint_of_mltrack_0_1_too(tmp_path, skewed) -> None:
    """Its schedule stays: the first rate is 0, and max_steps does not go beyond the epochs."""
    checkpoint = stopped(tmp_path, skewed)
    losses = list(tiny.points(tmp_path / "journal", "train_loss").values())
    made = gone_on(tmp_path, skewed, as_of_0_1(checkpoint, losses), max_steps=1000)
    expected = checkpoint["extra_state"]["training"]
    assert made.state.examples == expected["examples"]
    assert made.plan.as_in_0_1
    assert made.plan.total_steps == checkpoint["extra_state"]["plan"]["total_steps"]
    assert made.scheduler.lr_lambdas[0](0) == 0
    for name in ("epoch_steps", "epoch_loss_mean", "epoch_loss_squares", "epoch_loss_min", "epoch_loss_max"):
        assert getattr(made.state, name) == pytest.approx(expected[name]), name
    made.tracker.close()
    again = gone_on(tmp_path, skewed, as_of_0_1(checkpoint, losses), batch_size=16, exact=False)
    again.train()
    assert again.state.tokens == 2 * int(skewed[1].lengths.sum())
    assert again.checkpoint_manager.load_latest_checkpoint()["extra_state"]["plan"]["as_in_0_1"]
    again.tracker.close()


def test_on_other_records_the_epoch_begins_anew(tmp_path, skewed) -> None:
    stopped(tmp_path, skewed)
    fewer = skewed[0], skewed[2], skewed[2]
    made = gone_on(tmp_path, fewer, exact=False)
    assert made.state.examples == 0
    assert any(line.startswith("epoch 1 begins anew") for line in made.resume_notices)
    made.train()
    assert (made.state.epoch, made.state.step) == (2, made.plan.total_steps)
    made.tracker.close()


# -- the schedule


def test_more_epochs_stretch_the_schedule_and_say_so(tmp_path, skewed) -> None:
    checkpoint = stopped(tmp_path, skewed)
    unchanged = gone_on(tmp_path, skewed)
    assert unchanged.resume_notices == []
    unchanged.tracker.close()
    made = gone_on(tmp_path, skewed, num_epochs=4)
    (line,) = made.resume_notices
    total, before = checkpoint["extra_state"]["plan"]["total_steps"], checkpoint["scheduler_state_dict"]["_last_lr"][0]
    now = made.scheduler.get_last_lr()[0]
    assert before != now
    assert f"stretched from {total} to {2 * total} optimizer steps" in line
    assert f"step {checkpoint['step'] + 1} changes from {before:.4g} to {now:.4g}" in line
    made.tracker.close()


# -- the metric


def saved(folder, found: list[dict[str, float]], metric_name: str = "eval_loss") -> CheckpointManager:
    manager = CheckpointManager(folder, max_checkpoints=9, metric_name=metric_name)
    for step, metrics in enumerate(found, 1):
        value = metrics.get(metric_name)
        manager.save_checkpoint(model=torch.nn.Linear(2, 2), epoch=0, step=step, metric_value=value, metrics=metrics)
    return manager


def test_checkpoints_are_ranked_by_what_they_recorded_of_the_metric_of_now(tmp_path) -> None:
    saved(tmp_path, [{"eval_loss": 0.1, "eval_f1": 0.2}, {"eval_loss": 0.3, "eval_f1": 0.9}, {"eval_loss": 0.2}])
    by_f1 = CheckpointManager(tmp_path, metric_name="eval_f1", max_checkpoints=9)
    best = by_f1.get_best_checkpoint_info()
    assert (best.step, best.metric_name, best.metric_value) == (2, "eval_f1", 0.9)
    assert [one.metric_value for one in by_f1.list_checkpoints()] == [0.2, 0.9, None], "what lacks it is not ranked"
    assert by_f1.load_best_checkpoint()["metric_name"] == "eval_loss", "what it was saved for"
    assert CheckpointManager(tmp_path, metric_name="eval_loss").get_best_checkpoint_info().step == 1


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    "changed", [{"metric_name": "eval_perplexity"}, {"metric_mode": "max"}, {}], ids=["name", "mode", "neither"]
)
def test_another_metric_forgets_the_best_and_the_patience_of_the_old_one(tmp_path, skewed, changed, recorded) -> None:
    checkpoint = stopped(tmp_path, skewed, polls=28, early_stopping_patience=50)
    training = checkpoint["extra_state"]["training"]
    assert len(training["history"]) >= 2
    assert len({entry["eval_loss"] for entry in training["history"]}) > 1
    checkpoint["extra_state"]["early_stopping"]["waited"] = 3
    if not recorded:
        del checkpoint["extra_state"]["metric"]
    made = _trainer(tmp_path, *skewed, early_stopping_patience=50, **changed)
    name, mode = changed.get("metric_name", "eval_loss"), changed.get("metric_mode", "min")
    made.checkpoint_manager = CheckpointManager(
        tmp_path / "checkpoints", max_checkpoints=2, metric_name=name, mode=mode
    )
    made.load_checkpoint(checkpoint)
    made.tracker.close()
    if not changed:
        assert made.resume_notices == []
        assert (made.early_stopping.waited, made.state.best_metric) == (3, training["best_metric"])
        return
    (line,) = made.resume_notices
    assert f"{name} ({mode}) instead of eval_loss (min)" in line
    assert (made.early_stopping.reference, made.early_stopping.waited) == (None, 0)
    held = made.checkpoint_manager.list_checkpoints()
    values = {one.step: one.metrics[name] for one in held if name in one.metrics}
    best = (max if mode == "max" else min)(values, key=lambda step: values[step])
    assert (made.state.best_step, made.state.best_metric) == (best, values[best])


@pytest.mark.long
def test_a_run_that_goes_on_longer_and_by_another_metric_says_both_and_reports_its_best(here, records_file) -> None:
    said: list[str] = []
    request = TrainModelRequest(
        dataset_path=str(records_file("text_classification", 40)),
        task="text_classification",
        model_name="scratch:tiny",
        max_length=64,
        batch_size=8,
        epochs=2,
        eval_every=2,
        save_every=2,
        max_checkpoints=9,
        offline=True,
    )
    first = TrainModelUseCase().execute(request)
    assert first.success, first.errors
    again = TrainModelRequest(resume=first.run_id, epochs=3, metric_name="eval_accuracy", offline=True)
    second = TrainModelUseCase(notice=said.append).execute(again)
    assert second.success, second.errors
    (stretched,) = (line for line in said if "stretched from" in line)
    (judged,) = (line for line in said if "eval_accuracy (max) instead of eval_loss (min)" in line)
    assert second.warnings == [stretched, judged]
    values = {one["step"]: one["metrics"]["eval_accuracy"] for one in second.checkpoints if one["metrics"]}
    assert second.best_metric == max(values.values()) == values[second.best_step]
    assert {one["step"]: one["metric_value"] for one in second.checkpoints if one["metrics"]} == values


def test_the_journal_names_every_kept_checkpoint_again_that_another_metric_judges() -> None:
    def kept(name: str) -> list[dict[str, Any]]:
        one = {"epoch": 0, "metrics": {}, "path": "x", "created_ms": 5, "reasons": ["best"]}
        return [{**one, "step": step, "metric_name": name, "metric_value": step / 9} for step in range(1, 31)]

    before = RetainedCheckpoints()
    before = before.after(before.record_of(kept("eval_loss"), 1))
    after = before.after(before.record_of(kept("eval_f1"), 30))
    assert {one["metric_name"] for one in after.kept.values()} == {"eval_f1"}
    assert after.best_step == 30
