"""The state at one moment, in host memory that is used again for each save.

Invariant: what `take` returned keeps its bytes until the next `take`, whatever happens to the tensors that it was given; there is one copy
of the state and never a second.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mltrack.checkpoints.tensor_file import TensorFile, Tensors, bytes_of, data_bytes, header_of, in_file_order
from mltrack.errors import CheckpointError

Content = Mapping[str, TensorFile | bytes]
"""{file name: what will be in it}"""


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state."""

    content: Content
    wait: Callable[[], None]
    """Returns when the copy is complete; the devices work on it behind the caller."""


class HostBuffers:
    """One buffer per file, pinned where the tensors come from a GPU."""

    def __init__(self) -> None:
        self._held: dict[str, _Buffer] = {}

    def take(self, content: Mapping[str, Tensors | bytes]) -> Snapshot:
        """Copy all tensors. A GPU's copies are queued behind the work that computes the values, and before what changes them next.

        Raises:
            CheckpointError: not enough memory for the copy.
        """
        for name in [name for name in self._held if name not in content]:
            del self._held[name]
        copied: dict[str, TensorFile | bytes] = {}
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

    @torch.no_grad()
    def _copy(self, name: str, tensors: Tensors) -> TensorFile:
        shape = [(key, tensor.dtype, tensor.shape, tensor.device) for key, tensor in tensors.items()]
        held = self._held.get(name)
        if held is None or held.shape != shape:
            self._held.pop(name, None)
            del held  # the old memory is free before the new one is taken
            held = self._held[name] = _Buffer(shape, tensors)
        if tensors:
            torch._foreach_copy_(held.targets, list(tensors.values()), non_blocking=bool(held.gpus))
        return held.file


class _Buffer:
    """Memory of exactly the tensors' size, in which they lie as in their file."""

    def __init__(self, shape: list[tuple[str, torch.dtype, torch.Size, torch.device]], tensors: Tensors):
        self.shape = shape
        self.gpus = {device for *_, device in shape if device.type == "cuda"}
        ordered = in_file_order(tensors)
        size = sum(data_bytes(tensor) for _, tensor in ordered)
        try:
            memory = torch.empty(size, dtype=torch.uint8)
        except (RuntimeError, MemoryError) as error:
            raise CheckpointError(
                f"snapshot: {size:,} bytes of memory could not be had; accepted: a machine with one copy of the state to spare, or background=False"
            ) from error
        if self.gpus:
            self._pin(memory)
        placed: dict[str, torch.Tensor] = {}
        begin = 0
        for name, tensor in ordered:
            end = begin + data_bytes(tensor)
            placed[name] = memory[begin:end].view(tensor.dtype).view(tensor.shape)
            begin = end
        self.targets = [placed[name] for name in tensors]
        header, data = header_of(ordered), bytes_of(memory)
        self.file = TensorFile(header, lambda: iter((data,)), len(header) + size)

    def _pin(self, memory: torch.Tensor) -> None:
        """Lock the memory in place for the GPU; PyTorch's own pinned allocator would round its size up to a power of two."""
        runtime = torch.cuda.cudart()
        if memory.nbytes and int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) == 0:
            weakref.finalize(self, runtime.cudaHostUnregister, memory.data_ptr()).atexit = False


def _event_on(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event
