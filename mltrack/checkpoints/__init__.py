"""Checkpoints: which are kept (manager, metadata), as which values (parts, state), in which bytes (directory)."""

from mltrack.checkpoints.manager import CheckpointManager
from mltrack.checkpoints.metadata import CheckpointMetadata
from mltrack.checkpoints.parts import load_directory

__all__ = ["CheckpointManager", "CheckpointMetadata", "load_directory"]
