"""Which MLflow a tracking server is, where that decides what it holds.

Invariant: a server is asked once a connection; one that does not say is taken for a present one.
"""

from __future__ import annotations

import re

from mltrack.store.connection import Store
from mltrack.store.refusal import translated

FIRST_WITH_MODELS = 3
"""The major version that brought logged models."""
_VERSION = re.compile(r"(\d{1,4})\.\d[\w.+]{0,40}")


def server_version(store: Store) -> str | None:
    """What `GET <uri>/version` says; None where the store is no server, or says something else.

    Raises:
        StoreUnavailable: the server does not answer.
    """
    if store.server_version is None:
        store.server_version = _asked(store) or ""
    return store.server_version or None


def holds_models(store: Store) -> bool:
    """False for a server of MLflow before 3, which has no logged models."""
    version = server_version(store)
    return version is None or int(version.partition(".")[0]) >= FIRST_WITH_MODELS


def _asked(store: Store) -> str | None:
    if not store.tracking_uri.startswith(("http://", "https://")):
        return None
    with translated(store, "asking for its version"):
        from mlflow.utils.rest_utils import http_request

        creds = store.client._tracking_client.store.get_host_creds()
        answer = http_request(creds, "/version", "GET", stream=True)
        with answer:
            text = (
                answer.raw.read(64, decode_content=True).decode("ascii", "replace") if answer.status_code == 200 else ""
            )
    return text.strip() if _VERSION.fullmatch(text.strip()) else None
