"""`mltrack models list|show|promote`."""

from __future__ import annotations

from mltrack import registry, store


def list_models(tracking_uri: str | None) -> None:
    """One line a registered model."""
    connected = registry.connect_existing(tracking_uri, "registered models")
    rows = store.list_models(connected)
    if not rows:
        print(f"no registered models in {connected.shown_uri}; another database is named by --tracking-uri or MLFLOW_TRACKING_URI")
    for row in rows:
        aliases = ", ".join(f"@{alias} = {version}" for alias, version in sorted(row["aliases"].items()))
        print(f"{row['name']}  {aliases or 'no alias'}")


def show_model(name: str, tracking_uri: str | None) -> None:
    """One line a version, the newest first, then the description of the newest."""
    rows = store.list_versions(registry.connect_existing(tracking_uri, name), name)
    for row in rows:
        aliases = " ".join(f"@{alias}" for alias in row["aliases"])
        figures = ", ".join(f"{key} {value:.4f}" for key, value in sorted(row["metrics"].items()) if not key.startswith("eval_f1_"))
        print(f"{name}/{row['version']}  {aliases or '-'}  {figures}  run {row['run_id']}")
    if rows and rows[0]["description"]:
        print(f"\n{rows[0]['description']}")


def promote_model(name: str, version: str, alias: str, tracking_uri: str | None) -> None:
    """Move the alias and say from where."""
    before = registry.promote(name, version, tracking_uri, alias=alias)
    print(f"{name}@{alias}: version {before or 'none'} -> {version}")
