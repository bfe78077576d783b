"""What of an address, and of text with addresses, is shown and written."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from mltrack.addresses import (
    RedactedStream,
    escaped,
    has_secrets,
    is_ambiguous,
    is_same,
    redact,
    redacted,
    with_credentials,
    without_secrets,
)

SHOWN = {
    "http://alice:S3cr3t@host:5000/mlflow": "http://host:5000/mlflow",
    "http://alice:S3cr/et@127.0.0.1:5999": "http://127.0.0.1:5999",
    "http://alice:S3cr@et@127.0.0.1:5999": "http://127.0.0.1:5999",
    "http://alice:S3:cr?e#t@host/x": "http://host/x",
    "http://me@corp.com:S3cr/1@host": "http://host",
    "http://alice:12/S3cr@host": "http://host",
    "http://alice:12?S3cr@host": "http://host",
    "https://S3crToken@host": "https://host",
    "https://S3cr/Token@host:1": "https://host:1",
    "http://alice:S3cr@[::1]:5000/x": "http://[::1]:5000/x",
    "http:/alice:S3cr@host": "http:/host",
    "alice:S3cr@host:5000": "host:5000",
    "S3crToken@host": "host",
    "http://host/?token=S3cr": "http://host/",
    "http://host/?a=1&api_key=S3cr&b=2": "http://host/?a=1&b=2",
    "http://host/?a=1;to%6ben=S3cr;et;b=2": "http://host/?a=1;b=2",
    "http://host/#access_token=S3cr": "http://host/",
    "https://bucket.s3.amazonaws.com/x?X-Amz-Date=1&X-Amz-Credential=S3cr&X-Amz-Signature=S3cr": "https://bucket.s3.amazonaws.com/x",
    "https://account.blob.core.windows.net/x?sv=1&sig=S3cr": "https://account.blob.core.windows.net/x?sv=1",
    "postgresql://me:S3cr@host/db": "postgresql://me@host/db",
    "postgresql+psycopg2://me:S3/c@r@host:5432/db?sslmode=require&password=S3cr": "postgresql+psycopg2://me@host:5432/db?sslmode=require",
    "mysql+pymysql://:S3cr@host/db": "mysql+pymysql://host/db",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3DS3cr": "mssql+pyodbc:///",
    "//alice:S3cr@host/x": "//host/x",
    "http://host/;token=S3cr": "http://host/",
    "http://host/?token%3DS3cr": "http://host/",
    "http://host/?x=1&y=http://u:S3cr@other&b=2": "http://host/?x=1&y=http://other&b=2",
    "http://host/?b=2&x=http%3A%2F%2Fu%3AS3cr%40other": "http://host/?b=2",
    "http://host/a;x=1?code=S3cr": "http://host/a;x=1",
    "redshift+psycopg2://me:S3/cr@host": "redshift+psycopg2://me@host",
    **{f"http://host/?{name}=S3cr": "http://host/" for name in ("pat", "sas", "code", "access", "sessionid", "cookie")},
    "s3://S3crKey:S3cr@bucket/x@y": "s3://bucket/x@y",
}
AS_THEY_ARE = [
    "sqlite:////home/me@work/token=1/x.db",
    "sqlite:///mlflow.db?foreign_keys=on",
    "./me@work",
    "/home/me@work/mlruns",
    "http://127.0.0.1:5000/team@work",
    "https://mlflow.example.com/a/@me",
    "http://mlflow:5000/?user=a@b.org",
    "postgresql://me@host/db?sslkey=/etc/client.key",
    "postgresql:///db?host=/run/postgresql",
    "hf://datasets/user/name@main/x.jsonl",
    "abfss://container@account.dfs.core.windows.net/x",
    "databricks://profile",
    "databricks://scope:prefix",
    "databricks",
]


@pytest.mark.parametrize("address", SHOWN)
def test_what_may_be_a_secret_is_left_out(address: str) -> None:
    assert without_secrets(address) == SHOWN[address]
    assert without_secrets(SHOWN[address]) == SHOWN[address], "once more changes nothing"
    assert has_secrets(address)
    assert is_same(address, SHOWN[address])
    if "//" in address:
        line = redact(f"cannot reach '{address}', nor {address} (trying again)")
        assert line == f"cannot reach '{SHOWN[address]}', nor {SHOWN[address]} (trying again)"


@pytest.mark.parametrize("address", AS_THEY_ARE)
def test_an_address_without_secrets_stays_as_it_is(address: str) -> None:
    assert without_secrets(address) == redact(address) == escaped(address) == address
    assert not has_secrets(address)


@pytest.mark.parametrize("password", ["S3 cr", "S3'cr", "S3`c r", "S3\\cr"])
def test_a_text_that_is_one_address_may_hold_any_password(password: str) -> None:
    assert redacted({"uri": f"http://alice:{password}@host/x"}) == {"uri": "http://host/x"}


def test_credentials_are_joined_to_their_own_address_alone() -> None:
    given = ["http://me:pw@other:5000", None, "http://host:5000", "http://me:pw@host:5000"]
    assert with_credentials("http://host:5000/", *given) == "http://me:pw@host:5000"
    assert with_credentials("http://own:own@host:5000", *given) == "http://own:own@host:5000", (
        "what has some keeps them"
    )
    assert with_credentials("http://host:5001", *given) == "http://host:5001"
    assert with_credentials("postgresql://you@host/db", "postgresql://me:pw@host/db") == "postgresql://you@host/db", (
        "somebody else's"
    )


def test_every_library_reads_the_same_host() -> None:
    from requests.utils import get_auth_from_url
    from sqlalchemy.engine import make_url
    from urllib3.util import parse_url

    http = escaped("http://al@ice:S3/c@r?e#t%21@host:5000/x?token=1")
    assert (parse_url(http).host, parse_url(http).port, parse_url(http).path) == ("host", 5000, "/x")
    assert get_auth_from_url(http) == ("al@ice", "S3/c@r?e#t!")
    database = make_url(escaped("postgresql://me:S3/c@r@host:5432/db"))
    assert (database.host, database.username, database.password, database.database) == ("host", "me", "S3/c@r", "db")


@pytest.mark.parametrize(
    "address", ["http://mlflow:5000/team@work", "http://token/with@host", "http://alice:12/34@host"]
)
def test_where_a_path_and_a_password_look_alike_nothing_is_shown_of_it(address: str) -> None:
    assert is_ambiguous(address)
    assert without_secrets(address) in ("http://work", "http://host")
    assert not is_ambiguous(address.replace("/", "%2F").replace("%2F%2F", "//"))


def test_values_of_all_kinds() -> None:
    value = {
        "a": ["http://me:pw@host", 1.5, None, True],
        "http://me:pw@host": {"text": "Authorization: Basic bWU6cHc= sent"},
    }
    assert redacted(value) == {
        "a": ["http://host", 1.5, None, True],
        "http://host": {"text": "Authorization: Basic *** sent"},
    }


def test_what_any_library_logs_on_our_stream_is_redacted() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(RedactedStream(written))
    try:
        raise OSError("https://TOKEN@host/x: refused")
    except OSError:
        handler.emit(
            logging.LogRecord(
                "urllib3", logging.ERROR, __file__, 1, "GET %s", ("http://me:pw@host/?sig=abc",), sys.exc_info()
            )
        )
    assert written.getvalue().startswith("GET http://host/\nTraceback")
    assert "OSError: https://host/x: refused" in written.getvalue()
