"""The folder of one run: `<output_dir>/<id>/` with `run.json`, `journal`, `checkpoints/`, `model/` and the exports.

Invariant: `run.json` and `delivery.json` are replaced whole; a reader sees the old one or the new one. Only their owner
reads them, and they hold no secret: whoever delivers gets credentials from its environment."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from mltrack.addresses import redacted, without_secrets
from mltrack.errors import ConfigurationError, TrackingError, printable
from mltrack.journal.shape import without_misfits

MAX_JSON_BYTES = 64 << 20

FORMAT_VERSION = 1
EARLIER = "earlier-run-"
"""A folder of this name and a number, in a run directory, is one itself: of a run that lay there before."""
KINDS = ("train", "sweep", "trial", "lr_find", "data_build", "evaluation", "comparison", "export")
"""What a run may be; a run that says nothing is a training, as all runs of mltrack 0.1 are."""
COPIES = "artifacts/copies-"
"""Begins the folder, in a run directory, of what one tracker has copied from elsewhere."""
DELIVERY = {
    **dict.fromkeys(("offset", "sent", "acknowledged_ms", "connected_ms"), int),
    **dict.fromkeys(
        ("tracking_uri", "run_id", "uploading", "waiting", "elsewhere", "deleted", "rejected", "best_model_id"),
        str | None,
    ),
    **{"complete": bool, "failed": list[str], "deferred": list[int], "registered": dict[str, Any] | None},
}
"""What others than the relay read in delivery.json: {name: type hint}."""


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
    tracking_uri: str = field(default="", repr=False)
    """With credentials where the user gave some in it; written without."""
    directory: str = ""
    """Where this folder lay when its trainer began; a project may be moved, and its database with it."""
    task: str | None = None
    kind: str = KINDS[0]
    """One of `KINDS`; the tag `mltrack.kind` of the MLflow run."""
    created_ms: int = 0
    owns_status: bool = True
    """False where somebody else ends the MLflow run, such as a user's own `with mlflow.start_run()`."""
    under_mlflow_run: bool = False
    """True where `mlflow run` writes the final status from the exit code."""
    offline: bool = False
    """The user delivers it with `mltrack sync`."""
    upload: str = "all"
    """What of a kept checkpoint is delivered: all, model, none."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags that the MLflow run is created with."""
    trainer_pid: int | None = None
    trainer_started: float | None = None
    """Creation time of the trainer's process, seconds since 1970: a pid alone may be used again."""
    trainer_host: str = ""
    """Empty where mltrack 0.1 wrote the file."""
    trainer_boot_id: str = ""
    trainer_pid_namespace: str = ""
    mltrack_version: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def address(self) -> str:
        """Where the run belongs, for people and files."""
        return without_secrets(self.tracking_uri)

    @property
    def age_s(self) -> float:
        """Seconds since the run was made; 0 where that is not known."""
        return max(0.0, time.time() - self.created_ms / 1000) if self.created_ms else 0.0


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
    def models_file(self) -> Path:
        return self.path / "models.json"

    @property
    def relay_log(self) -> Path:
        return self.path / "relay.log"

    @property
    def exit_code_file(self) -> Path:
        return self.path / "exit-code"

    def read_exit_code(self) -> int | None:
        """The exit code of a trainer that ended without closing its tracker; None where it was killed, or did
        close it.
        """
        try:
            content = self.exit_code_file.read_bytes()
        except OSError:
            return None
        return int.from_bytes(content, sys.byteorder) & 0xFF if content else None

    @property
    def summary_file(self) -> Path:
        """What a person asks of the run; of a training alone."""
        return self.path / "summary.json"

    @property
    def heartbeat(self) -> Path:
        return self.path / "heartbeat"

    @property
    def is_ours(self) -> bool:
        """False where another user of this machine owns it: what it says may be meant for us."""
        try:
            return {self.path.stat().st_uid, self.run_file.lstat().st_uid} == {os.geteuid()}
        except FileNotFoundError:
            return True

    def refuse_foreign(self) -> None:
        """Raises ConfigurationError where another user owns it."""
        if not self.is_ours:
            raise ConfigurationError(
                f"{self.path} belongs to another user, whose files would be sent and deleted as yours; if you trust it,"
                " copy it (cp -r) and name the copy"
            )

    def inside(self, name: str | Path) -> Path:
        """The path that a record names.

        Raises:
            TrackingError: it leads out of this directory.
        """
        try:
            if (self.path / name).resolve().is_relative_to(self.path.resolve()):
                return self.path / name
        except (OSError, RuntimeError, ValueError, TypeError):  # a circle of links, or no name of a file
            pass
        raise TrackingError(
            f"{self.path}: {printable(str(name)[:200])!r} leads out of this directory, so it is neither read nor sent"
        )

    def read_run(self) -> RunInfo:
        """What `run.json` says.

        Raises:
            TrackingError: there is none, it is no JSON object, or it is newer than this mltrack.
        """
        content = read_json(self.run_file)
        if content is None:
            raise TrackingError(f"{self.path} has no readable run.json; use a run directory that mltrack wrote")
        version = content.get("format_version", 0)
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise TrackingError(
                f"{self.run_file}: format {version} is newer than {FORMAT_VERSION}; install a newer mltrack"
            )
        known, problem = without_misfits(content, _RUN_INFO, "run.json")
        if problem or "local_id" not in known:
            raise TrackingError(
                f"{self.path}: {problem or 'run.json has no local_id'}; use a run directory that mltrack wrote"
            )
        return RunInfo(**known)

    def write_run(self, info: RunInfo) -> None:
        """Replace `run.json`."""
        write_json(self.run_file, redacted({**asdict(info), "tracking_uri": info.address}))

    def link(self, run_id: str) -> None:
        """Let the directory be found under the id that MLflow gave its run, beside the local id that it is named by."""
        alias = self.path.with_name(run_id)
        with suppress(OSError):  # it is there, or the disk is full
            alias.symlink_to(self.path.name)

    def earlier(self) -> list[RunDirectory]:
        """The runs that lay in this folder before another one started in it, in no order."""
        try:
            names = os.listdir(self.path)
        except OSError:  # no folder
            return []
        found = (RunDirectory(self.path / name) for name in names if name.startswith(EARLIER))
        return [one for one in found if one.run_file.exists() and one.journal.exists()]

    def is_succeeded(self) -> bool:
        """True for an earlier run whose MLflow run was begun once more, in the folder around it: how that run ends is
        no longer told here.
        """
        outer = RunDirectory(self.path.parent)
        if not self.path.name.startswith(EARLIER) or not outer.run_file.exists():
            return False
        return outer.read_run().run_id == self.read_run().run_id is not None

    def is_settled(self) -> bool:
        """True where nothing is left for a delivery in the background: all has arrived, the run went on elsewhere, or
        the user delivers it.
        """
        return (
            self.has_arrived()
            or any(self.read_delivery().get(name) is not None for name in ("elsewhere", "deleted"))
            or self.read_run().offline
        )

    def has_arrived(self) -> bool:
        """True where a delivery has said that it is complete, and nothing was recorded since."""
        delivery = self.read_delivery()
        return delivery.get("complete", False) and delivery.get("offset", 0) >= self.journal.stat().st_size

    def read_delivery(self) -> dict[str, Any]:
        """The relay's progress; empty where nothing was delivered yet, and where the file is damaged."""
        content = read_json(self.delivery_file) or {}
        return {} if without_misfits(content, DELIVERY, "delivery.json")[1] else content


def make_output_dir(output_dir: str) -> None:
    """Make the folder of the run directories.

    Raises:
        ConfigurationError: it cannot be made or written, or no tokenizer can be saved in it.
    """
    path = str(Path(output_dir).absolute())
    if not path.isascii() and path != os.fsencode(path).decode("utf-8", "replace"):
        raise ConfigurationError(
            f"output_dir: {ascii(path)[1:-1]} is not UTF-8, and tokenizers cannot be saved in such a folder; use"
            " --output-dir of another name"
        )
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        writable = os.access(output_dir, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ConfigurationError(f"output_dir must be a folder that can be created and written, not '{output_dir}'")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one rename, synced, for its owner's eyes alone; what a killed writer of it left is
    removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*"):
        if not _is_running(left.suffix.removeprefix(".")):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
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


def read_json(path: Path | str) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none of at most `MAX_JSON_BYTES`."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        content = json.loads(text) if len(text) <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
