"""The micro-batches of an epoch, in an order that depends on the seed and the epoch alone.

Invariant: a position is a number of examples; starting there gives exactly the examples not taken before and, if the
epoch is unchanged, the very batches that would have followed. Nothing here uses a global random number generator."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mltrack.config import TrainingConfig
from mltrack.data import CodeDataset, Sampler
from mltrack.data.ahead import ahead
from mltrack.data.collate import IGNORED, PADDED_TO, padded_width
from mltrack.data.packing import pack
from mltrack.data.workers import AsArrays, Collate, from_workers, leave_signals_to_the_trainer
from mltrack.errors import ConfigurationError

NOT_FOR_THE_MODEL = ("index", "row")


@dataclass(frozen=True)
class MicroBatch:
    """One collated batch."""

    tensors: dict[str, torch.Tensor]
    """Made by `mltrack.data.collate` or, with several examples per row, `mltrack.data.packing`; on the host."""
    records: list[int]
    """Record numbers in the data set."""
    targets: int
    """Target tokens, or examples."""
    tokens: int
    """Real tokens, without padding."""

    @property
    def rows(self) -> int:
        """Rows of the batch: its examples, or fewer if they are packed."""
        return len(self.tensors["input_ids"])

    @property
    def width(self) -> int:
        """Tokens per row, padding included."""
        return self.tensors["input_ids"].shape[1]

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The tensors on the device; the copy of a pinned batch is asynchronous. A mask that hides nothing is left out,
        since attention is faster without it.
        """
        full = self.tokens == self.tensors["input_ids"].numel()
        left_out = (*NOT_FOR_THE_MODEL, "attention_mask") if full else NOT_FOR_THE_MODEL
        return {
            name: tensor.to(device, non_blocking=device.type == "cuda")
            for name, tensor in self.tensors.items()
            if name not in left_out
        }

    def split(self, size: int | None) -> list[MicroBatch]:
        """Parts of at most `size` rows, in order, with their own target and token counts; None: the batch itself."""
        if size is None or self.rows <= size:
            return [self]
        return [self._part(start, start + size) for start in range(0, self.rows, size)]

    def _part(self, start: int, end: int) -> MicroBatch:
        row_of = self.tensors.get("row", torch.arange(self.rows))
        inside = (row_of >= start) & (row_of < end)
        of_examples = {name: self.tensors[name][inside] for name in NOT_FOR_THE_MODEL if name in self.tensors}
        tensors = {name: tensor[start:end] for name, tensor in self.tensors.items()} | of_examples
        if "row" in tensors:
            tensors["row"] = tensors["row"] - start
        targets = int((tensors["labels"] != IGNORED).sum())
        records = [record for record, held in zip(self.records, inside.tolist(), strict=True) if held]
        return MicroBatch(
            tensors,
            records,
            targets,
            (
                self.tokens * len(records) // len(self.records)
                if "row" in tensors
                else int(tensors["attention_mask"].sum())
            ),
        )


def load_batches(
    dataset: CodeDataset,
    batches: Iterable[list[int]],
    *,
    num_workers: int = 0,
    pin: bool = False,
    collate: Collate | None = None,
) -> Iterator[MicroBatch]:
    """Collate the given lists of record numbers in order.

    Raises:
        TrainingError: the worker processes cannot be started, or one of them failed.
    """
    collate = collate or dataset.collate
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=AsArrays(collate) if num_workers else collate,
        num_workers=num_workers,
        pin_memory=pin and not num_workers,
        worker_init_fn=leave_signals_to_the_trainer,
        generator=torch.Generator(),  # otherwise the iterator draws a seed from the global generator
    )
    for tensors in from_workers(loader, pin=pin) if num_workers else loader:
        records = tensors["index"].tolist()
        yield MicroBatch(
            tensors, records, int(dataset.target_counts[records].sum()), int(dataset.lengths[records].sum())
        )


BUCKET_WINDOW = 50
"""Optimizer steps (at most a quarter of the epoch) whose examples are sorted by length, then cut and shuffled: little
padding, but a random order.
"""


