"""The order of an epoch is a pure function of (lengths, seed, epoch, rank, world), the same for every number of ranks
together; processes that collate, and a stop in between, change neither the batches nor the training."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import tiny
import torch
from test_resume_is_exact import StopAfter, _assert_equal, _finished, _trainer

from mltrack.config import TrainingConfig
from mltrack.data import CodeDataset, Sampler
from mltrack.data.batches import MicroBatch, TrainingBatches
from mltrack.errors import ConfigurationError, Interrupted

LENGTHS = np.random.default_rng(0).integers(5, 500, size=103)


def batches(
    lengths: np.ndarray = LENGTHS, seed: int = 42, epoch: int = 0, rank: int = 0, world: int = 1, **options: int
) -> list[list[int]]:
    return list(Sampler(lengths, seed, epoch, rank, world, **{"batch_size": 8, **options}))


@pytest.mark.parametrize(
    "options", [{}, {"bucket_window": 4}, {"shuffle": False}, {"batch_size": 1}, {"batch_size": 200}]
)
def test_each_example_comes_once(options: dict) -> None:
    taken = batches(**options)
    assert sorted(index for batch in taken for index in batch) == list(range(103))
    assert len(taken) == len(Sampler(LENGTHS, 42, 0, **{"batch_size": 8, **options}))
    assert all(type(index) is int for batch in taken for index in batch)


def test_seed_and_epoch_make_the_order_and_nothing_else_does() -> None:
    first = batches()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    sampler = Sampler(LENGTHS, 42, 0, batch_size=8)
    assert first == list(sampler) == list(sampler)
    assert len({str(batches(seed=seed, epoch=epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_no_global_generator_is_drawn_from() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    batches(bucket_window=4)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


@pytest.mark.parametrize("bucket_window", [1, 4])
@pytest.mark.parametrize("world", [2, 3, 7])
@pytest.mark.parametrize("size", [103, 96, 5, 1])
def test_ranks_cut_one_common_order(world: int, bucket_window: int, size: int) -> None:
    per_rank = [batches(LENGTHS[:size], rank=rank, world=world, bucket_window=bucket_window) for rank in range(world)]
    assert len({len(taken) for taken in per_rank}) == 1
    assert sorted(index for taken in per_rank for batch in taken for index in batch) == list(range(size))
    if bucket_window == 1:  # micro-step k of all ranks is the k-th run of one rank's order
        alone = [index for batch in batches(LENGTHS[:size]) for index in batch]
        assert [index for step in zip(*per_rank, strict=True) for batch in step for index in batch] == alone
    assert all(len(batch) == 8 for taken in per_rank for batch in taken[:-1])


def test_evaluation_takes_the_longest_first() -> None:
    taken = [LENGTHS[index] for batch in batches(shuffle=False) for index in batch]
    assert taken == sorted(taken, reverse=True)


def test_buckets_pad_less_and_stay_shuffled() -> None:
    def padding(taken: list[list[int]]) -> int:
        return sum(int(LENGTHS[batch].max()) * len(batch) - int(LENGTHS[batch].sum()) for batch in taken)

    assert padding(batches(bucket_window=8)) < 0.7 * padding(batches())
    longest = [int(LENGTHS[batch].max()) for batch in batches(bucket_window=100)[:-1]]
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("bucket_window", [50, 1000])
def test_buckets_do_not_make_the_same_batches_in_every_epoch(bucket_window: int) -> None:
    """Records of which a window is all that there is: who is in a batch still changes, and so does who is left over at
    the end.
    """
    lengths = np.random.default_rng(1).integers(5, 500, size=645)
    epochs = [batches(lengths, epoch=epoch, batch_size=16, bucket_window=bucket_window) for epoch in range(4)]
    groups = [frozenset(batch) for taken in epochs for batch in taken]
    assert len(set(groups)) == len(groups)
    left_over = [int(lengths[index]) for taken in epochs for index in taken[-1]]
    assert max(left_over) > np.median(lengths), "not only the shortest"


def test_no_examples_no_batches() -> None:
    assert batches(LENGTHS[:0]) == []
    assert batches(LENGTHS[:0], bucket_window=4) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "^batch_size .*>= 1, not 0$"),
        ({"bucket_window": 0}, "^bucket_window .*>= 1, not 0$"),
        ({"rank": 2, "world": 2}, "^rank .*>= 0 and < 2, not 2$"),
        ({"seed": -1}, "^seed .*>= 0, not -1$"),
    ],
)
def test_options_outside_of_what_is_accepted(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        batches(**options)


def test_another_process_takes_the_same_order() -> None:
    script = """
