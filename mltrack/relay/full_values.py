"""The full params, tags and names that MLflow cannot hold unchanged: the artifact `full_values.json`.

Invariant: it is a pure function of the journal, so writing it again changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mltrack.journal import JournalReader
from mltrack.store import params, runs


def is_shortened(text: str, limit: int) -> bool:
    """True if MLflow cannot hold the text unchanged."""
    return bool(runs.legal_text(text, limit) != text)


def full_values(journal: Path) -> dict[str, Any]:
    """`params` and `tags` {name: full text} of those that MLflow holds in another form; `names` {name in MLflow: logged
    name}.
    """
    found: dict[str, Any] = {"params": {}, "tags": {}, "names": {}}
    limits = {"params": params.MAX_PARAM_LENGTH, "tags": runs.MAX_TAG_LENGTH}
    names: set[str] = set()
    for record in JournalReader(journal).read_new():
        kind = record["type"]
        if kind == "metrics":
            names.update(record["values"], record["timing"])
        elif kind in limits:
            names.update(record["values"])
            found[kind].update(
                {name: text for name, text in record["values"].items() if is_shortened(text, limits[kind])}
            )
    found["names"] = {runs.legal_name(name): name for name in sorted(names) if runs.legal_name(name) != name}
    return found
