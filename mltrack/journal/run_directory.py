"""The folder of one run: `<output_dir>/<id>/` with `run.json`, `journal`, `checkpoints/`, `model/` and the exports.

Invariant: `run.json` and `delivery.json` are replaced whole; a reader sees the old one or the new one.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mltrack.errors import ConfigurationError, TrackingError

FORMAT_VERSION = 1
log = logging.getLogger("mltrack")


@dataclass(kw_only=True)
class RunInfo:
    """What `run.json` says: which MLflow run this folder belongs to."""

    local_id: str
    """Made by the trainer; the idempotency tag `mltrack.local_id` of the MLflow run."""
    run_id: str | None = None
    """MLflow run id; None until the first delivery of an offline run."""
    experiment_id: str | None = None
    experiment_name: str | None = None
    run_name: str | None = None
    tracking_uri: str = ""
    directory: str = ""
    """Where this folder lay when its trainer began; a project may be moved, and its database with it."""
    task: str | None = None
    created_ms: int = 0
    owns_status: bool = True
    """False where somebody else ends the MLflow run, such as a user's own `with mlflow.start_run()`."""
    under_mlflow_run: bool = False
    """True where `mlflow run` writes the final status from the exit code."""
    offline: bool = False
    """The user delivers it with `mltrack sync`."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags that the MLflow run is created with."""
    trainer_pid: int | None = None
    trainer_started: float | None = None
    """Creation time of the trainer's process, seconds since 1970: a pid alone may be used again."""
    mltrack_version: str = ""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class RunDirectory:
    """Where the parts of one run lie."""

    path: Path

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def delivery_file(self) -> Path:
        return self.path / "delivery.json"

    @property
    def relay_log(self) -> Path:
        return self.path / "relay.log"

    def read_run(self) -> RunInfo:
        """What `run.json` says.

        Raises:
            TrackingError: there is none, it is no JSON object, or it is newer than this mltrack.
        """
        content = _read_object(self.run_file)
        if content is None:
            raise TrackingError(f"{self.path}: seen no readable run.json; accepted: a run directory that mltrack wrote")
        if content.get("format_version", 0) > FORMAT_VERSION:
            raise TrackingError(f"{self.run_file}: format {content['format_version']} is newer than {FORMAT_VERSION}; install a newer mltrack")
        known = {f.name for f in fields(RunInfo)}
        return RunInfo(**{name: value for name, value in content.items() if name in known})

    def write_run(self, info: RunInfo) -> None:
        """Replace `run.json`."""
        write_json(self.run_file, asdict(info))

    def read_delivery(self) -> dict[str, Any]:
        """The relay's progress; empty where nothing was delivered yet."""
        return _read_object(self.delivery_file) or {}


def find_run_directories(output_dir: Path | str) -> list[RunDirectory]:
    """The run directories in a folder, the oldest first."""
    root = Path(output_dir).absolute()
    found: list[tuple[int, str, RunDirectory]] = []
    for entry in root.iterdir() if root.is_dir() else ():
        directory = RunDirectory(entry)
        if directory.run_file.is_file():
            try:
                found.append((directory.read_run().created_ms, entry.name, directory))
            except TrackingError as error:
                log.error("left out: %s", error)
    return [directory for _, _, directory in sorted(found, key=lambda one: one[:2])]


def find_run_directory(output_dir: Path | str, run_id: str) -> RunDirectory | None:
    """The run directory with that MLflow or local id, or None."""
    if (Path(run_id) / "run.json").is_file():
        return RunDirectory(Path(run_id).absolute())
    for directory in find_run_directories(output_dir):
        info = directory.read_run()
        if run_id in (directory.path.name, info.run_id, info.local_id):
            return directory
    return None


def make_output_dir(output_dir: str) -> None:
    """Make the folder of the run directories.

    Raises:
        ConfigurationError: it cannot be made or written, or no tokenizer can be saved in it.
    """
    path = str(Path(output_dir).absolute())
    if not path.isascii() and path != os.fsencode(path).decode("utf-8", "replace"):
        raise ConfigurationError(
            f"output_dir: {ascii(path)[1:-1]} is not UTF-8, and tokenizers cannot be saved in such a folder; use --output-dir of another name"
        )
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        writable = os.access(output_dir, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ConfigurationError(f"output_dir: seen '{output_dir}'; accepted: a folder that can be made and written")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one rename, synced; what a killed writer of it left is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*"):
        if not _is_running(left.suffix.removeprefix(".")):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
