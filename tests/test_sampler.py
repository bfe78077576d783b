"""The order of an epoch is a pure function of the sampler's arguments, the same for every number of ranks together."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mltrack.data import Sampler
from mltrack.errors import ConfigurationError

LENGTHS = np.random.default_rng(0).integers(5, 500, size=103)


def batches(lengths: np.ndarray = LENGTHS, seed: int = 42, epoch: int = 0, rank: int = 0, world: int = 1, **options: int) -> list[list[int]]:
    return list(Sampler(lengths, seed, epoch, rank, world, **{"batch_size": 8, **options}))


@pytest.mark.parametrize("options", [{}, {"bucket_window": 4}, {"shuffle": False}, {"batch_size": 1}, {"batch_size": 200}])
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

    assert padding(batches(bucket_window=8)) < padding(batches()) / 2
    longest = [int(LENGTHS[batch].max()) for batch in batches(bucket_window=100)[:-1]]
    assert longest != sorted(longest, reverse=True)


def test_no_examples_no_batches() -> None:
    assert batches(LENGTHS[:0]) == []
    assert batches(LENGTHS[:0], bucket_window=4) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: seen 0; accepted: a whole number >= 1"),
        ({"bucket_window": 0}, "bucket_window: seen 0; accepted: a whole number >= 1"),
        ({"rank": 2, "world": 2}, "rank: seen 2; accepted: a whole number >= 0 and < 2"),
        ({"seed": -1}, "seed: seen -1; accepted: a whole number >= 0"),
    ],
)
def test_options_outside_of_what_is_accepted(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        batches(**options)
    assert str(caught.value) == message