import json, numpy as np
from mltrack.data.sampler import Sampler
lengths = np.random.default_rng(0).integers(5, 500, size=103)
print(json.dumps(list(Sampler(lengths, 42, 3, 1, 2, batch_size=8, accumulation=2, bucket_window=4))))
"""
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", script],
            env=commands.environment(PYTHONHASHSEED=seed),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert json.loads(ran.stdout) == batches(epoch=3, rank=1, world=2, accumulation=2, bucket_window=4), ran.stderr


@pytest.fixture
def skewed(tmp_path: Path) -> tuple[Any, CodeDataset, CodeDataset]:
    """(model source, training set, evaluation set) of functions of many lengths, one in five unsafe."""
    rows = []
    for n in range(60):
        body = f"    value = {n}\n" * (n % 7) + (f"    eval(str({n}))" if n % 5 == 0 else f"    return {n}")
        rows.append({"code": f"def f{n}(x):\n{body}", "label": "unsafe" if n % 5 == 0 else "safe"})
    path = tmp_path / "skewed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tiny.data(path, "text_classification")


def groups(dataset: CodeDataset, num_workers: int, position: int = 0, **options: Any) -> list[list[MicroBatch]]:
    config = TrainingConfig(batch_size=4, gradient_accumulation_steps=2, seed=7, num_workers=num_workers, **options)
    return list(TrainingBatches(dataset, config, rank=0, world=1, pin=False).groups(1, position))


def assert_same_batches(found: list[list[MicroBatch]], expected: list[list[MicroBatch]]) -> None:
    assert [[batch.records for batch in group] for group in found] == [
        [batch.records for batch in group] for group in expected
    ]
    for one, other in zip((b for g in found for b in g), (b for g in expected for b in g), strict=True):
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in other.tensors)
        assert (one.targets, one.tokens) == (other.targets, other.tokens)


def test_processes_that_collate_give_the_same_batches_and_draw_nothing(skewed) -> None:
    _, dataset, _ = skewed
    expected = groups(dataset, 0)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for num_workers in (0, 2):
        assert_same_batches(groups(dataset, num_workers), expected)
        assert_same_batches(groups(dataset, num_workers, position=3 * 8), expected[3:])
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_processes_that_collate_change_no_bit_of_a_training(skewed, tmp_path: Path) -> None:
    options = {"class_weights": "balanced"}
    expected = _finished(_trainer(tmp_path / "alone", *skewed, **options))
    made = _trainer(tmp_path / "two", *skewed, num_workers=2, **options)
    _assert_equal(_finished(made), expected)
    waits = tiny.points(made.tracker.directory.journal, "system/data_wait_ms")
    assert sorted(waits) == list(range(1, made.state.step + 1)), (
        "how long the device waited for data is a metric of every step"
    )
    assert all(wait >= 0 for wait in waits.values())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stop_in_between_changes_nothing_with_buckets_and_balanced_classes(
    skewed, tmp_path: Path, num_workers: int
) -> None:
    options = {"class_weights": "balanced", "num_workers": num_workers}
    assert len(set(skewed[1].lengths.tolist())) > 5, "buckets have something to sort"
    expected = _finished(_trainer(tmp_path / "whole", *skewed, **options))
    for polls in (3, 14, 25):
        folder = tmp_path / f"stopped-{polls}"
        stopped = _trainer(folder, *skewed, stop=StopAfter(polls), **options)
        with pytest.raises(Interrupted):
            stopped.train()
        stopped.tracker.close()  # processes that collate may still be there; they hold nothing
        torch.manual_seed(999)
        resumed = _trainer(folder, *skewed, **options)
        resumed.load_checkpoint(resumed.checkpoint_manager.load_latest_checkpoint())
        resumed.tracker.resume_from(resumed.state.step, resumed.state.epoch)
        _assert_equal(_finished(resumed), expected)
