"""The state at one moment, in host memory that each save reuses.

Invariant: the result of `take` keeps its bytes until the next `take`, whatever happens to the given tensors. There is
never more than one copy of the state."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import torch

from mltrack.checkpoints.tensor_file import Tensors, check_tensors, data_bytes
from mltrack.errors import CheckpointError

Content = Mapping[str, Tensors | bytes]
"""{file name: what will be in it}"""

Layout = tuple[list[str], list[torch.dtype], list[torch.Size], list[torch.device]]
"""Names, types, shapes and devices of the tensors; four lists are faster to make than a tuple per tensor."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state."""

    content: Content
    wait: Callable[[], None]
    """Returns when the copy is complete; the devices make it in the background."""


class HostBuffers:
    """One buffer per file, pinned if the tensors come from a GPU."""

    def __init__(self) -> None:
        self._held: dict[str, _Buffer] = {}

    def take(self, content: Content) -> Snapshot:
        """Copy all tensors. A GPU's copies are queued after the work that computes the values and before the next
        change.

        Raises:
            CheckpointError: not enough memory for the copy.
        """
        for name in [name for name in self._held if name not in content]:
            del self._held[name]
        copied: dict[str, Tensors | bytes] = {}
        devices: set[torch.device] = set()
        for name, held in content.items():
            if isinstance(held, bytes):
                copied[name] = held
            else:
                copied[name] = self._copy(name, held)
                devices |= self._held[name].gpus
        events = [_event_on(device) for device in devices]

        def wait() -> None:
            for event in events:
                event.synchronize()

        return Snapshot(copied, wait)

    def _copy(self, name: str, tensors: Tensors) -> Tensors:
        given = list(tensors.values())
        layout = (
            list(tensors),
            [tensor.dtype for tensor in given],
            [tensor.shape for tensor in given],
            [tensor.device for tensor in given],
        )
        held = self._held.get(name)
        if held is None or held.layout != layout:
            self._held.pop(name, None)
            del held  # the old memory is free before the new one is taken
            held = self._held[name] = _Buffer(layout, tensors)
        held.fill(given)
        return held.tensors


class _Buffer:
    """Memory of exactly the tensors' size; the widest types come first, so that each tensor is aligned."""

    def __init__(self, layout: Layout, tensors: Tensors):
        check_tensors(tensors)
        self.layout = layout
        self.gpus = {device for device in layout[3] if device.type == "cuda"}
        ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, _kind_of(item[1])))
        size = sum(data_bytes(tensor) for _, tensor in ordered)
        try:
            # a GPU needs pages that hold nothing else
            memory = (
                torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
                if self.gpus and size
                else torch.empty(size, dtype=torch.uint8)
            )
        except (RuntimeError, MemoryError, OSError) as error:
            raise CheckpointError(
                f"snapshot: {size:,} bytes of memory could not be allocated; use background=False, or a machine with"
                " memory for a second copy of the state"
            ) from error
        if self.gpus:
            self._pin(memory)
        self._place(ordered, memory)

    @torch.no_grad()
    def fill(self, given: list[torch.Tensor]) -> None:
        """Copy the tensors, given in the order of the layout."""
        for join, places, target in self._runs:
            join([given[place] for place in places], out=target)
        if self._alone:
            torch._foreach_copy_(self._targets, [given[place] for place in self._alone], non_blocking=bool(self.gpus))

    def _place(self, ordered: list[tuple[str, torch.Tensor]], memory: torch.Tensor) -> None:
        """Choose each tensor's place. On the CPU one call copies all tensors of a kind, because for small ones the call
        takes longer than the copy.
        """
        on_cpu = {device.type for device in self.layout[3]} == {"cpu"}
        place_of = {name: place for place, name in enumerate(self.layout[0])}
        self._runs: list[tuple[Callable[..., torch.Tensor], list[int], torch.Tensor]] = []
        self._alone: list[int] = []
        self._targets: list[torch.Tensor] = []
        self.tensors: dict[str, torch.Tensor] = {}
        begin = 0
        for _, run in groupby(ordered, key=lambda item: _kind_of(item[1])):
            names, tensors = zip(*run, strict=True)
            places = [place_of[name] for name in names]
            first, sizes = tensors[0], [data_bytes(tensor) for tensor in tensors]
            part = memory[begin : begin + sum(sizes)]
            begin += part.numel()
            pieces = [
                piece.view(first.dtype).view(tensor.shape)
                for piece, tensor in zip(part.split(sizes), tensors, strict=True)
            ]
            self.tensors.update(zip(names, pieces, strict=True))
            if on_cpu and len(tensors) > 1:
                shape = (
                    (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:]) if first.dim() else (len(tensors),)
                )
                self._runs.append(
                    (torch.cat if first.dim() else torch.stack, places, part.view(first.dtype).view(shape))
                )
            else:
                self._alone += places
                self._targets += pieces

    def _pin(self, memory: torch.Tensor) -> None:
        """Pin the memory for the GPU; PyTorch's pinned allocator would round its size up to a power of two."""
        runtime = torch.cuda.cudart()
        if not memory.nbytes:
            return
        if int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) == 0:
            weakref.finalize(self, runtime.cudaHostUnregister, memory.data_ptr()).atexit = False
            return
        # The copies are only slower, but CUDA remembers the error and would report it for the next computation.
        with suppress(RuntimeError):
            torch.zeros(1, device=next(iter(self.gpus)))


def _kind_of(tensor: torch.Tensor) -> tuple[str, int, torch.Size]:
    """Tensors with the same type and, except for the length, the same shape are of one kind: one call copies them."""
    return str(tensor.dtype), tensor.dim(), tensor.shape[1:]


def _event_on(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event
