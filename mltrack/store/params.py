"""Params are immutable in MLflow and may exist already in another spelling: they are compared by meaning, and written
only if missing.

Invariant: log_params never raises for a value with the same meaning, and never hides one with another.

    same_meaning("2e-5", 2e-05)     # True: `mlflow run` logged the shell's text, the program knows a float
    log_params(store, run_id, {"seed": "1"})   # {} or {"seed": ("0", "1")}: what is there, what was meant
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from mltrack.store.connection import Store
from mltrack.store.refusal import StoreRejected, translated
from mltrack.store.runs import legal_name, legal_text

MAX_PARAMS = 100
MAX_PARAM_LENGTH = 6000
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|infinity|nan)", re.IGNORECASE)


def same_meaning(first: Any, second: Any) -> bool:
    """True if both are one value: numbers in any notation, booleans in any case, with or without shell quotes, and
    None, "none", "null" and "" alike.
    """
    return _meaning(first) == _meaning(second)


def log_params(store: Store, run_id: str, params: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Write the params that the run does not have yet, in requests of 100, each with its given text.

    Names are made legal; a text over 6,000 characters is cut with a mark.

    Returns:
        name -> (stored value, given value) of those that differ in meaning; the caller writes a tag about them.
    """
    from mlflow.entities import Param

    wanted = {legal_name(key): legal_text(_text(value), MAX_PARAM_LENGTH) for key, value in params.items()}
    for attempt in (1, 2):
        with translated(store, f"reading the params of run {run_id}"):
            held = dict(store.client.get_run(run_id).data.params)
        missing = [Param(key, value) for key, value in wanted.items() if key not in held]
        try:
            with translated(store, f"writing {len(missing)} params of run {run_id}"):
                for start in range(0, len(missing), MAX_PARAMS):
                    store.client.log_batch(run_id, params=missing[start : start + MAX_PARAMS])
            break
        except StoreRejected:
            if attempt == 2:  # the first time, another process may have written one of them since they were read
                raise
    return {
        key: (held[key], value) for key, value in wanted.items() if key in held and not same_meaning(held[key], value)
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _meaning(value: Any) -> Any:
    text = _unquoted(_text(value).strip())
    lowered = text.lower()
    if lowered in ("", "none", "null"):
        return None
    if lowered in ("true", "false"):
        return lowered == "true", "boolean"  # a pair, since True == 1
    if _NUMBER.fullmatch(text):
        if re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        number = float(text)
        return "nan" if number != number else number
    return text


def _unquoted(text: str) -> str:
    """What a shell would read: `mlflow run` stores the quoted word."""
    if not text.startswith(("'", '"')):
        return text
    try:
        words = shlex.split(text)
    except ValueError:
        return text
    return words[0] if len(words) == 1 else text
