"""A checkpoint's bytes: one folder that is complete or is not there.

Invariant: everything is written under a temporary name and synced, `metadata.json` with sizes and hashes last, then renamed once. A
reader takes a folder only if its metadata is there, and its bytes only if their hashes agree.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mltrack.checkpoints.metadata import FORMAT_VERSION, CheckpointMetadata
from mltrack.errors import CheckpointError

METADATA, MODEL, OPTIMIZER, OPTIMIZER_JSON, STATE, STATE_TENSORS = (
    "metadata.json",
    "model.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
    "state.json",
    "state.safetensors",
)
TEMPORARY_PREFIX = ".writing-"
DAMAGED_PREFIX = "damaged-"

Writer = Callable[[Path], None]


def write_directory(target: Path, write: Writer, metadata: CheckpointMetadata) -> CheckpointMetadata:
    """Have `write` fill a temporary folder, then make it `target` in one rename.

    Args:
        target: final folder; it must not exist.
        write: puts all files but `metadata.json` into the folder that it is given.
        metadata: without `files`.

    Raises:
        CheckpointError: the disk is full or gone; nothing stays under either name.
    """
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        complete = replace(metadata, path=target, files={path.name: _describe(path) for path in sorted(temporary.iterdir())})
        _write_json(temporary / METADATA, {**asdict(complete), "path": target.name})
        for path in temporary.iterdir():
            _sync(path)
        _sync(temporary)
        temporary.rename(target)
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        written = sum(path.stat().st_size for path in temporary.glob("*")) if temporary.exists() else 0
        shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(target.parent).free if target.parent.exists() else 0
        raise CheckpointError(f"{target}: writing stopped after {written:,} bytes: {error}; {free:,} bytes are free there") from error
    return complete


def read_metadata(directory: Path) -> CheckpointMetadata | None:
    """The metadata of a complete checkpoint, None where the folder is none.

    Raises:
        CheckpointError: a newer mltrack wrote it.
    """
    try:
        content = json.loads((directory / METADATA).read_text(encoding="utf-8"))
        version = content["format_version"]
        if version > FORMAT_VERSION:
            raise CheckpointError(f"{directory}: checkpoint format {version} is newer than {FORMAT_VERSION}; install a newer mltrack")
        return CheckpointMetadata(**{**content, "path": directory})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def verify(metadata: CheckpointMetadata) -> list[str]:
    """What is wrong with the files, one line each; empty for an intact checkpoint."""
    problems = []
    for name, expected in metadata.files.items():
        path = metadata.path / name
        if Path(name).name != name:
            problems.append(f"{name}: a path, not a file name")
        elif not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{name}: {path.stat().st_size} bytes instead of {expected['bytes']}")
        elif _describe(path)["sha256"] != expected["sha256"]:
            problems.append(f"{name}: its sha256 differs from the recorded one")
    return problems


def set_aside(metadata: CheckpointMetadata) -> Path:
    """Rename a damaged checkpoint so that no reader takes it; nothing is deleted."""
    target = free_name(metadata.path.parent, DAMAGED_PREFIX + metadata.path.name)
    metadata.path.rename(target)
    (target / METADATA).rename(target / f"{DAMAGED_PREFIX}{METADATA}")
    return target


def remove_leftovers(root: Path) -> None:
    """Remove what killed writers left under temporary names; what a living process writes stays."""
    for path in root.glob(f"{TEMPORARY_PREFIX}*"):
        writer = path.name.rpartition("-")[2]
        if not (writer.isdigit() and psutil.pid_exists(int(writer)) and int(writer) != os.getpid()):
            shutil.rmtree(path, ignore_errors=True)


def free_name(root: Path, name: str) -> Path:
    """`root`/`name`, or where that exists the first free one with a number behind it."""
    target, number = root / name, 1
    while target.exists():
        number += 1
        target = root / f"{name}-{number}"
    return target


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file with the tensors on the CPU."""
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    make_readable(path)


def make_readable(path: Path) -> None:
    """Give a file the mode that new files have here; safetensors lets only its owner read."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; empty where there is no such file.

    Raises:
        CheckpointError: it is no safetensors file.
    """
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    return content


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
