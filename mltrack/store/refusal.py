"""Errors of a store, of two kinds: StoreUnavailable may work later, StoreRejected will be refused again.

Invariant: no exception of mlflow, requests, sqlalchemy or botocore leaves `translated` (a missing local file stays
FileNotFoundError). No message holds credentials, nor do those of the exceptions that caused it.

    with translated(store, "reading the run"):
        store.client.get_run(run_id)
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mltrack.addresses import redact, without_secrets
from mltrack.errors import MltrackError, TrackingError, printable
from mltrack.extras import remedy
from mltrack.store.settings import SHORTEST_TIMEOUT_S, own_settings

if TYPE_CHECKING:
    from mltrack.store.connection import Store

_TRY_AGAIN = {408, 425, 429}
_DENIED = {401, 403, 407}
_DENIED_CODES = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestExpired",
    "RequestTimeTooSkewed",
}
"""S3 sends some of these with the status 400."""
_DENIED_NAMES = re.compile("Credential|Token|Unauthorized|Authentication|RefreshError|ProfileNotFound")
"""Error classes of cloud libraries that found no credentials to send, and so have no answer of a server."""
_STORE_WIDE_CODES = {
    "NoSuchBucket",
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
"""The bucket is missing or elsewhere: no file is at fault, and an administrator may correct it."""
_CLOUDS = ("requests", "urllib3", "botocore", "boto3", "s3transfer", "google", "azure")
NO_FILE_STORE = (
    "the file store is no longer served by MLflow; use sqlite:///mlflow.db or a server, and move old data with 'mlflow"
    " migrate-filestore'"
)


class StoreUnavailable(TrackingError):
    """The store cannot be reached or cannot answer now: try again later."""


class StoreSlow(StoreUnavailable):
    """The store did not answer in time: a longer wait or a smaller request may do."""


class StoreFailed(StoreUnavailable):
    """The store answered that it failed on this request: its own fault, or a value that it cannot hold. Other requests
    may succeed.
    """


class StoreDenied(StoreUnavailable):
    """The store refuses the credentials, or they have expired: the same request may succeed with others."""


class StoreRejected(TrackingError):
    """The store refused the request and will refuse it again."""


@contextmanager
def translated(where: Store | str, doing: str) -> Iterator[None]:
    """Inside, MLflow neither retries nor waits longer than the store's time-out, and errors become StoreUnavailable or
    StoreRejected.

    The message is "<uri>: <doing>: <first line of the reason>".
    """
    uri, timeout_s = (
        (where, SHORTEST_TIMEOUT_S) if isinstance(where, str) else (where.tracking_uri, where.request_timeout_s)
    )
    try:
        with own_settings(MLFLOW_HTTP_REQUEST_TIMEOUT=max(1, math.ceil(timeout_s))):
            yield
    except (MltrackError, KeyboardInterrupt):
        raise
    except Exception as error:
        _clean(error)
        kind, reason = _judged(error)
        if kind is None:
            raise
        if _http_status(error) == 403 and type(error).__module__.startswith("mlflow"):
            reason = _forbidden(doing)
        raise kind(f"{without_secrets(uri)}: {doing}: {reason}{_missing_credentials(uri, reason)}") from error


def is_missing(error: BaseException) -> bool:
    """True if the store answered that the object does not exist."""
    cause = error.__cause__ if isinstance(error, StoreRejected) else error
    return getattr(cause, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND") or _http_status(cause) == 404


def is_denied(error: BaseException) -> bool:
    """True if the store answered that this user has no permission."""
    return _http_status(error.__cause__ if isinstance(error, StoreDenied) else error) == 403


def already_exists(error: BaseException) -> bool:
    """True if the store refused because the object exists already."""
    cause = error.__cause__ if isinstance(error, StoreRejected) else error
    return getattr(cause, "error_code", "") in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")


def credentials_place(uri: str) -> str:
    """Where a user puts the credentials for this server, as the end of a sentence."""
    if uri.startswith("http"):
        return "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    return f"MLFLOW_TRACKING_URI or --tracking-uri{', PGPASSWORD or ~/.pgpass' if uri.startswith('postgres') else ''}"


def _forbidden(doing: str) -> str:
    """Explain a 403 of a server with users: MLflow's client gives only endpoint and status, not the permission."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    needed = {
        "looking": "READ",
        "reading": "READ",
        "listing": "READ",
        "fetching": "READ",
        "asking": "READ",
        "deleting": "MANAGE",
        "removing": "MANAGE",
    }
    permission = needed.get(doing.partition(" ")[0], "EDIT")
    return (
        f"permission denied (403){f' for user {user}' if user else ''}; this needs the permission {permission}, which"
        " its owner or an administrator grants"
    )


