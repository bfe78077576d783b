"""Deletes a version or a whole registered model, with its bytes.

Invariant: a version with an alias other than challenger is deleted only by force; bytes that another version uses are
kept.
"""

from __future__ import annotations

import shlex

from mltrack.errors import TrackingError
from mltrack.registry.champion import CHALLENGER, CHAMPION, decide, existing_model, existing_version
from mltrack.registry.loading import connect_existing
from mltrack.store import Store, logged_models, model_tags, registry
from mltrack.store.model_tags import RegisteredModel

_SAID = {
    "pruned": "{id}: its files were deleted",
    "registered": "{id}: its files stay, because another version uses them",
    "gone": "{id}: its files were gone already",
    "foreign": "{id}: nothing of it was deleted, because its folder holds something else",
}


def delete(
    name: str,
    version: str | int | None = None,
    tracking_uri: str | None = None,
    *,
    force: bool = False,
    keep_files: bool = False,
) -> list[str]:
    """Delete one version, or all of a model.

    Args:
        name: of the registered model.
        version: its number; None: the whole model.
        tracking_uri: of the store.
        force: also delete versions with an alias other than challenger.
        keep_files: delete only the entry in the registry; the logged model stays with its run.

    Returns:
        What was done, one line each.

    Raises:
        TrackingError: no such model or version, or it has an alias and `force` is False; nothing was deleted.
    """
    connected = connect_existing(tracking_uri, name)
    model = existing_model(connected, name)
    versions = (
        model_tags.read_versions(connected, name)
        if version is None
        else {(one := existing_version(connected, model, version)).number: one}
    )
    numbers = list(versions)
    _refuse_used(model, numbers, force)
    if version is None:
        registry.delete_model(connected, name)
        lines = [f"{name}: deleted with its versions {', '.join(str(number) for number in numbers)}"]
    else:
        lines = _delete_version(connected, model, numbers[0])
    model_ids = [model_id for number in numbers if (model_id := versions[number].model_id)]
    if keep_files:
        return [*lines, *(f"{model_id}: its files stay, as a model of its run" for model_id in model_ids)]
    return [*lines, *(_SAID[logged_models.prune(connected, model_id)].format(id=model_id) for model_id in model_ids)]


def _delete_version(connected: Store, model: RegisteredModel, number: int) -> list[str]:
    held = sorted(alias for alias, version in model.aliases.items() if version == number)
    if CHAMPION in held:  # recorded first: a run that registers meanwhile must not restore it
        decide(connected, model.name, None, kind="delete", why=f"version {number} was deleted")
    registry.delete_version(connected, model.name, number)
    lines = [
        f"{model.name}/{number}: deleted"
        + (f", and with it {', '.join('@' + alias for alias in held)}" if held else "")
    ]
    if CHAMPION in held:
        lines.append(
            f"{model.name} has no champion now; the next run's best becomes it, or mltrack models rollback"
            f" {shlex.quote(model.name)} restores the one before"
        )
    return lines


def _refuse_used(model: RegisteredModel, numbers: list[int], force: bool) -> None:
    used = {
        alias: number for alias, number in sorted(model.aliases.items()) if number in numbers and alias != CHALLENGER
    }
    if used and not force:
        shown = ", ".join(f"@{alias} (version {number})" for alias, number in used.items())
        raise TrackingError(
            f"{model.name}: {shown} would be deleted, and what loads by it would fail; use --force true, or"
            " choose another version"
        )
