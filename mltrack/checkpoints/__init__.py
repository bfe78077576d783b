"""Checkpoints: what stays (manager, metadata), as which values (state), in which bytes (directory)."""

from mltrack.checkpoints.manager import CheckpointManager, load_directory
from mltrack.checkpoints.metadata import CheckpointMetadata

__all__ = ["CheckpointManager", "CheckpointMetadata", "load_directory"]
