"""Addresses of servers, and text that contains them, without user names, passwords and tokens.

Invariant: pure functions. An address is as a user typed it, so a password may hold an unescaped `/`, `@`, `:`, `?` or
`#`; whatever may be a password is treated as one. A path that looks like a password must be percent-encoded (see
`is_ambiguous`).

    without_secrets("http://me:pa/ss@host:5000/?token=t")    # "http://host:5000/"
    redact("cannot reach https://TOKEN@host: refused")       # "cannot reach https://host: refused"
    with_credentials("http://host", "http://me:pw@host")     # "http://me:pw@host"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TextIO
from urllib.parse import quote, unquote

DATABASES = ("postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle")
"""Their user names are not secret: PGPASSWORD and ~/.pgpass need them."""
_OTHER_DATABASES = ("redshift", "snowflake", "cockroachdb", "clickhouse", "clickhousedb", "db2", "trino")
_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")
"""Azure: container@account."""
_ADDRESS = re.compile(r"(?P<scheme>[a-z][\w+.-]*):(?P<slashes>/*)(?P<rest>.*)", re.DOTALL | re.IGNORECASE)
_IN_TEXT = re.compile(r"(?<![\w+.-])[a-z][\w+.-]*://[^\s'\"`<>\\]+", re.IGNORECASE)
_WITHOUT_SCHEME = re.compile(r"(?<![\w+.:/-])//[^\s/:@]*:[^\s/@]+@")
_WHOLE = re.compile(r"(?!.*://.*://)(?:[a-z][\w+.-]*:)?//[^\s:/@]*:.*@\S*", re.IGNORECASE)
"""A text that is a single address, whose password may hold a quote or a blank."""
_HOST_CERTAIN = re.compile(r"(?:localhost|\[[^\]@]*\]|[\w-]+(?:\.[\w-]+)+\.?)(?::\d*)?")
_HOST_POSSIBLE = re.compile(r"[\w.%-]*(?::\d*)?(?:,[\w.%-]*(?::\d*)?)*")
_SECRET_NAME = re.compile(
    r"token|secret|passw|passphrase|pwd|credential|signature|jwt|bearer|auth(?!or)|odbc_connect"
    r"|cookie|session_?id|^pat$|^sas$|^code$|^access$|^pass$|^pw$|^x-(?:amz|goog)-|(?:^|[_.-])sig(?:$|[_.-])"
    r"|(?:^|[_.-]|api|access|account|private|shared|encryption|subscription)key(?:$|[_.-]?id$)",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(authorization['\"]?\s*[:=]\s*b?['\"]?(?:basic|bearer)\s+)[^\s'\"]+", re.IGNORECASE)


def without_secrets(address: str) -> str:
    """`address` without user info and secret-looking query values; a database's user name is kept."""
    if address.startswith("//"):
        return without_secrets("any:" + address)[4:]
    parts = _ADDRESS.fullmatch(address)
    if parts is None or (
        parts["slashes"] == "" and "@" in parts["rest"]
    ):  # not a server's address, or its scheme is missing
        return address if address.startswith(("/", ".")) else address.rpartition("@")[2]
    scheme, slashes, rest = parts.groups()
    info, rest, _ = _user_info(scheme, slashes, rest)
    user = info.partition(":")[0] if _is_database(scheme) else ""
    marks = "?#;" if scheme.lower().startswith("http") else "?"
    if found := re.search(f"[{marks}]", rest):
        kept = _open_values(rest[found.end() :])
        rest = rest[: found.start()] + (found[0] + kept if kept else "")
    return f"{scheme}:{slashes}{user + '@' if user else ''}{rest}"


def has_secrets(address: str) -> bool:
    """True if part of it must not be shown."""
    return without_secrets(address) != address


def is_same(first: str, second: str) -> bool:
    """True if two addresses are equal apart from their credentials."""
    return without_secrets(first).rstrip("/") == without_secrets(second).rstrip("/")


def with_credentials(address: str, *provided: str | None) -> str:
    """The first of `provided` that is `address` with credentials; else `address` unchanged."""
    if not has_secrets(address):
        for one in provided:
            if one and has_secrets(one) and is_same(one, address):
                return one
    return address


def is_ambiguous(address: str) -> bool:
    """True if the text before an `@` may be either host and path or user name and password."""
    parts = _ADDRESS.fullmatch(address)
    return parts is not None and _user_info(*parts.groups())[2]


def escaped(address: str) -> str:
    """`address` with its user info percent-encoded, so that every library reads the same host."""
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        return address
    scheme, slashes, rest = parts.groups()
    info, rest, _ = _user_info(scheme, slashes, rest)
    return f"{scheme}:{slashes}{quote(info, safe=':%!$&*+,;=()') + '@' if info else ''}{rest}"


def redact(text: str) -> str:
    """The text without the secrets of addresses and Authorization headers."""
    if "//" in text:
        text = without_secrets(text) if _WHOLE.fullmatch(text) else text
        text = _WITHOUT_SCHEME.sub("//", _without_secrets_in(text))
    return _HEADER.sub(r"\1***", text)


def redacted(value: Any) -> Any:
    """A JSON-like value with every text in it redacted, names of members included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redacted(name): redacted(one) for name, one in value.items()}
    return [redacted(one) for one in value] if isinstance(value, list | tuple) else value


class RedactedStream:
    """A text stream that writes everything redacted: log lines, warnings and tracebacks of any library."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """As the stream does."""
        return self._stream.write(redact(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _without_secrets_in(text: str) -> str:
    return _IN_TEXT.sub(lambda found: without_secrets(found[0]), text)


def _user_info(scheme: str, slashes: str, rest: str) -> tuple[str, str, bool]:
    """(user info, what follows its `@`, whether both may be a host and a path)."""
    if (
        slashes.startswith("///")
        or scheme.lower() in _CONTAINERS
        or (slashes == "/" and not scheme.lower().startswith("http"))
    ):
        return "", rest, False
    authority = re.match(r"[^/?#]*", rest)
    assert authority is not None
    info, at, host = authority[0].rpartition("@")
    is_server = _is_database(scheme) or scheme.lower() in ("http", "https")
    if is_server and not _HOST_CERTAIN.fullmatch(host):
        possible = bool(host) and _HOST_POSSIBLE.fullmatch(host) is not None
        before, _, query = rest.partition("?")
        end = (before if possible and "=" in query.partition("@")[0] else rest).rfind("@")
        if end > len(info):
            return rest[:end], rest[end + 1 :], possible
    return info, rest[len(info) + len(at) :], False


def _is_database(scheme: str) -> bool:
    return scheme.lower().partition("+")[0] in (*DATABASES, *_OTHER_DATABASES)


def _open_values(query: str) -> str:
    """A query without its secret-looking values; a value extends to the next name."""
    pieces, kept, hides, inside = re.split(r"(?<=[&;?#])", query), [], False, False
    for piece in pieces:
        plain = unquote(piece)
        name, equals, _ = (piece if "=" in piece else plain).partition("=")
        if equals and not (hides and inside):
            hides = _SECRET_NAME.search(unquote(name)) is not None
            hides = hides or ("://" not in piece and _without_secrets_in(plain) != plain)
        if not hides:
            kept.append(_without_secrets_in(piece))
        inside = piece.endswith(("?", "#"))
    return "".join(kept).rstrip("&;?#") if len(kept) < len(pieces) else "".join(kept)
