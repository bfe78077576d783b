"""Uploads a file, or a folder with all its content, to the artifacts of a run.

Invariant: a file of a folder that cannot be read or is refused is reported and left out; an unavailable store costs
only time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mltrack.errors import TrackingError
from mltrack.journal import RunDirectory
from mltrack.store import Store, StoreUnavailable, artifacts


def upload(
    store: Store, run_id: str, directory: RunDirectory, name: str, artifact_path: str, report: Callable[[str], None]
) -> None:
    """Store a file in the folder `artifact_path` of the run's artifacts (empty: the root), or a folder under its own
    name in there.

    Args:
        directory: of the run; a path outside of it is refused.
        name: of the file or folder in it.
        report: called with a line for each file of a folder that is left out.

    Raises:
        UnreadableFile, StoreRejected, StoreUnavailable: like `artifacts.put_file`.
        TrackingError: it is outside of the directory.
    """
    path = directory.inside(name)
    if not path.is_dir():
        artifacts.put_file(store, run_id, path, artifact_path or None)
        return
    below = PurePosixPath(artifact_path, path.name)
    for folder, _, names in os.walk(path, onerror=lambda error: report(f"artifact: {error}")):
        for name in sorted(names):
            try:
                file = directory.inside(Path(folder, name))
                artifacts.put_file(store, run_id, file, (below / Path(folder).relative_to(path).as_posix()).as_posix())
            except StoreUnavailable:
                raise
            except TrackingError as error:  # of this file: unreadable, a refused name, a link to the outside
                report(f"artifact: {error}")
