"""The best models of the runs, by name: registered, judged against the champion, promoted, rolled back, loaded,
deleted.

Invariant: a version carries what is needed to judge it (metrics, data digests, commit) without opening its run. The
champion follows from the registry's tags, so that two concurrent writers reach the same result."""

from __future__ import annotations

from mltrack.registry.card import check_name, model_card, version_tags
from mltrack.registry.champion import alias, promote, register, rollback
from mltrack.registry.deletion import delete
from mltrack.registry.loading import (
    Parent,
    connect_existing,
    find_parent,
    folder_task,
    load,
    local_folder,
    model_folder,
    predict,
)

__all__ = [
    "Parent",
    "alias",
    "check_name",
    "connect_existing",
    "delete",
    "find_parent",
    "folder_task",
    "load",
    "local_folder",
    "model_card",
    "model_folder",
    "predict",
    "promote",
    "register",
    "rollback",
    "version_tags",
]
