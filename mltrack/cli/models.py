"""`mltrack models list|show|promote|rollback|delete`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mltrack import registry, store
from mltrack.addresses import redacted
from mltrack.cli.parameters import as_bool, reading_options
from mltrack.config import OPTIONS, Option
from mltrack.errors import ConfigurationError, printable
from mltrack.registry import gate, history, loading
from mltrack.store import model_tags

_BATCH_SIZE = Option(name="batch_size", kind="int", minimum=1, help="")
_MARGIN = OPTIONS["promote_margin"]


def list_models(tracking_uri: str | None, output: str) -> None:
    """Print one line per registered model."""
    OPTIONS["output"].check(output)
    connected = registry.connect_existing(tracking_uri, "registered models")
    rows = redacted(store.list_models(connected))
    if output == "json":
        print(
            json.dumps(
                [{key: row[key] for key in ("name", "aliases", "tags", "created_ms", "updated_ms")} for row in rows]
            )
        )
        return
    if not rows:
        print(
            f"no registered models in {connected.shown_uri}; another database is named by --tracking-uri or"
            " MLFLOW_TRACKING_URI"
        )
    for row in rows:
        aliases = ", ".join(f"@{alias} = {version}" for alias, version in sorted(row["aliases"].items()))
        print(printable(f"{row['name']}  {aliases or 'no alias'}"))


def show_model(name: str, tracking_uri: str | None, output: str) -> None:
    """Print each version, the newest first, with origin and decision; the champions in order; the newest card."""
    OPTIONS["output"].check(output)
    connected = registry.connect_existing(tracking_uri, name)
    rows = redacted(store.list_versions(connected, name))
    head = model_tags.read_head(connected, name)
    changes = history.read_history(head.tags) if head is not None else []
    if output == "json":
        print(
            json.dumps(
                {
                    "name": name,
                    "versions": rows,
                    "champions": [{**json.loads(change.text), "by": change.kind} for change in changes],
                }
            )
        )
        return
    for row in rows:
        _show_version(name, row)
    if changes:
        print("\nchampions:")
    for change in changes:
        print(
            printable(
                f"  {change.when}  {_shown(change.before)} -> {_shown(change.version)}  {change.kind}: {change.why}"
            )
        )
    if rows and rows[0]["description"]:
        print(printable(f"\n{rows[0]['description']}", but="\n\t"))


def _show_version(name: str, row: dict[str, Any]) -> None:
    aliases = " ".join(f"@{alias}" for alias in row["aliases"])
    figures = ", ".join(
        f"{key} {value:.4f}" for key, value in sorted(row["metrics"].items()) if not key.startswith("eval_f1_")
    )
    lines = [f"{name}/{row['version']}  {aliases or '-'}  {figures}  run {row['run_id']}"]
    tags = row["tags"]
    if loading.PARENT in tags:
        run = f" of run {tags[loading.PARENT_RUN]}" if loading.PARENT_RUN in tags else ""
        lines.append(f"    trained from {tags[loading.PARENT]}{run}")
    if gate.DECISION in tags:
        lines.append(f"    {tags[gate.DECISION]}")
    if command := gate.open_command(name, int(row["version"]), tags):
        lines.append(f"    decide: {command}")
    for line in lines:
        print(printable(line))


def promote_model(
    name: str,
    version: str | None,
    alias: str,
    dataset_path: str | None,
    margin: str | None,
    batch_size: str,
    output: str,
    tracking_uri: str | None,
    words: Mapping[str, str | None],
) -> None:
    """Move the alias and print from where; with a data set, only if the version beats the champion on it."""
    OPTIONS["output"].check(output)
    size = _BATCH_SIZE.parse(batch_size)
    least = None if margin is None else _MARGIN.parse(margin)
    reading = reading_options(words)
    if dataset_path is None:
        if version is None:
            raise ConfigurationError(
                f"promote needs --version N, or --dataset-path FILE to evaluate {name}@challenger and"
                f" {name}@champion on it"
            )
        if least is not None:
            raise ConfigurationError(
                "promote_margin works only with --dataset-path; by hand there is nothing to compare"
            )
        if given := [option for option, word in words.items() if word is not None]:
            raise ConfigurationError(
                f"{given[0]}='{words[given[0]]}' needs --dataset-path: it says how those records are read"
            )
        before = registry.promote(name, version, tracking_uri, alias=alias)
        _say(
            output,
            {"name": name, "alias": alias, "before": before, "version": version},
            f"{name}@{alias}: version {before or 'none'} -> {version}",
        )
        return
    if alias != "champion":
        raise ConfigurationError(f"alias must be champion with --dataset-path, not '{alias}'")
    from mltrack.cli.predict import quiet, to_stderr
    from mltrack.registry.duel import promote_on

    quiet()
    beside = to_stderr if reading["on_bad_record"] == "skip" else lambda line: None
    notice = beside if output == "json" else print
    duel = promote_on(
        name, dataset_path, version, tracking_uri, margin=least, batch_size=size, notice=notice, reading=reading
    )
    moved = (
        f"version {_shown(duel.champion)} -> {duel.challenger}"
        if duel.promoted
        else f"stays version {_shown(duel.champion)}"
    )
    _say(output, {"name": name, **vars(duel)}, f"{name}@champion: {moved}: version {duel.challenger}: {duel.why}")


def rollback_model(name: str, tracking_uri: str | None) -> None:
    """Restore the champion before the present one."""
    change = registry.rollback(name, tracking_uri)
    print(f"{name}@champion: version {_shown(change.before)} -> {_shown(change.version)}")


def delete_model(name: str, version: str | None, force: str, keep_files: str, tracking_uri: str | None) -> None:
    """Delete a version or a whole model, and print what was deleted."""
    for line in registry.delete(name, version, tracking_uri, force=as_bool(force), keep_files=as_bool(keep_files)):
        print(line)


def _say(output: str, values: dict[str, Any], line: str) -> None:
    print(json.dumps(values) if output == "json" else line)


def _shown(version: int | None) -> str:
    return "none" if version is None else str(version)
