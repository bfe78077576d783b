"""Writes tensors to a safetensors file and reads them.

Invariant: nothing is pickled. The interpreter lock is not held while bytes are written, so that a training thread keeps
running.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file

from mltrack.errors import CheckpointError, one_of

Tensors = Mapping[str, torch.Tensor]

DTYPES = {
    kind: str(kind).removeprefix("torch.")
    for kind in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
    )
}
"""The types that the format can hold, with their names there."""
_HEADER_BYTES = 128
"""More than a tensor takes in the header without its name."""


def check_tensors(tensors: Tensors) -> None:
    """Refuse tensors that the format cannot hold.

    Raises:
        CheckpointError: there is one; the message names its key.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.device.type == "meta":
            raise CheckpointError(
                f"{name} is a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}, which cannot be saved; use"
                f" a dense tensor of {one_of(DTYPES.values())}"
            )


def data_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the tensor in the file; a view of a larger one counts only its own part."""
    return tensor.numel() * tensor.itemsize


def file_bytes(tensors: Tensors) -> int:
    """An upper bound of the file's bytes."""
    return sum(data_bytes(tensor) + len(name.encode()) + _HEADER_BYTES for name, tensor in tensors.items())


def write_tensors(tensors: Tensors, path: Path) -> None:
    """Write tensors of any device.

    Raises:
        CheckpointError: the format cannot hold a tensor.
        OSError: the file system failed, such as a full disk.
    """
    check_tensors(tensors)
    plain = {name: tensor.detach().cpu().resolve_conj().resolve_neg().contiguous() for name, tensor in tensors.items()}
    described = {
        name: TensorSpec(dtype=DTYPES[one.dtype], shape=one.shape, data_ptr=one.data_ptr(), data_len=one.nbytes)
        for name, one in plain.items()
    }
    try:
        serialize_file(described, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes it for its owner only


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: it is no safetensors file, or its header does not match its bytes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        problem = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{path} cannot be read as a safetensors file ({problem})") from error
