"""The folder of one run: `<output_dir>/<id>/` with `run.json`, `journal`, `checkpoints/`, `model/` and the exports.

Invariant: `run.json` and `delivery.json` are replaced whole; a reader sees the old one or the new one.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from mltrack.errors import ConfigurationError, TrackingError
from mltrack.journal.shape import without_misfits

FORMAT_VERSION = 1
EARLIER = "earlier-run-"
"""A folder of this name and a number, in a run directory, is one itself: of a run that lay there before."""
DELIVERY = {
    **dict.fromkeys(("offset", "sent", "acknowledged_ms", "connected_ms"), int),
    **dict.fromkeys(("tracking_uri", "run_id", "uploading", "waiting", "elsewhere", "best_model_id"), str | None),
    **{"complete": bool, "failed": list[str], "deferred": list[int], "registered": dict[str, Any] | None},
}
"""What others than the relay read in delivery.json: {name: type hint}."""
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


_RUN_INFO = get_type_hints(RunInfo)


@dataclass(frozen=True)
class RunDirectory:
    """Where the parts of one run lie."""

    path: Path

    @property
    def name(self) -> str:
        """For people: the folder's name; of an earlier run's, with the folder's around it."""
        return f"{self.path.parent.name}/{self.path.name}" if self.path.name.startswith(EARLIER) else self.path.name

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
        version = content.get("format_version", 0)
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise TrackingError(f"{self.run_file}: format {version} is newer than {FORMAT_VERSION}; install a newer mltrack")
        known, problem = without_misfits(content, _RUN_INFO, "run.json")
        if problem or "local_id" not in known:
            raise TrackingError(f"{self.path}: {problem or 'run.json has no local_id'}; accepted: a run directory that mltrack wrote")
        return RunInfo(**known)

    def write_run(self, info: RunInfo) -> None:
        """Replace `run.json`."""
        write_json(self.run_file, asdict(info))

    def earlier(self) -> list[RunDirectory]:
        """The runs that lay in this folder before another one started in it, in no order."""
        try:
            names = os.listdir(self.path)
        except OSError:  # no folder
            return []
        found = (RunDirectory(self.path / name) for name in names if name.startswith(EARLIER))
        return [one for one in found if one.run_file.exists() and one.journal.exists()]

    def is_succeeded(self) -> bool:
        """True for an earlier run whose MLflow run was begun once more, in the folder around it: how that run ends is no longer told here."""
        outer = RunDirectory(self.path.parent)
        if not self.path.name.startswith(EARLIER) or not outer.run_file.exists():
            return False
        return outer.read_run().run_id == self.read_run().run_id is not None

    def is_settled(self) -> bool:
        """True where nothing is left for a delivery in the background: all has arrived, the run went on elsewhere, or the user delivers it."""
        return self.has_arrived() or self.read_delivery().get("elsewhere") is not None or self.read_run().offline

    def has_arrived(self) -> bool:
        """True where a delivery has said that it is complete, and nothing was recorded since."""
        delivery = self.read_delivery()
        return delivery.get("complete", False) and delivery.get("offset", 0) >= self.journal.stat().st_size

    def read_delivery(self) -> dict[str, Any]:
        """The relay's progress; empty where nothing was delivered yet, and where the file is damaged."""
        content = _read_object(self.delivery_file) or {}
        return {} if without_misfits(content, DELIVERY, "delivery.json")[1] else content


def find_run_directories(output_dir: Path | str) -> list[RunDirectory]:
    """The run directories in a folder, with the earlier runs in them, and the folder itself where it is one; the oldest first."""
    root = Path(output_dir).absolute()
    found: dict[Path, tuple[int, str, RunDirectory]] = {}
    for outer in map(RunDirectory, (root, *(root.iterdir() if root.is_dir() else ()))):
        for directory in (*outer.earlier(), outer):
            if directory.run_file.is_file():
                try:
                    found[directory.path] = directory.read_run().created_ms, directory.name, directory
                except TrackingError as error:
                    log.error("left out: %s", error)
    return [directory for _, _, directory in sorted(found.values(), key=lambda one: one[:2])]


def find_run_directory(output_dir: Path | str, run_id: str) -> RunDirectory | None:
    """The run directory with that MLflow or local id, or None."""
    if (Path(run_id) / "run.json").is_file():
        return RunDirectory(Path(run_id).absolute())
    for directory in reversed(find_run_directories(output_dir)):  # an earlier run in a folder may have had the same MLflow run
        info = directory.read_run()
        if run_id in (directory.name, info.run_id, info.local_id):
            return directory
    return None


def make_output_dir(output_dir: str) -> None:
    """Make the folder of the run directories.

    Raises:
        ConfigurationError: it cannot be made or written.
    """
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
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
