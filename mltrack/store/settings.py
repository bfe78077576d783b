"""MLflow's settings as mltrack's own calls see them: no retries, short time-outs, no progress bars, nothing printed.

Invariant: for all other code in this process the environment, MLflow's settings, its tracking URI and its log levels
are unchanged. Values set here hold only in the calling thread, inside `own_settings`.

MLflow reads these settings from the environment at each request and takes no arguments for them. So the objects that
read them are patched to look into a context variable first. Threads that MLflow starts itself, as it does to download
folders, do not see it: such calls are not used here.

    with own_settings(MLFLOW_HTTP_REQUEST_TIMEOUT=5):
        client.get_run(run_id)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

SHORTEST_TIMEOUT_S = 5.0
"""Time-out of a request, unless a slow server is given longer."""
QUIET: Mapping[str, Any] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": 0,
    "MLFLOW_HTTP_REQUEST_TIMEOUT": int(SHORTEST_TIMEOUT_S),
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": False,
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": True,
}
"""MLflow's variables that all our calls set, with their default values."""
_LEAST_LEVELS = {
    "mlflow.store.db.utils": logging.CRITICAL,
    "alembic.runtime.migration": logging.WARNING,
    "alembic.runtime.plugins": logging.WARNING,
}
"""Least log levels during our calls: they hide the creation of a database's tables and tracebacks of translated errors.
"""
_NOT_ALWAYS = ("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD",)
"""Variables that only single calls set."""
_TRACKING_URI = "tracking URI"
_OURS: ContextVar[Mapping[str, Any] | None] = ContextVar("mltrack_own_settings", default=None)


@contextmanager
def own_settings(*, tracking_uri: str | None = None, **variables: Any) -> Iterator[None]:
    """Inside, in this thread, MLflow has our settings.

    Args:
        tracking_uri: for MLflow's clients that are made without one; None: unchanged.
        variables: values of MLflow's variables by name, each of `QUIET` or `_NOT_ALWAYS`.
    """
    _teach_mlflow()
    changed = {**variables, **({} if tracking_uri is None else {_TRACKING_URI: tracking_uri})}
    token = _OURS.set({**(_OURS.get() or QUIET), **changed})
    try:
        yield
    finally:
        _OURS.reset(token)


@cache
def _teach_mlflow() -> None:
    for name, level in _LEAST_LEVELS.items():
        logging.getLogger(name).addFilter(_from_level(level))
    from mlflow import environment_variables
    from mlflow.tracking._tracking_service import utils

    for name in (*QUIET, *_NOT_ALWAYS):
        variable = getattr(environment_variables, name)
        variable.get, variable.is_set = (
            _ours_first(name, variable.get),
            _ours_first(name, variable.is_set, lambda _: True),
        )
    utils.get_tracking_uri = _ours_first(_TRACKING_URI, utils.get_tracking_uri)


def _ours_first(
    name: str, theirs: Callable[[], Any], of_ours: Callable[[Any], Any] = lambda value: value
) -> Callable[[], Any]:
    def value() -> Any:
        ours = _OURS.get()
        return theirs() if ours is None or name not in ours else of_ours(ours[name])

    return value


def _from_level(level: int) -> Callable[[logging.LogRecord], bool]:
    return lambda record: _OURS.get() is None or record.levelno >= level