def _judged(error: Exception) -> tuple[type[TrackingError] | None, str]:
    home = type(error).__module__.partition(".")[0]
    reason = _first_line(error)
    behind = error.__context__
    wraps = type(error).__name__ == "S3UploadFailedError" or (
        home == "mlflow" and type(behind).__module__.startswith(("botocore", "boto3", "s3transfer"))
    )
    if wraps and isinstance(behind, Exception):  # boto3 and MLflow keep only the answer's text
        error, home = behind, type(behind).__module__.partition(".")[0]
    status, code = _http_status(error), _error_code(error)
    if home in ("mlflow", *_CLOUDS) and (status in _DENIED or code in _DENIED_CODES):
        return StoreDenied, reason
    if home == "mlflow":
        if "out-of-date" in reason or code == "INVALID_STATE" or status == 501:
            return StoreRejected, reason
        if "file store" in str(error).lower() or "filesystem" in str(error).lower():
            return StoreRejected, f"{reason}: {NO_FILE_STORE}"
        if code == "TEMPORARILY_UNAVAILABLE" or status is None or status >= 500 or status in _TRY_AGAIN:
            return _later(str(error), code), reason
        return StoreRejected, reason
    if home in _CLOUDS:
        if status is None and home not in ("requests", "urllib3") and _DENIED_NAMES.search(type(error).__name__):
            return StoreDenied, reason
        permanent = status is not None and status < 500 and status not in _TRY_AGAIN and code not in _STORE_WIDE_CODES
        return (StoreRejected if permanent else _later(str(error), "")), reason
    if home == "sqlalchemy":
        # Operational and interface errors: no server, a lock, a full disk. Others concern the statement or the driver.
        later = type(error).__name__ in ("OperationalError", "InterfaceError", "TimeoutError", "InternalError")
        return (_later(str(error), "") if later else StoreRejected), reason
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return StoreUnavailable, reason
    if isinstance(error, ModuleNotFoundError):
        return StoreRejected, f"{reason}; {remedy(error.name) or 'install the package that this kind of store needs'}"
    if isinstance(error, UnicodeError | OverflowError) or (
        isinstance(error, ValueError) and "out of range" in reason
    ):  # a value that no request can carry
        return StoreRejected, reason
    if home == "google" or type(error).__name__ == "JSONDecodeError":  # a gateway's page, or no answer of MLflow's
        return StoreUnavailable, f"the answer is not one of MLflow's: {reason}"
    if isinstance(error, LookupError | ValueError | TypeError | AttributeError | ArithmeticError | RecursionError):
        return StoreRejected, f"the answer cannot be used: {type(error).__name__}: {reason}"
    return None, reason


def _missing_credentials(uri: str, reason: str) -> str:
    """The remedy if a server refuses an unknown user; else nothing."""
    if re.search(r"no password supplied|using password: NO|empty password", reason):
        return f"; no password was given, put it into {credentials_place(uri)}"
    if re.search(r"password authentication failed|using password: YES|error code 401|not authenticated", reason):
        return f"; check the user name and password in {credentials_place(uri)}"
    return ""


def _clean(error: BaseException | None) -> None:
    """Remove credentials from the messages of an exception and its causes: a traceback shows them all."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.args = tuple(redact(one) if isinstance(one, str) else one for one in error.args)
        if isinstance(message := getattr(error, "message", None), str):
            error.message = redact(message)  # type: ignore[attr-defined]
        error = error.__cause__ or error.__context__


def _later(text: str, code: str) -> type[StoreUnavailable]:
    """The kind of StoreUnavailable. MLflow uses INTERNAL_ERROR also for its client's transport errors and for an
    unknown HTTP status of a gateway.
    """
    if "timed out" in text or "timeout exception" in text or "timeout expired" in text or code == "DEADLINE_EXCEEDED":
        return StoreSlow
    answered = (
        not text.startswith("API request to ")
        or "failed with error code 500 " in text
        or "too many 500 error responses" in text
    )
    return StoreFailed if code == "INTERNAL_ERROR" and answered else StoreUnavailable


def _error_code(error: BaseException) -> str:
    """MLflow's code of an error, or S3's."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(error, "error_code", ""))


def _http_status(error: BaseException | None) -> int | None:
    if error is None:
        return None
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's ClientError
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = getattr(response, "status_code", None)
    if code is not None:
        return int(code)
    status = getattr(error, "get_http_status_code", None)
    return int(status()) if callable(status) else None


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    text = re.sub(r"^\((?:[\w.]+)\)\s*", "", text.splitlines()[0].strip())
    refused = re.search(
        r"(Connection refused|timed out|Name or service not known|No route to host|Failed to resolve)", text
    )
    if refused and len(text) > 160:
        text = refused[1]
    return printable(text if len(text) <= 300 else text[:297] + "...")
