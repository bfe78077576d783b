"""Whether a registered version loads the bytes of a logged model; if so, they are never deleted.

Invariant: in doubt the answer is yes; a version that this user may not read counts.
"""

from __future__ import annotations

import re
from typing import Any

from mltrack.store import run_models
from mltrack.store.connection import Store
from mltrack.store.refusal import is_denied, is_missing, translated
from mltrack.store.registry import MODEL_ID, VERSIONS_TAG, pages
from mltrack.store.runs import parsed

_COPIES, _COPY = "models:/%/%", re.compile(r"models:/[^/]+/")
"""Source of a version that MLflow copied from another one, models:/name/3, as an MLflow filter and as a Python
pattern.
"""
_CLOCKS_MS = 86_400_000
"""Largest difference between the clocks of two machines that write to one database."""


def is_registered(store: Store, model_id: str) -> bool:
    """True if a registered version loads the bytes of this logged model: one made from it or its folder, or a copy of
    such a version.
    """
    if run_models.is_run_model(model_id):
        return _loads(store, *run_models.place_of(store, model_id))
    with translated(store, f"asking who uses {model_id}"):
        if store.client.search_model_versions(f"source_path LIKE '%{model_id}%'", max_results=1):
            return True
        made_ms = None
        for copy in pages(store, f"source_path LIKE '{_COPIES}'", "creation_timestamp DESC"):
            made_ms = _made_ms(store, model_id) if made_ms is None else made_ms
            if int(copy.creation_timestamp or 0) < made_ms - _CLOCKS_MS:
                break  # a copy is newer than its original
            if model_id in _model_ids_in(_source(store, copy)):
                return True
        return _is_registered_unseen(store, model_id)


def _loads(store: Store, run_id: str, source: str) -> bool:
    """True where a version loads a folder of a run: one made from it, or a copy of such a version."""
    with translated(store, f"asking who uses {source}"):
        below = source.rsplit("/", 2)
        if store.client.search_model_versions(f"source_path LIKE '%{run_id}%/{below[1]}/{below[2]}%'", max_results=1):
            return True
        copies = pages(store, f"source_path LIKE '{_COPIES}'", "creation_timestamp DESC")
        return any(_source(store, copy).rstrip("/") == source for copy in copies)


def _made_ms(store: Store, model_id: str) -> int:
    """When a logged model was made; 0 if it is gone."""
    try:
        return int(store.client.get_logged_model(model_id).creation_timestamp or 0)
    except Exception as error:
        if is_missing(error):
            return 0
        raise


def _is_registered_unseen(store: Store, model_id: str) -> bool:
    """True if the model's tag names a version that this user may not read; a search leaves those out."""
    try:
        versions = parsed(store.client.get_logged_model(model_id).tags.get(VERSIONS_TAG, "[]"), list)
    except Exception as error:
        if is_missing(error):
            return False
        raise
    for one in versions:
        try:
            store.client.get_model_version(str(one["name"]), str(one["version"]))
        except (KeyError, TypeError):
            continue
        except Exception as error:
            if is_denied(error):
                return True
            if not is_missing(error):
                raise
    return False


def _source(store: Store, version: Any) -> str:
    """Where a version's bytes come from. A copy's source is a version that may be deleted by now, so the store is asked
    for its download address.
    """
    source = version.source or ""
    if _COPY.match(source):
        source = store.client.get_model_version_download_uri(version.name, str(version.version)) or ""
    return str(source)


def _model_ids_in(source: str) -> list[str]:
    return MODEL_ID.findall(source)
