"""The progress of a delivery: `delivery.json` in the run directory, replaced whole after each acknowledged request.

The part that grows with the number of kept checkpoints is in `models.json` beside it, which is replaced only when it
changes, and is valid only together with it."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from mltrack.addresses import is_same, redacted, without_secrets
from mltrack.journal import RunDirectory, read_json, write_json
from mltrack.journal.records import now_ms
from mltrack.journal.shape import without_misfits
from mltrack.store.runs import MAX_TAG_LENGTH, legal_name

FORMAT_VERSION = 1
_OF_MODELS = ("models", "saved_ms", "index_is_stored")
_KEY = ("tracking_uri", "run_id")
"""The fields that show that the two files belong together."""
log = logging.getLogger("mltrack.relay")
MAX_INFINITIES_NAMED = 50
MAX_RENAMED_TOLD = 100


@dataclass
class Progress:
    """What the server has acknowledged."""

    tracking_uri: str = ""
    """Without credentials."""
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
    """A param or tag was too long for MLflow, or held characters that no database takes."""
    deferred: list[int] = field(default_factory=list)
    """Offsets in the journal of the records that the artifact store has not taken yet."""
    models: dict[str, str] = field(default_factory=dict)
    """{step: id of the logged model}; empty id for a checkpoint that is not a Hugging Face folder and is kept as files
    only.
    """
    saved_ms: dict[str, int] = field(default_factory=dict)
    """{step: when that checkpoint was saved}."""
    index_is_stored: bool = True
    """False if `checkpoints/index.json` in the run's artifacts does not match `models`."""
    best_model_id: str | None = None
    evaluation_set: dict[str, str] | None = None
    """name and digest of the data set of the checkpoints' metrics."""
    registered: dict[str, Any] | None = None
    """name, version, aliases."""
    uploading: str | None = None
    """What is being uploaded now."""
    waiting: str | None = None
    """Why something is not delivered yet: the last answer of the server or its artifact store."""
    acknowledged_ms: int = 0
    """When the server last answered, in milliseconds since 1970."""
    connected_ms: int = 0
    """When the delivering process was ready to send."""
    end: dict[str, Any] | None = None
    """The end record, once read; a resumed run has none until it ends again."""
    outcome: dict[str, Any] | None = None
    """The outcome record, once read; it counts if the trainer dies before it records the end."""
    status: str | None = None
    """The status set on the MLflow run."""
    complete: bool = False
    exposed: list[str] = field(default_factory=list)
    """Params and tags of the run with a secret that another tool wrote, one line each."""
    notices: list[str] = field(default_factory=list)
    """What the user should know about the run as it was when this trainer began."""
    opened_for: float | None = None
    """Start time of the trainer whose run was opened in MLflow, as in run.json."""
    rejected: str | None = None
    """Why MLflow refuses the run itself: there is no such run or experiment, or it is deleted."""
    elsewhere: str | None = None
    """The message if the run was resumed elsewhere, so that nothing more is delivered."""
    deleted: str | None = None
    """The same if the run was deleted in MLflow."""
    format_version: int = FORMAT_VERSION
    _written: dict[str, Any] | None = None
    """The content of models.json."""

    @classmethod
    def read(cls, directory: RunDirectory, tracking_uri: str) -> Progress:
        """The progress of this directory for this server; empty for another server or if the file is damaged."""
        address, content = without_secrets(tracking_uri), directory.read_delivery()
        models = read_json(directory.models_file) or {}
        if _key_of(models) == _key_of(content):
            content = models | content  # an earlier mltrack kept all of it in delivery.json
        hints = {name: hint for name, hint in get_type_hints(cls).items() if name != "_written"}
        known, problem = without_misfits(content, hints, "delivery.json")
        if (
            problem
            or not is_same(known.get("tracking_uri", ""), address)
            or not _begins_a_record(directory.journal, known.get("offset", 0))
        ):
            return cls(tracking_uri=address)
        return cls(
            **{**known, "uploading": None, "rejected": None, "tracking_uri": address}
        )  # the uploading process is gone; MLflow is asked anew

    def note_infinities(self, record: Mapping[str, Any]) -> None:
        """Note infinities for a tag, since MLflow stores them as the largest finite number."""
        for name, value in {**record["values"], **record["timing"]}.items():
            if math.isinf(value) and len(self.infinite) < MAX_INFINITIES_NAMED:
                self.infinite.append(f"{name} at step {record['step']}: {value}")

    def name_in_mlflow(self, name: str) -> str:
        """The name of a metric, param or tag that MLflow accepts."""
        shown = legal_name(name)
        if shown != name and len(self.renamed) < MAX_RENAMED_TOLD:
            self.renamed[shown] = name
        return shown

    def renamed_json(self) -> str:
        """As many names as fit in a tag; full_values.json has all."""
        told = dict(self.renamed)
        while len(json.dumps(told)) > MAX_TAG_LENGTH:
            told.popitem()
        return json.dumps(told)

    def is_whole(self, directory: RunDirectory) -> bool:
        """True if the whole journal is delivered and the run has its status."""
        ended = self.end is not None or self.status is not None
        return ended and not self.deferred and self.offset >= directory.journal.stat().st_size

    def write(self, directory: RunDirectory, *, acknowledged: bool = True) -> None:
        """Write the files; `acknowledged` if the server has just answered."""
        if acknowledged:
            self.acknowledged_ms = now_ms()
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "_written"}
        models = {name: content.pop(name) for name in _OF_MODELS} | {name: content[name] for name in _KEY}
        try:
            if models != self._written:
                write_json(directory.models_file, redacted(models))
                self._written = copy.deepcopy(models)
            write_json(directory.delivery_file, redacted(content))
        except OSError as error:
            # a full disk: the delivery goes on; another relay would send the same again, which changes nothing
            log.error("%s: not written: %s", directory.delivery_file, error.strerror)


def _key_of(content: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(content.get(name) for name in _KEY)


def _begins_a_record(journal: Path, offset: int) -> bool:
    """True if a record of this journal can begin at that byte; if not, the file belongs to another journal."""
    if offset <= 0 or not journal.exists():
        return offset == 0
    with journal.open("rb") as file:
        file.seek(offset - 1)
        return file.read(1) == b"\n"
