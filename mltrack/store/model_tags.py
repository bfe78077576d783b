"""Tags and descriptions of a registered model and its versions; all versions are read only when all are needed.

Invariant: a value has at most `MAX_VALUE` characters, which every database of MLflow takes. Removing a missing tag is
no error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mltrack.store.connection import Store
from mltrack.store.refusal import is_missing, translated
from mltrack.store.registry import (
    MAX_DESCRIPTION_LENGTH,
    also_where_raced,
    model_id_of,
    named,
    newest_versions,
    search_versions,
)
from mltrack.store.runs import cut, legal_name

MAX_VALUE = 5000


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """One version, without its metrics in the tracking store."""

    number: int
    tags: Mapping[str, str]
    model_id: str | None
    """The logged model that it was made from."""
    run_id: str | None
    created_ms: int
    aliases: Sequence[str] = ()
    """Known only if the version was read alone."""


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A registered model at one moment, with the versions that were read."""

    name: str
    aliases: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[int, RegisteredVersion] = field(default_factory=dict)
    """By number."""


def read_head(store: Store, name: str) -> RegisteredModel | None:
    """The model with its aliases and tags, without its versions; None if there is none."""
    with translated(store, f"reading {name}"):
        try:
            model = store.client.get_registered_model(name)
        except Exception as error:
            if not is_missing(error):
                raise
            return None
    return RegisteredModel(
        name=name,
        aliases={alias: int(version) for alias, version in dict(model.aliases).items()},
        tags=dict(model.tags),
    )


def read_model(store: Store, name: str) -> RegisteredModel:
    """The model with its aliases, its tags and all of its versions.

    The versions are read last, so that aliases and tags are not newer than they.
    """
    head = read_head(store, name)
    return RegisteredModel(name=name) if head is None else replace(head, versions=read_versions(store, name))


def read_versions(store: Store, name: str, *, above: int = 0) -> dict[int, RegisteredVersion]:
    """The versions with a higher number than `above`, in order."""
    with translated(store, f"reading the versions of {name}"):
        found = search_versions(store, f"{named(name)} AND version_number > {above}" if above else named(name))
    return {int(one.version): _read(one) for one in found}


def read_version(store: Store, name: str, number: int) -> RegisteredVersion | None:
    """One version; None if there is none of this number."""
    with translated(store, f"reading {name}/{number}"):
        try:
            return _read(store.client.get_model_version(name, str(number)))
        except Exception as error:
            if not is_missing(error):
                raise
            return None


def newest_numbers(store: Store, name: str, count: int) -> list[int]:
    """Numbers of the newest versions, newest first; none if there is no such model."""
    with translated(store, f"reading the newest versions of {name}"):
        return [int(one.version) for one in newest_versions(store, name, count)]


def _read(found: Any) -> RegisteredVersion:
    return RegisteredVersion(
        number=int(found.version),
        tags=dict(found.tags),
        aliases=sorted(found.aliases or []),
        model_id=model_id_of(found),
        run_id=found.run_id or None,
        created_ms=int(found.creation_timestamp or 0),
    )


def set_model_tag(store: Store, name: str, key: str, value: str) -> None:
    """Set one tag of a registered model."""
    with translated(store, f"tagging {name}"):
        also_where_raced(lambda: store.client.set_registered_model_tag(name, legal_name(key), cut(value, MAX_VALUE)))


def drop_model_tag(store: Store, name: str, key: str) -> None:
    """Remove a tag of a registered model."""
    with translated(store, f"untagging {name}"):
        try:
            store.client.delete_registered_model_tag(name, key)
        except Exception as error:
            if not is_missing(error):
                raise


def set_version_tags(store: Store, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Set tags of one version."""
    with translated(store, f"tagging {name}/{version}"):
        for key, value in tags.items():
            store.client.set_model_version_tag(name, str(version), legal_name(key), cut(str(value), MAX_VALUE))


def describe_version(store: Store, name: str, version: int, description: str) -> None:
    """Set the description of one version, in Markdown."""
    with translated(store, f"describing {name}/{version}"):
        store.client.update_model_version(name, str(version), cut(description, MAX_DESCRIPTION_LENGTH))
