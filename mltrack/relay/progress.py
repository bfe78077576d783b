"""How far a delivery is: `delivery.json` in the run directory, replaced whole after each acknowledged request.

What grows with the number of kept checkpoints is in `models.json` beside it, which is replaced where that has changed, and counts together with it alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mltrack.journal import RunDirectory, write_json
from mltrack.journal.records import now_ms
from mltrack.journal.run_directory import read_object

FORMAT_VERSION = 1
_OF_MODELS = ("models", "saved_ms", "index_is_stored")
_KEY = ("tracking_uri", "run_id")
"""By these the two files know that they belong together."""


@dataclass
class Progress:
    """What the server has acknowledged."""

    tracking_uri: str = ""
    run_id: str | None = None
    offset: int = 0
    """Bytes of the journal that are delivered."""
    sent: int = 0
    """Points acknowledged."""
    failed: list[str] = field(default_factory=list)
    """What the server refused, one line each."""
    infinite: list[str] = field(default_factory=list)
    """Infinite values, which MLflow cannot hold: name, step, sign."""
    renamed: dict[str, str] = field(default_factory=dict)
    """{name in MLflow: name in the journal} of the metrics, params and tags whose names MLflow refuses."""
    shortened: bool = False
    """A param or tag was longer than MLflow holds, or held what no database takes."""
    deferred: list[int] = field(default_factory=list)
    """Bytes of the journal at which the records begin that the artifact store did not take yet."""
    models: dict[str, str] = field(default_factory=dict)
    """{step: id of the logged model}; empty for a checkpoint that is no Hugging Face folder and so is kept as files alone."""
    saved_ms: dict[str, int] = field(default_factory=dict)
    """{step: when that checkpoint was saved}."""
    index_is_stored: bool = True
    """False where `checkpoints/index.json` among the run's artifacts is not what `models` says."""
    best_model_id: str | None = None
    evaluation_set: dict[str, str] | None = None
    """name and digest of the data set that the checkpoints' metrics are measured on."""
    registered: dict[str, Any] | None = None
    """name, version, aliases."""
    uploading: str | None = None
    """What is being uploaded at this moment."""
    acknowledged_ms: int = 0
    """When the server answered last, in milliseconds since 1970."""
    connected_ms: int = 0
    """When the process that delivers was ready to send."""
    end: dict[str, Any] | None = None
    """The end record, once it was read; a resumed run has none until it ends again."""
    status: str | None = None
    """The status that the MLflow run was given."""
    complete: bool = False
    elsewhere: str | None = None
    """What is to be said of it where the run went on elsewhere: nothing more is delivered."""
    format_version: int = FORMAT_VERSION
    _written: dict[str, Any] | None = None
    """What models.json holds."""

    @classmethod
    def read(cls, directory: RunDirectory, tracking_uri: str) -> Progress:
        """The progress of this directory towards this server; from the start for another server."""
        content = directory.read_delivery()
        if content.get("tracking_uri") != tracking_uri:
            return cls(tracking_uri=tracking_uri)
        models = read_object(directory.models_file) or {}
        if _key_of(models) == _key_of(content):
            content = models | content  # an earlier mltrack had all of it in delivery.json
        known = {f.name for f in fields(cls)} - {"uploading", "_written"}  # whoever uploaded is gone
        return cls(**{name: value for name, value in content.items() if name in known})

    def is_whole(self, directory: RunDirectory) -> bool:
        """True where nothing of the journal is left to deliver, and the run was given its status."""
        ended = self.end is not None or self.status is not None
        return ended and not self.deferred and self.offset >= directory.journal.stat().st_size

    def write(self, directory: RunDirectory, *, acknowledged: bool = True) -> None:
        """Write it down; `acknowledged` where the server has just answered."""
        if acknowledged:
            self.acknowledged_ms = now_ms()
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "_written"}
        models = {name: content.pop(name) for name in _OF_MODELS}
        models |= {name: content[name] for name in _KEY}
        if models != self._written:
            write_json(directory.models_file, models)
            self._written = copy.deepcopy(models)
        write_json(directory.delivery_file, content)


def _key_of(content: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(content.get(name) for name in _KEY)
