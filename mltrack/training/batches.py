"""The micro-batches of an epoch, in an order that depends on the seed and the epoch alone.

Invariant: a position is a number of optimizer steps; starting at it gives the batches that would have come there anyway, and nothing
here draws from a global random number generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from mltrack.data import CodeDataset, Sampler
from mltrack.data.collate import IGNORED


@dataclass(frozen=True)
class MicroBatch:
    """One collated batch."""

    tensors: dict[str, torch.Tensor]
    """input_ids, attention_mask [batch, length], labels [batch] or [batch, length]; on the host."""
    records: list[int]
    """Their numbers in the data set."""
    targets: int
    """Target tokens, or examples."""
    tokens: int
    """Real tokens, without padding."""

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The tensors on the device; the copy of a pinned batch is asynchronous."""
        return {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items() if name != "index"}

    def split(self, size: int | None) -> list[MicroBatch]:
        """Parts of at most `size` examples, in order; None: itself. Their targets and tokens are those of their labels and masks."""
        if size is None or len(self.records) <= size:
            return [self]
        parts = []
        for start in range(0, len(self.records), size):
            tensors = {name: tensor[start : start + size] for name, tensor in self.tensors.items()}
            targets, tokens = int((tensors["labels"] != IGNORED).sum()), int(tensors["attention_mask"].sum())
            parts.append(MicroBatch(tensors, self.records[start : start + size], targets, tokens))
        return parts


def load_batches(
    dataset: CodeDataset, batches: list[list[int]], *, num_workers: int = 0, pin: bool = False, collate: Callable[..., Any] | None = None
) -> Iterator[MicroBatch]:
    """Collate the given lists of record numbers one after the other."""
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate or dataset.collate,
        num_workers=num_workers,
        pin_memory=pin,
        generator=torch.Generator(),  # else the iterator draws a seed from the global generator
    )
    for records, tensors in zip(batches, loader, strict=True):
        yield MicroBatch(tensors, records, int(dataset.target_counts[records].sum()), int(dataset.lengths[records].sum()))


BUCKET_WINDOW = 50
"""Optimizer steps whose examples are sorted by length before they are cut and shuffled: little padding, still a random order."""


class TrainingBatches:
    """Groups of micro-batches, one group an optimizer step."""

    def __init__(self, dataset: CodeDataset, *, batch_size: int, accumulation: int, seed: int, rank: int, world: int, num_workers: int, pin: bool):
        self.dataset, self.accumulation = dataset, accumulation
        self._batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        self._num_workers, self._pin = num_workers, pin

    @property
    def num_batches(self) -> int:
        """Micro-batches an epoch."""
        return len(self._sampler(0))

    def groups(self, epoch: int, position: int) -> Iterator[list[MicroBatch]]:
        """The groups of an epoch from the given optimizer step on."""
        order = self._order(epoch)[position * self.accumulation :]
        group: list[MicroBatch] = []
        for batch in load_batches(self.dataset, order, num_workers=self._num_workers, pin=self._pin):
            group.append(batch)
            if len(group) == self.accumulation:
                yield group
                group = []
        if group:
            yield group

    def _order(self, epoch: int) -> list[list[int]]:
        return [list(batch) for batch in self._sampler(epoch)]

    def _sampler(self, epoch: int) -> Sampler:
        return Sampler(
            self.dataset.lengths,
            self._seed,
            epoch,
            self._rank,
            self._world,
            batch_size=self._batch_size,
            accumulation=self.accumulation,
            bucket_window=BUCKET_WINDOW,
        )
