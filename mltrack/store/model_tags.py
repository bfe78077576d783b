"""What is written on a registered model and on its versions, read in two requests.

Invariant: a value is at most `MAX_VALUE` characters, which every database of MLflow takes; a tag that is gone already is no error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mltrack.store.connection import Store, is_missing, translated
from mltrack.store.registry import MAX_DESCRIPTION_LENGTH, also_where_raced, model_id_of, named, search_versions
from mltrack.store.runs import cut, legal_name

MAX_VALUE = 5000


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """One version, without its figures in the tracking store."""

    number: int
    tags: Mapping[str, str]
    model_id: str | None
    """The logged model that it was made from."""
    run_id: str | None
    created_ms: int


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A registered model at one moment; one that does not exist has nothing."""

    name: str
    aliases: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[int, RegisteredVersion] = field(default_factory=dict)
    """By number."""


def read_model(store: Store, name: str) -> RegisteredModel:
    """The model with its aliases, its tags and its versions' tags.

    The versions are read last: whoever reads a version has read aliases and tags that are not newer than it.
    """
    with translated(store, f"reading {name}"):
        try:
            model = store.client.get_registered_model(name)
        except Exception as error:
            if not is_missing(error):
                raise
            return RegisteredModel(name=name)
        versions = [
            RegisteredVersion(
                number=int(found.version),
                tags=dict(found.tags),
                model_id=model_id_of(found),
                run_id=found.run_id or None,
                created_ms=int(found.creation_timestamp or 0),
            )
            for found in search_versions(store, named(name))
        ]
    return RegisteredModel(
        name=name,
        aliases={alias: int(version) for alias, version in dict(model.aliases).items()},
        tags=dict(model.tags),
        versions={version.number: version for version in versions},
    )


def set_model_tag(store: Store, name: str, key: str, value: str) -> None:
    """One tag of a registered model."""
    with translated(store, f"tagging {name}"):
        also_where_raced(lambda: store.client.set_registered_model_tag(name, legal_name(key), cut(value, MAX_VALUE)))


def drop_model_tag(store: Store, name: str, key: str) -> None:
    """Takes a tag of a registered model away."""
    with translated(store, f"untagging {name}"):
        try:
            store.client.delete_registered_model_tag(name, key)
        except Exception as error:
            if not is_missing(error):
                raise


def set_version_tags(store: Store, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Tags of one version."""
    with translated(store, f"tagging {name}/{version}"):
        for key, value in tags.items():
            store.client.set_model_version_tag(name, str(version), legal_name(key), cut(str(value), MAX_VALUE))


def describe_version(store: Store, name: str, version: int, description: str) -> None:
    """The description of one version, in Markdown."""
    with translated(store, f"describing {name}/{version}"):
        store.client.update_model_version(name, str(version), cut(description, MAX_DESCRIPTION_LENGTH))
