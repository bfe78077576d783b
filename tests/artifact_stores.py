"""Artifact stores of each kind, real ones: a local folder, the server's proxy, S3, and the proxy in front of S3.

Invariant: `files()` lists what lies in the store itself, not what MLflow says of it. S3 is a moto server on the
loopback with made-up keys.

    with artifact_store("s3", tmp_path) as there:
        connect(there.uri); there.experiment; there.files()
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from ready_store import ready_store
from servers import mlflow_server

KINDS = ("local", "proxied", "s3", "proxied_s3")


@dataclass(frozen=True)
class ArtifactStore:
    """A tracking server, an experiment in it, and a look at the bytes behind it."""

    kind: str
    uri: str
    experiment: str
    files: Callable[[], dict[str, int]]
    """path in the store -> bytes"""
    read: Callable[[str], bytes]

    def model_folders(self) -> set[str]:
        """The ids of the logged models that have bytes here, of whatever run."""
        return {match[1] for name in self.files() if (match := re.search(r"models/(m-[^/]+)/", name))}


@contextmanager
def artifact_store(kind: str, folder: Path) -> Iterator[ArtifactStore]:
    """A store of that kind; while it is open, this process and its children reach S3 by the environment."""
    root = folder / "artifacts"
    with ExitStack() as stack:
        client = stack.enter_context(_s3()) if "s3" in kind else None
        bucket = f"mltrack-{uuid.uuid4().hex}"  # the S3 servers of a process share what they hold
        if client is not None:
            client.create_bucket(Bucket=bucket)
        if kind.startswith("proxied"):
            destination = f"s3://{bucket}/root" if client is not None else str(root)
            uri = stack.enter_context(mlflow_server(folder / "server", destination=destination))
            location = None
        else:
            uri = ready_store(folder)
            location = f"s3://{bucket}/root" if client is not None else root.as_uri()
        MlflowClient(uri).create_experiment("kept", artifact_location=location)
        if client is None:
            yield ArtifactStore(kind, uri, "kept", lambda: _on_disk(root), lambda path: (root / path).read_bytes())
        else:
            yield ArtifactStore(
                kind,
                uri,
                "kept",
                lambda: _in_bucket(client, bucket),
                lambda path: client.get_object(Bucket=bucket, Key=path)["Body"].read(),
            )


@contextmanager
def _s3() -> Iterator[Any]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield boto3.client("s3", endpoint_url=names["MLFLOW_S3_ENDPOINT_URL"])
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.stop()


def _on_disk(root: Path) -> dict[str, int]:
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def _in_bucket(client: Any, bucket: str) -> dict[str, int]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {held["Key"]: held["Size"] for page in pages for held in page.get("Contents", [])}