class TrainingBatches:
    """Groups of micro-batches, one group per optimizer step.

    Args:
        config: batch size, accumulation, token budget, packing, seed, workers and speed-ups.
        rank, world: this rank and the number of ranks.
        pin: use pinned memory, from which a GPU copies asynchronously.

    Raises:
        ConfigurationError: the longest example does not fit into the token budget.
    """

    def __init__(self, dataset: CodeDataset, config: TrainingConfig, *, rank: int, world: int, pin: bool):
        self.dataset, self.accumulation = dataset, config.gradient_accumulation_steps
        self._config, self._rank, self._world, self._pin = config, rank, world, pin
        self._collate = (
            partial(pack, pad_token_id=dataset.pad_token_id, row_length=dataset.max_length) if config.packing else None
        )
        self._one_window = False
        """With a token budget: use the order of mltrack 0.1, whose run is continued."""
        self._left: tuple[int, np.ndarray] | None = None
        self._current: tuple[int, Sampler] | None = None
        """The current epoch and its sampler."""
        check_budget(dataset, config)

    @cached_property
    def num_batches(self) -> int:
        """Micro-batches per epoch."""
        return len(self._sampler(0))

    def num_steps(self, epoch: int, position: int) -> int:
        """Optimizer steps left in an epoch."""
        return -(-len(self._sampler(epoch, position)) // self.accumulation)

    def groups(self, epoch: int, position: int) -> Generator[list[MicroBatch], None, None]:
        """The groups of an epoch from the given number of examples on; a caller that stops early must close it."""
        self._current = (epoch, self._sampler(epoch, position))
        groups = self._groups(self._current[1])
        return groups if self._config.num_workers else ahead(groups)  # workers already run ahead

    def _groups(self, order: Sampler) -> Generator[list[MicroBatch], None, None]:
        workers = self._config.num_workers
        group: list[MicroBatch] = []
        for batch in load_batches(self.dataset, order, num_workers=workers, pin=self._pin, collate=self._collate):
            group.append(batch)
            if len(group) == self.accumulation:
                yield group
                group = []
        if group:
            yield group

    def state_dict(self, epoch: int, position: int) -> dict[str, Any]:
        """The checkpoint state at that position, from which the epoch can continue in any order: one bit per example.

        Returns:
            "records"; "one_window"; within an epoch "taken", and "taken_before" if the order has changed in it: uint8
            tensors.
        """
        state: dict[str, Any] = {"records": len(self.dataset), "one_window": self._one_window}
        if not position:
            return state
        left, taken = self._left_in(epoch), np.zeros(len(self.dataset), dtype=bool)
        if left is not None:
            taken[:] = True
            taken[left] = False
            state["taken_before"] = _packed(taken)
        sampler = self._current[1] if self._current is not None and self._current[0] == epoch else self._sampler(epoch)
        taken[sampler.order[: position - int(taken.sum())]] = True
        return {**state, "taken": _packed(taken)}

    def load_state_dict(self, state: Mapping[str, Any], epoch: int, position: int) -> None:
        """Continue a training on the same records at that position, from what `state_dict` returned."""
        self._one_window, self._left, self._current = state["one_window"], None, None
        if not position:
            return
        taken = _unpacked(state["taken"], len(self.dataset))
        if "taken_before" in state:
            self._left = (epoch, np.flatnonzero(~_unpacked(state["taken_before"], len(self.dataset))))
        if not torch.equal(self.state_dict(epoch, position)["taken"], state["taken"]):
            self._left = (epoch, np.flatnonzero(~taken))  # the present order would have taken other examples first

    def state_of_0_1(self, then: Mapping[str, Any], epoch: int, steps: int) -> tuple[dict[str, Any], int]:
        """(state as of `state_dict`, position) for a training of mltrack 0.1, whose checkpoints count the optimizer
        steps of the epoch.

        Args:
            then: the settings in its checkpoint that decide the result.
        """
        order = then.get("sampler", order_of(self._config))
        budget = re.search(r"at most (\d+) tokens", order)
        accumulation = then.get("gradient_accumulation_steps", self.accumulation)
        sampler = Sampler(
            self.dataset.lengths,
            then.get("seed", self._config.seed),
            epoch,
            batch_size=then.get("batch_size", self._config.batch_size),
            accumulation=accumulation,
            bucket_window=BUCKET_WINDOW if "buckets" in order else 1,
            max_tokens=int(budget[1]) if budget else None,
            padded_to=PADDED_TO,
            one_window=True,
        )
        position, taken = sampler.taken_after(steps * accumulation), np.zeros(len(self.dataset), dtype=bool)
        taken[sampler.order[:position]] = True
        return {"records": len(self.dataset), "one_window": True, "taken": _packed(taken)}, position

    def _left_in(self, epoch: int) -> np.ndarray | None:
        """The examples left when the order of that epoch changed; None if it did not."""
        return self._left[1] if self._left is not None and self._left[0] == epoch else None

    def _sampler(self, epoch: int, position: int = 0) -> Sampler:
        left = self._left_in(epoch)
        return Sampler(
            self.dataset.lengths,
            self._config.seed,
            epoch,
            self._rank,
            self._world,
            batch_size=self._config.batch_size,
            accumulation=self.accumulation,
            bucket_window=BUCKET_WINDOW if self._config.effective_speedups.buckets else 1,
            max_tokens=self._config.max_batch_tokens,
            padded_to=PADDED_TO,
            among=left,
            position=max(0, position - (len(self.dataset) - len(left) if left is not None else 0)),
            one_window=self._one_window,
        )


def _packed(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.packbits(bits))


def _unpacked(packed: torch.Tensor, size: int) -> np.ndarray:
    return np.unpackbits(packed.numpy(), count=size).astype(bool)


def check_budget(dataset: CodeDataset, config: TrainingConfig) -> None:
    """Refuse a token budget that is too small for the longest example.

    Raises:
        ConfigurationError: with the smallest budget that fits.
    """
    longest = padded_width(int(dataset.lengths.max(initial=0)), dataset.max_length)
    if config.max_batch_tokens is not None and longest > config.max_batch_tokens:
        raise ConfigurationError(
            f"max_batch_tokens must be >= {longest}, the tokens of the longest example with its padding, not"
            f" {config.max_batch_tokens}; raise it, or use a smaller max_length"
        )


def order_of(config: TrainingConfig) -> str:
    """The order of the records in words, which a resume compares."""
    if config.max_batch_tokens is not None:
        return f"batches of at most {config.max_batch_tokens} tokens"
    return (
        f"length buckets of {BUCKET_WINDOW} steps, at most a quarter of an epoch"
        if config.effective_speedups.buckets
        else "shuffled"
    )
