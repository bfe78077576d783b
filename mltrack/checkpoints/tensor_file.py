"""The safetensors format: tensors into a file and its hash in one pass, and back.

Invariant: nothing is pickled, and the interpreter lock is not held while bytes are hashed, written or synced, so that a
training thread beside it goes on. (The safetensors package holds the lock while it writes, in all but its newest
versions; it does the reading here.)

    eight bytes: length of the header | header, JSON | the tensors' bytes, widest type first, so that each is aligned
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from mltrack.errors import CheckpointError

Tensors = Mapping[str, torch.Tensor]

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
CHUNK_BYTES = 4 << 20
"""What is hashed and then written while it is still in the processor's cache."""
_ALIGNMENT = 8


def in_file_order(tensors: Tensors) -> list[tuple[str, torch.Tensor]]:
    """The tensors as they follow each other in the file.

    Raises:
        CheckpointError: a tensor that the format cannot hold, named by its key.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.device.type == "meta":
            seen = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise CheckpointError(
                f"{name}: seen a tensor of {seen}; accepted: dense tensors of {', '.join(DTYPES.values())}"
            )
    return sorted(tensors.items(), key=lambda item: (-item[1].itemsize, kind_of(item[1])))


def kind_of(tensor: torch.Tensor) -> tuple[str, int, torch.Size]:
    """Tensors of one kind lie next to each other, so that one call can copy them all: the same type and, but for the
    length, the same shape.
    """
    return DTYPES[tensor.dtype], tensor.dim(), tensor.shape[1:]


def data_bytes(tensor: torch.Tensor) -> int:
    """What the tensor takes in the file; a view of a larger one counts for itself only."""
    return tensor.numel() * tensor.itemsize


@dataclass(frozen=True)
class TensorFile:
    """The bytes of a safetensors file, before they are written."""

    header: bytes
    data: Callable[[], Iterator[memoryview]]
    """The tensors' bytes in file order, made when they are asked for."""
    num_bytes: int
    """Size of the file."""

    @staticmethod
    def of(tensors: Tensors) -> TensorFile:
        """A file of tensors on any device; they are read while the file is written."""
        ordered = in_file_order(tensors)
        header = header_of(ordered)
        return TensorFile(
            header,
            lambda: (bytes_of(tensor) for _, tensor in ordered),
            len(header) + sum(data_bytes(tensor) for _, tensor in ordered),
        )

    def write(self, file: BinaryIO) -> str:
        """Write it to an open file; returns the sha256 of what was written."""
        digest = hashlib.sha256(self.header)
        file.write(self.header)
        for view in self.data():
            for start in range(0, len(view), CHUNK_BYTES):
                chunk = view[start : start + CHUNK_BYTES]
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: it is no safetensors file, or one whose header does not fit its bytes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        problem = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"{path}: seen no readable safetensors file ({problem}); accepted: what save_checkpoint wrote"
        ) from error


def header_of(ordered: list[tuple[str, torch.Tensor]]) -> bytes:
    """What stands before the tensors."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + data_bytes(tensor)
        described[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's values as they stand in the file."""
    if not tensor.numel():
        return memoryview(b"")
    on_cpu = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    values: Any = on_cpu.reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)
