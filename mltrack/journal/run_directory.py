"""The folder of one run: `<output_dir>/<id>/` with `run.json`, `journal`, `checkpoints/`, `model/` and the exports.

Invariant: `run.json` and `delivery.json` are replaced whole; a reader sees the old one or the new one. Only their owner
can read them, and they hold no secret: the delivering process gets credentials from its environment."""

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
"""Prefix of a run directory inside another one: an earlier run of that folder; a number follows."""
KINDS = ("train", "sweep", "trial", "lr_find", "data_build", "evaluation", "comparison", "export")
"""The kinds of runs; one without a kind is a training, like all runs of mltrack 0.1."""
COPIES = "artifacts/copies-"
"""Prefix of the folder, in a run directory, with files that one tracker has copied from outside."""
DELIVERY = {
    **dict.fromkeys(("offset", "sent", "acknowledged_ms", "connected_ms"), int),
    **dict.fromkeys(
        ("tracking_uri", "run_id", "uploading", "waiting", "elsewhere", "deleted", "rejected", "best_model_id"),
        str | None,
    ),
    **{"complete": bool, "failed": list[str], "deferred": list[int], "registered": dict[str, Any] | None},
}
"""The fields of delivery.json that other code than the relay reads: {name: type hint}."""


@dataclass(kw_only=True)
class RunInfo:
    """The content of `run.json`: the MLflow run that this folder belongs to."""

    local_id: str
    """Made by the trainer; the idempotency tag `mltrack.local_id` of the MLflow run."""
    run_id: str | None = None
    """MLflow run id; None until the first delivery of an offline run."""
    experiment_id: str | None = None
    experiment_name: str | None = None
    run_name: str | None = None
    tracking_uri: str = field(default="", repr=False)
    """With the user's credentials, if it has any; written without them."""
    directory: str = ""
    """The folder's path when its trainer began; a project may be moved, and its database with it."""
    task: str | None = None
    kind: str = KINDS[0]
    """One of `KINDS`; the tag `mltrack.kind` of the MLflow run."""
    created_ms: int = 0
    owns_status: bool = True
    """False if other code ends the MLflow run, such as a user's own `with mlflow.start_run()`."""
    under_mlflow_run: bool = False
    """True if `mlflow run` sets the final status from the exit code."""
    offline: bool = False
    """The user delivers it with `mltrack sync`."""
    upload: str = "all"
    """The part of a kept checkpoint that is delivered: all, model, none."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags that the MLflow run is created with."""
    trainer_pid: int | None = None
    trainer_started: float | None = None
    """Creation time of the trainer's process, seconds since 1970: a pid alone may be used again."""
    trainer_host: str = ""
    """Empty if mltrack 0.1 wrote the file."""
    trainer_boot_id: str = ""
    trainer_pid_namespace: str = ""
    mltrack_version: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def address(self) -> str:
        """The tracking URI without credentials, for messages and files."""
        return without_secrets(self.tracking_uri)

    @property
    def age_s(self) -> float:
        """Seconds since the run was made; 0 if unknown."""
        return max(0.0, time.time() - self.created_ms / 1000) if self.created_ms else 0.0


_RUN_INFO = get_type_hints(RunInfo)


@dataclass(frozen=True)
class RunDirectory:
    """The paths of the parts of one run."""

    path: Path

    @property
    def name(self) -> str:
        """For messages: the folder's name; for an earlier run, with that of the enclosing folder."""
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
        """The exit code of a trainer that ended without closing its tracker; None if it was killed or did close it."""
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
        """False if another user of this machine owns it, who could use it to attack us."""
        try:
            return {self.path.stat().st_uid, self.run_file.lstat().st_uid} == {os.geteuid()}
        except FileNotFoundError:
            return True

    def refuse_foreign(self) -> None:
        """Raise ConfigurationError if another user owns it."""
        if not self.is_ours:
            raise ConfigurationError(
                f"{self.path} belongs to another user, whose files would be sent and deleted as yours; if you trust it,"
                " copy it (cp -r) and name the copy"
            )

    def inside(self, name: str | Path) -> Path:
        """The path that a record names.

        Raises:
            TrackingError: it is outside of this directory.
        """
        try:
            if (self.path / name).resolve().is_relative_to(self.path.resolve()):
                return self.path / name
        except (OSError, RuntimeError, ValueError, TypeError):  # a loop of links, or not a file name
            pass
        raise TrackingError(
            f"{self.path}: {printable(str(name)[:200])!r} leads out of this directory, so it is neither read nor sent"
        )

    def read_run(self) -> RunInfo:
        """The content of `run.json`.

        Raises:
            TrackingError: there is none, it is not a JSON object, or it is of a newer mltrack.
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
        """Add a link named by the MLflow run id, beside the directory's own name, the local id."""
        alias = self.path.with_name(run_id)
        with suppress(OSError):  # it exists, or the disk is full
            alias.symlink_to(self.path.name)

    def earlier(self) -> list[RunDirectory]:
        """The runs that were in this folder before another one started in it, unordered."""
        try:
            names = os.listdir(self.path)
        except OSError:  # no folder
            return []
        found = (RunDirectory(self.path / name) for name in names if name.startswith(EARLIER))
        return [one for one in found if one.run_file.exists() and one.journal.exists()]

    def is_succeeded(self) -> bool:
        """True for an earlier run whose MLflow run was started again in the enclosing folder, which now decides how it
        ends.
        """
        outer = RunDirectory(self.path.parent)
        if not self.path.name.startswith(EARLIER) or not outer.run_file.exists():
            return False
        return outer.read_run().run_id == self.read_run().run_id is not None

    def is_settled(self) -> bool:
        """True if a background delivery has nothing to do: all has arrived, the run was resumed elsewhere or deleted,
        or the user delivers it.
        """
        return (
            self.has_arrived()
            or any(self.read_delivery().get(name) is not None for name in ("elsewhere", "deleted"))
            or self.read_run().offline
        )

    def has_arrived(self) -> bool:
        """True if a delivery was complete and nothing was recorded since."""
        delivery = self.read_delivery()
        return delivery.get("complete", False) and delivery.get("offset", 0) >= self.journal.stat().st_size

    def read_delivery(self) -> dict[str, Any]:
        """The relay's progress; empty if nothing was delivered yet or the file is damaged."""
        content = read_json(self.delivery_file) or {}
        return {} if without_misfits(content, DELIVERY, "delivery.json")[1] else content


def make_output_dir(output_dir: str) -> None:
    """Make the folder of the run directories.

    Raises:
        ConfigurationError: it cannot be created or written, or no tokenizer can be saved in it.
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
    """Replace a JSON file in one rename, synced, readable only by its owner; removes what a killed writer left."""
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
    except PermissionError:  # another user's process
        pass
    return True


def read_json(path: Path | str) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none of at most `MAX_JSON_BYTES`."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        content = json.loads(text) if len(text) <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
