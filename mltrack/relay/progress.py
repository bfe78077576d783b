"""How far a delivery is: `delivery.json` in the run directory, replaced whole after each acknowledged request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from mltrack.journal import RunDirectory, write_json
from mltrack.journal.records import now_ms
from mltrack.journal.shape import without_misfits

FORMAT_VERSION = 1
MAX_INFINITIES_NAMED = 50


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
    best_model_id: str | None = None
    evaluation_set: dict[str, str] | None = None
    """name and digest of the data set that the checkpoints' metrics are measured on."""
    registered: dict[str, Any] | None = None
    """name, version, aliases."""
    uploading: str | None = None
    """What is being uploaded at this moment."""
    waiting: str | None = None
    """Why something is not delivered yet: what the server, or its artifact store, said last."""
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

    @classmethod
    def read(cls, directory: RunDirectory, tracking_uri: str) -> Progress:
        """The progress of this directory towards this server; from the start for another server, and where the file is damaged."""
        known, problem = without_misfits(directory.read_delivery(), get_type_hints(cls), "delivery.json")
        if known.get("tracking_uri") != tracking_uri or problem or not _begins_a_record(directory.journal, known.get("offset", 0)):
            return cls(tracking_uri=tracking_uri)
        return cls(**{**known, "uploading": None})  # whoever uploaded is gone

    def note_infinities(self, record: Mapping[str, Any]) -> None:
        """MLflow stores an infinity as the largest finite number; a tag says where."""
        for name, value in {**record["values"], **record["timing"]}.items():
            if math.isinf(value) and len(self.infinite) < MAX_INFINITIES_NAMED:
                self.infinite.append(f"{name} at step {record['step']}: {value}")

    def is_whole(self, directory: RunDirectory) -> bool:
        """True where nothing of the journal is left to deliver, and the run was given its status."""
        ended = self.end is not None or self.status is not None
        return ended and not self.deferred and self.offset >= directory.journal.stat().st_size

    def write(self, directory: RunDirectory, *, acknowledged: bool = True) -> None:
        """Write it down; `acknowledged` where the server has just answered."""
        if acknowledged:
            self.acknowledged_ms = now_ms()
        write_json(directory.delivery_file, asdict(self))


def _begins_a_record(journal: Path, offset: int) -> bool:
    """True where a record of this journal can begin at that byte: what says otherwise was written for another one."""
    if offset <= 0 or not journal.exists():
        return offset == 0
    with journal.open("rb") as file:
        file.seek(offset - 1)
        return file.read(1) == b"\n"
