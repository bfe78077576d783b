"""The order in which examples are visited, as micro-batches of indices.

Invariant: a pure function of its arguments; it draws from no global generator, and its position is the number of batches taken.

    for indices in Sampler(dataset.lengths, seed=42, epoch=0, batch_size=8): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mltrack.errors import ConfigurationError


class Sampler:
    """Micro-batches of one epoch for one rank.

    All ranks cut one common order: micro-step k of the ranks together is the k-th run of `world * batch_size` examples, so that
    `world` ranks see per optimizer step what one rank with `world` times the accumulation sees. Every rank has the same
    number of batches; the last one may be ragged, and is empty on ranks for which nothing is left. The examples of an optimizer
    step depend on `batch_size * accumulation * world` alone, not on how it is cut.

    Args:
        lengths: tokens of each example.
        seed, epoch: seed the order; equal ones give the same order.
        rank, world: which of how many ranks.
        batch_size: examples of a micro-batch.
        accumulation: micro-batches of an optimizer step.
        shuffle: False gives the longest examples first (ties in data set order): evaluation pads little and meets its
            largest batch at once.
        bucket_window: optimizer steps (of all ranks) whose examples are sorted by length before they are cut, the steps
            being shuffled afterwards; at most a quarter of the epoch's, so that the same examples do not meet in every epoch.
            1 is a plain shuffle.
        max_tokens: most tokens of a micro-batch, padding included: then all examples are sorted by length, equal ones in a
            shuffled order, cut where `max_tokens` or `batch_size` is reached, and the micro-batches are shuffled. How many
            there are does not depend on the epoch. An example that is longer is a micro-batch of its own.
        padded_to: multiple to which a batch is padded.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
        *,
        batch_size: int,
        accumulation: int = 1,
        shuffle: bool = True,
        bucket_window: int = 1,
        max_tokens: int | None = None,
        padded_to: int = 8,
    ):
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("accumulation", accumulation, 1),
            ("bucket_window", bucket_window, 1),
            ("world", world, 1),
            ("seed", seed, 0),
            ("epoch", epoch, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ConfigurationError(f"{name}: seen {value!r}; accepted: a whole number >= {least}")
        if not 0 <= rank < world:
            raise ConfigurationError(f"rank: seen {rank!r}; accepted: a whole number >= 0 and < {world}")
        self._lengths = np.asarray(lengths)
        self._seed, self._epoch, self._rank, self._world = seed, epoch, rank, world
        self._batch_size, self._accumulation = batch_size, accumulation
        self._shuffle, self._bucket_window = shuffle, bucket_window
        self._max_tokens, self._padded_to = max_tokens, padded_to

    def __len__(self) -> int:
        """Batches of this rank, the same for every rank and every epoch."""
        if self._max_tokens is not None:
            return -(-len(self._cuts(np.sort(self._lengths)[::-1])) // self._world)
        return -(-len(self._lengths) // (self._batch_size * self._world))

    def __iter__(self) -> Iterator[list[int]]:
        if self._max_tokens is not None:
            yield from self._of_like_size()
            return
        order = self._order()
        stride = self._batch_size * self._world
        for step in range(len(self)):
            start = step * stride + self._rank * self._batch_size
            yield order[start : min(start + self._batch_size, (step + 1) * stride)].tolist()

    def _of_like_size(self) -> Iterator[list[int]]:
        """Micro-batches of about `max_tokens` each."""
        generator = np.random.default_rng([self._seed, self._epoch])
        order = generator.permutation(len(self._lengths)) if self._shuffle else np.arange(len(self._lengths))
        order = order[np.argsort(-self._lengths[order], kind="stable")]
        batches = np.split(order, self._cuts(self._lengths[order])[1:])
        places = generator.permutation(len(batches)) if self._shuffle else np.arange(len(batches))
        for step in range(len(self)):
            turn = step * self._world + self._rank
            yield batches[places[turn]].tolist() if turn < len(batches) else []

    def _cuts(self, descending: np.ndarray) -> list[int]:
        """Where each micro-batch begins in examples that are sorted by length."""
        assert self._max_tokens is not None
        cuts, start = [], 0
        while start < len(descending):
            cuts.append(start)
            width = -(-int(descending[start]) // self._padded_to) * self._padded_to
            start += max(1, min(self._batch_size, self._max_tokens // max(1, width)))
        return cuts

    def _order(self) -> np.ndarray:
        """All indices of the epoch, in the order in which the ranks together take them."""
        if not self._shuffle:
            return np.argsort(-self._lengths, kind="stable")
        generator = np.random.default_rng([self._seed, self._epoch])
        order = generator.permutation(len(self._lengths))
        return order if self._bucket_window == 1 else self._bucketed(order, generator)

    def _bucketed(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        stride = self._batch_size * self._accumulation * self._world
        whole = len(order) // stride
        window = stride * min(self._bucket_window, max(1, whole // 4))
        ragged = whole * stride  # those left over are any, and stay last: every step but the last of the epoch is whole
        cuts = [*range(0, ragged, window), ragged]
        by_length = [part[np.argsort(-self._lengths[part], kind="stable")] for part in np.split(order, cuts[1:])]
        order = np.concatenate(by_length)
        steps = order[:ragged].reshape(whole, stride)[generator.permutation(whole)]
        return np.concatenate([steps.reshape(-1), order[ragged:]])
