"""The order in which examples are visited, as micro-batches of indices.

Invariant: a pure function of its arguments; it draws from no global generator, and its position is the number of
examples taken.

    for indices in Sampler(dataset.lengths, seed=42, epoch=0, batch_size=8): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from mltrack.errors import ConfigurationError

MAX_WINDOW, MIN_WINDOWS = 50, 4
"""Micro-batches of about `max_tokens` whose examples are sorted together at most, and parts that an epoch is sorted in
at least.
"""


class Sampler:
    """Micro-batches of one epoch for one rank.

    All ranks cut one common order: micro-step k of the ranks together is the k-th run of `world * batch_size` examples,
    so that `world` ranks see per optimizer step what one rank with `world` times the accumulation sees. Every rank has
    the same number of batches; the last one may be ragged, and is empty on ranks for which nothing is left. The
    examples of an optimizer step depend on `batch_size * accumulation * world` alone, not on how it is cut.

    Args:
        lengths: tokens of each example.
        seed, epoch: seed the order; equal ones give the same order.
        rank, world: which of how many ranks.
        batch_size: examples of a micro-batch.
        accumulation: micro-batches of an optimizer step.
        shuffle: False gives the longest examples first (ties in data set order): evaluation pads little and meets its
            largest batch at once.
        bucket_window: optimizer steps (of all ranks) whose examples are sorted by length before they are cut, the steps
            being shuffled afterwards; at most a quarter of the epoch's, so that the same examples do not meet in every
            epoch. 1 is a plain shuffle.
        max_tokens: most tokens of a micro-batch, padding included. The shuffled epoch is sorted by length in parts,
            each is cut where `max_tokens` or `batch_size` is reached, and the micro-batches are shuffled. How many
            there are does not depend on the epoch. An example that is longer is a micro-batch of its own.
        padded_to: multiple to which a batch is padded.
        among: the examples that are visited, ascending; default: all.
        position: examples at the beginning of the order that are left out, because they have been taken.
        one_window: with `max_tokens`, sort the epoch as a whole, as mltrack 0.1 did: the same examples meet in every
            epoch.
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
        among: np.ndarray | None = None,
        position: int = 0,
        one_window: bool = False,
    ):
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("accumulation", accumulation, 1),
            ("bucket_window", bucket_window, 1),
            ("world", world, 1),
            ("seed", seed, 0),
            ("epoch", epoch, 0),
            ("position", position, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ConfigurationError(f"{name}: seen {value!r}; accepted: a whole number >= {least}")
        if not 0 <= rank < world:
            raise ConfigurationError(f"rank: seen {rank!r}; accepted: a whole number >= 0 and < {world}")
        self._lengths = np.asarray(lengths) if among is None else np.asarray(lengths)[among]
        self._among, self._position = among, position
        self._seed, self._epoch, self._rank, self._world = seed, epoch, rank, world
        self._batch_size, self._accumulation = batch_size, accumulation
        self._shuffle, self._bucket_window = shuffle, bucket_window
        self._max_tokens, self._padded_to, self._one_window = max_tokens, padded_to, one_window or not shuffle

    def __len__(self) -> int:
        """Batches of this rank from `position` on, the same for every rank; of a whole epoch the same for every
        epoch.
        """
        return -(-(len(self._bounds) - 1) // self._world)

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(pairwise(self._bounds))
        for turn in range(self._rank, len(self) * self._world, self._world):
            yield self.order[slice(*batches[turn])].tolist() if turn < len(batches) else []

    @cached_property
    def order(self) -> np.ndarray:
        """The examples of the whole epoch, in the order in which the ranks together take them."""
        order = (
            self._by_examples()
            if self._max_tokens is None
            else np.concatenate([np.empty(0, np.int64), *self._by_tokens])
        )
        return order if self._among is None else self._among[order]

    def taken_after(self, num_batches: int) -> int:
        """The position at which the ranks together are after so many batches of each."""
        return int(self._bounds[min(num_batches * self._world, len(self._bounds) - 1)])

    @cached_property
    def _bounds(self) -> Sequence[int]:
        """Where in `order` each micro-batch of the ranks together begins, and where the last one ends."""
        total = len(self._lengths)
        if self._max_tokens is None:
            return [*range(self._position, total, self._batch_size), total]
        ends = np.cumsum([len(batch) for batch in self._by_tokens], dtype=np.int64).tolist()
        return [min(self._position, total), *(end for end in ends if end > self._position)]

    @cached_property
    def _by_tokens(self) -> list[np.ndarray]:
        """Micro-batches of about `max_tokens` each, of the whole epoch and all ranks."""
        order, generator = self._drawn(self._epoch)
        batches = self._cut(order, 1)
        if not self._one_window:
            most = max(MIN_WINDOWS, len(batches) // MAX_WINDOW)
            num_batches = len(self._cut(self._drawn(0)[0], most))
            while most > 1 and len(windowed := self._cut(order, most)) > num_batches:
                most //= 2
            batches = windowed if most > 1 else batches
            while len(batches) < num_batches:
                largest = max(range(len(batches)), key=lambda number: len(batches[number]))
                batches[largest : largest + 1] = np.array_split(batches[largest], 2)
        return [batches[place] for place in generator.permutation(len(batches))] if self._shuffle else batches

    def _drawn(self, epoch: int) -> tuple[np.ndarray, np.random.Generator]:
        """Any order of an epoch, and what draws the rest."""
        generator = np.random.default_rng([self._seed, epoch])
        total = len(self._lengths)
        return generator.permutation(total) if self._shuffle else np.arange(total), generator

    def _cut(self, order: np.ndarray, num_windows: int) -> list[np.ndarray]:
        """Micro-batches of like length: of each window the longest first; what does not fill one goes into the next
        window.
        """
        batches: list[np.ndarray] = [order[:0]]
        for window in np.array_split(order, num_windows):
            together = np.concatenate([batches.pop(), window])
            together = together[np.argsort(-self._lengths[together], kind="stable")]
            batches += np.split(together, self._cuts(self._lengths[together])[1:])
        return [batch for batch in batches if len(batch)]

    def _cuts(self, descending: np.ndarray) -> list[int]:
        """Where each micro-batch begins in examples that are sorted by length."""
        assert self._max_tokens is not None
        cuts, start = [], 0
        while start < len(descending):
            cuts.append(start)
            width = -(-int(descending[start]) // self._padded_to) * self._padded_to
            start += max(1, min(self._batch_size, self._max_tokens // max(1, width)))
        return cuts

    def _by_examples(self) -> np.ndarray:
        """The whole epoch where a micro-batch has a number of examples."""
        if not self._shuffle:
            return np.argsort(-self._lengths, kind="stable")
        order, generator = self._drawn(self._epoch)
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
