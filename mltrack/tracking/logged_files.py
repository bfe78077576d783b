"""Brings logged files into the run directory: only files there are ever uploaded."""

from __future__ import annotations

import logging
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from mltrack.errors import TrackingError
from mltrack.journal import RunDirectory, shown
from mltrack.journal.run_directory import COPIES
from mltrack.store import StoreUnavailable, artifacts, placement
from mltrack.store.copies import copy_each

log = logging.getLogger("mltrack")


class LoggedFiles:
    """The files of one tracker, which copies outside files into a folder that no other run uses."""

    def __init__(self, directory: RunDirectory):
        self._directory = directory
        self._copies = directory.path / f"{COPIES}{uuid.uuid4().hex[:8]}"

    def existing(self, path: str | Path) -> Path:
        """The absolute path of an existing file or folder.

        Raises:
            TrackingError: it does not exist, or is the run directory itself.
        """
        if not isinstance(path, str | os.PathLike) or not (os.path.isfile(path) or os.path.isdir(path)):
            raise TrackingError(f"log_artifact needs a file or folder that exists, not {shown(path)}")
        source = Path(path).absolute()
        if source.name in ("", ".."):
            source = source.resolve()
        if source.resolve() == self._directory.path.resolve():
            raise TrackingError(f"log_artifact: {source} is the run directory itself; name a file or folder in it")
        return source

    def inside(self, path: Path, artifact_path: str) -> Path:
        """`path`, or its copy if it is outside of the run directory.

        Raises:
            TrackingError: it cannot be copied.
        """
        with suppress(TrackingError):
            return self._directory.inside(path)
        run = self._directory.path.resolve()
        target = self._directory.inside(self._copies / artifact_path / path.name)

        def check(entry: Path) -> None:
            if entry.is_dir() and entry.resolve().is_relative_to(run):
                raise TrackingError(f"{entry}: is in the directory of this run")

        try:
            if path.is_dir():
                copy_each(path, target, lambda line: log.warning("log_artifact left out %s", line), check=check)
            else:
                with artifacts.reading(path):
                    placement.place_file(path, target)
        except (OSError, StoreUnavailable) as error:
            raise TrackingError(
                f"{path} cannot be copied into the run directory: {getattr(error, 'strerror', None) or error}; make"
                f" room in {self._directory.path}"
            ) from error
        return target

    def relative(self, path: Any) -> Any:
        """A path as the journal has it; any other value is returned unchanged and refused later."""
        if not isinstance(path, str | os.PathLike):
            return path
        return Path(os.path.relpath(Path(path).absolute(), self._directory.path)).as_posix()
