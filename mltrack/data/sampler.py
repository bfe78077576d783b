"""The order of the examples, as micro-batches of indices.

Invariant: a pure function of its arguments, without a global generator; its position is the number of examples taken.

    for indices in Sampler(dataset.lengths, seed=42, epoch=0, batch_size=8): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from mltrack.errors import ConfigurationError

MAX_WINDOW, MIN_WINDOWS = 50, 4
"""Most micro-batches of about `max_tokens` that are sorted together, and fewest sorted parts of an epoch."""


class Sampler:
    """Micro-batches of one epoch for one rank.

    All ranks cut one common order: micro-step k of all ranks is the k-th run of `world * batch_size` examples, so an
    optimizer step of `world` ranks has the examples of one rank with `world` times the accumulation. Every rank has the
    same number of batches; the last one may be shorter, or empty if nothing is left for a rank. The examples of an
    optimizer step depend only on the product `batch_size * accumulation * world`.

    Args:
        lengths: tokens of each example.
        seed, epoch: seed the order.
        rank, world: this rank and the number of ranks.
        batch_size: examples per micro-batch.
        accumulation: micro-batches per optimizer step.
        shuffle: False gives the longest examples first (ties in data set order), so evaluation pads little and begins
            with its largest batch.
        bucket_window: optimizer steps (of all ranks) whose examples are sorted by length before they are cut; the steps
            are shuffled afterwards. At most a quarter of the epoch, so that batches differ between epochs. 1 is a plain
            shuffle.
        max_tokens: most tokens of a micro-batch, padding included. The shuffled epoch is sorted by length in parts,
            each is cut where `max_tokens` or `batch_size` is reached, and the micro-batches are shuffled. Their number
            does not depend on the epoch. A longer example is a separate micro-batch.
        padded_to: multiple to which a batch is padded.
        among: the examples to visit, ascending; default: all.
        position: number of examples at the beginning of the order to skip, since they have been taken.
        one_window: with `max_tokens`, sort the whole epoch at once, as mltrack 0.1 did: batches repeat in every epoch.
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
                raise ConfigurationError(f"{name} must be a whole number >= {least}, not {value!r}")
        if not 0 <= rank < world:
            raise ConfigurationError(f"rank must be a whole number >= 0 and < {world}, not {rank!r}")
        self._lengths = np.asarray(lengths) if among is None else np.asarray(lengths)[among]
        self._among, self._position = among, position
        self._seed, self._epoch, self._rank, self._world = seed, epoch, rank, world
        self._batch_size, self._accumulation = batch_size, accumulation
        self._shuffle, self._bucket_window = shuffle, bucket_window
        self._max_tokens, self._padded_to, self._one_window = max_tokens, padded_to, one_window or not shuffle

    def __len__(self) -> int:
        """Batches of this rank from `position` on, equal for all ranks; for a whole epoch, equal for all epochs."""
        return -(-(len(self._bounds) - 1) // self._world)

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(pairwise(self._bounds))
        for turn in range(self._rank, len(self) * self._world, self._world):
            yield self.order[slice(*batches[turn])].tolist() if turn < len(batches) else []

    @cached_property
    def order(self) -> np.ndarray:
        """The examples of the whole epoch, in the order in which all ranks together take them."""
        order = (
            self._by_examples()
            if self._max_tokens is None
            else np.concatenate([np.empty(0, np.int64), *self._by_tokens])
        )
        return order if self._among is None else self._among[order]

    def taken_after(self, num_batches: int) -> int:
        """The position of all ranks after this many batches of each."""
        return int(self._bounds[min(num_batches * self._world, len(self._bounds) - 1)])

    @cached_property
    def _bounds(self) -> Sequence[int]:
        """Start in `order` of each micro-batch of all ranks, and the end of the last one."""
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
        """The initial order of an epoch, and the generator for the rest."""
        generator = np.random.default_rng([self._seed, epoch])
        total = len(self._lengths)
        return generator.permutation(total) if self._shuffle else np.arange(total), generator

    def _cut(self, order: np.ndarray, num_windows: int) -> list[np.ndarray]:
        """Micro-batches of similar length, the longest of a window first; an incomplete one joins the next window."""
        batches: list[np.ndarray] = [order[:0]]
        for window in np.array_split(order, num_windows):
            together = np.concatenate([batches.pop(), window])
            together = together[np.argsort(-self._lengths[together], kind="stable")]
            batches += np.split(together, self._cuts(self._lengths[together])[1:])
        return [batch for batch in batches if len(batch)]

    def _cuts(self, descending: np.ndarray) -> list[int]:
        """Start of each micro-batch in examples sorted by length."""
        assert self._max_tokens is not None
        cuts, start = [], 0
        while start < len(descending):
            cuts.append(start)
            width = -(-int(descending[start]) // self._padded_to) * self._padded_to
            start += max(1, min(self._batch_size, self._max_tokens // max(1, width)))
        return cuts

    def _by_examples(self) -> np.ndarray:
        """The whole epoch for micro-batches of a fixed number of examples."""
        if not self._shuffle:
            return np.argsort(-self._lengths, kind="stable")
        order, generator = self._drawn(self._epoch)
        return order if self._bucket_window == 1 else self._bucketed(order, generator)

    def _bucketed(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        stride = self._batch_size * self._accumulation * self._world
        whole = len(order) // stride
        window = stride * min(self._bucket_window, max(1, whole // 4))
        ragged = whole * stride  # the random rest stays last: every step but the last of the epoch is full
        cuts = [*range(0, ragged, window), ragged]
        by_length = [part[np.argsort(-self._lengths[part], kind="stable")] for part in np.split(order, cuts[1:])]
        order = np.concatenate(by_length)
        steps = order[:ragged].reshape(whole, stride)[generator.permutation(whole)]
        return np.concatenate([steps.reshape(-1), order[ragged:]])
