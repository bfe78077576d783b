"""The micro-batches of an epoch, in an order that depends on the seed and the epoch alone.

Invariant: a position is a number of examples; starting at it gives the examples that have not come before it, in an
epoch that goes on unchanged in the very batches that would have come there anyway. Nothing here draws from a global
random number generator."""

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
    """What `mltrack.data.collate` or, for several examples a row, `mltrack.data.packing` makes; on the host."""
    records: list[int]
    """Their numbers in the data set."""
    targets: int
    """Target tokens, or examples."""
    tokens: int
    """Real tokens, without padding."""

    @property
    def rows(self) -> int:
        """Rows of the batch: its examples, or fewer where several are packed into one."""
        return len(self.tensors["input_ids"])

    @property
    def width(self) -> int:
        """Tokens of each row, padding included."""
        return self.tensors["input_ids"].shape[1]

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The tensors on the device; the copy of a pinned batch is asynchronous. A mask that hides nothing is left out:
        attention is faster without.
        """
        full = self.tokens == self.tensors["input_ids"].numel()
        left_out = (*NOT_FOR_THE_MODEL, "attention_mask") if full else NOT_FOR_THE_MODEL
        return {
            name: tensor.to(device, non_blocking=device.type == "cuda")
            for name, tensor in self.tensors.items()
            if name not in left_out
        }

    def split(self, size: int | None) -> list[MicroBatch]:
        """Parts of at most `size` rows, in order; None: itself. Their targets and tokens are those of their labels and
        records.
        """
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
    """Collate the given lists of record numbers one after the other.

    Raises:
        TrainingError: there is no room for the worker processes, or one of them has failed.
    """
    collate = collate or dataset.collate
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=AsArrays(collate) if num_workers else collate,
        num_workers=num_workers,
        pin_memory=pin and not num_workers,
        worker_init_fn=leave_signals_to_the_trainer,
        generator=torch.Generator(),  # else the iterator draws a seed from the global generator
    )
    for tensors in from_workers(loader, pin=pin) if num_workers else loader:
        records = tensors["index"].tolist()
        yield MicroBatch(
            tensors, records, int(dataset.target_counts[records].sum()), int(dataset.lengths[records].sum())
        )


BUCKET_WINDOW = 50
"""Optimizer steps, or a quarter of an epoch's, whose examples are sorted by length before they are cut and shuffled:
little padding, still a random order.
"""


class TrainingBatches:
    """Groups of micro-batches, one group an optimizer step.

    Args:
        config: batch size, accumulation, token budget, packing, seed, workers, and which speed-ups are on.
        rank, world: which of how many ranks.
        pin: into memory that a GPU copies from by itself.

    Raises:
        ConfigurationError: a budget that the longest example does not fit into.
    """

    def __init__(self, dataset: CodeDataset, config: TrainingConfig, *, rank: int, world: int, pin: bool):
        self.dataset, self.accumulation = dataset, config.gradient_accumulation_steps
        self._config, self._rank, self._world, self._pin = config, rank, world, pin
        self._collate = (
            partial(pack, pad_token_id=dataset.pad_token_id, row_length=dataset.max_length) if config.packing else None
        )
        self._one_window = False
        """With a budget of tokens: the order of a run that mltrack 0.1 began."""
        self._left: tuple[int, np.ndarray] | None = None
        self._current: tuple[int, Sampler] | None = None
        """The epoch whose groups are made."""
        check_budget(dataset, config)

    @cached_property
    def num_batches(self) -> int:
        """Micro-batches an epoch."""
        return len(self._sampler(0))

    def num_steps(self, epoch: int, position: int) -> int:
        """Optimizer steps that are left of an epoch."""
        return -(-len(self._sampler(epoch, position)) // self.accumulation)

    def groups(self, epoch: int, position: int) -> Generator[list[MicroBatch], None, None]:
        """The groups of an epoch from the given number of examples on; to be closed by who stops early."""
        self._current = (epoch, self._sampler(epoch, position))
        groups = self._groups(self._current[1])
        return groups if self._config.num_workers else ahead(groups)  # workers are ahead by themselves

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
        """What a checkpoint at that position needs, for an epoch that goes on in any other order: one bit an example.

        Returns:
            "records"; "one_window"; within an epoch "taken", and "taken_before" where its order has changed in it:
            uint8 tensors.
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
        """Go on at that position of a training on the same records, as `state_dict` has left it."""
        self._one_window, self._left, self._current = state["one_window"], None, None
        if not position:
            return
        taken = _unpacked(state["taken"], len(self.dataset))
        if "taken_before" in state:
            self._left = (epoch, np.flatnonzero(~_unpacked(state["taken_before"], len(self.dataset))))
        if not torch.equal(self.state_dict(epoch, position)["taken"], state["taken"]):
            self._left = (epoch, np.flatnonzero(~taken))  # the order of now would have taken others first

    def state_of_0_1(self, then: Mapping[str, Any], epoch: int, steps: int) -> tuple[dict[str, Any], int]:
        """(what `state_dict` gives, position) of a training of mltrack 0.1, whose checkpoints count the optimizer steps
        of the epoch.

        Args:
            then: what its checkpoint says of what decides the result.
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
        """The examples that were left where the order of that epoch changed; None: it has not."""
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
    """Refuse a budget of tokens that the longest example does not fit into.

    Raises:
        ConfigurationError: with the least that is accepted.
    """
    longest = padded_width(int(dataset.lengths.max(initial=0)), dataset.max_length)
    if config.max_batch_tokens is not None and longest > config.max_batch_tokens:
        raise ConfigurationError(
            f"max_batch_tokens: seen {config.max_batch_tokens}, but the longest example has {longest} tokens with its"
            f" padding; accepted: a whole number >= {longest}, or a smaller max_length"
        )


def order_of(config: TrainingConfig) -> str:
    """How the records are put in order, in words: what a resume compares."""
    if config.max_batch_tokens is not None:
        return f"batches of at most {config.max_batch_tokens} tokens"
    return (
        f"length buckets of {BUCKET_WINDOW} steps, at most a quarter of an epoch"
        if config.effective_speedups.buckets
        else "shuffled"
    )
