"""A file, or a folder with all that is in it, on its way to the artifacts of a run.

Invariant: of a folder, what cannot be read or is refused is reported and costs nothing else; a store that is away costs nothing but time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mltrack.store import Store, StoreRejected, artifacts


def upload(store: Store, run_id: str, path: Path, artifact_path: str, report: Callable[[str], None]) -> None:
    """Store a file in the folder `artifact_path` of the run's artifacts (empty: the root), a folder under its own name in there.

    Args:
        report: takes a line about each file of a folder that is left out.

    Raises:
        UnreadableFile, StoreRejected, StoreUnavailable: as `artifacts.put_file`.
    """
    if not path.is_dir():
        artifacts.put_file(store, run_id, path, artifact_path or None)
        return
    below = PurePosixPath(artifact_path, path.name)
    for folder, _, names in os.walk(path, onerror=lambda error: report(f"artifact: {error}")):
        for name in sorted(names):
            try:
                artifacts.put_file(store, run_id, Path(folder, name), (below / Path(folder).relative_to(path).as_posix()).as_posix())
            except (artifacts.UnreadableFile, StoreRejected) as error:
                report(f"artifact: {error}")
