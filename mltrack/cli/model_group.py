"""`mltrack models ...`: what each command does lies in `mltrack.cli.models`."""

from __future__ import annotations

import typer

from mltrack.cli.arguments import COLUMNS, LABELS, ON_BAD_RECORD, URI, flag, option
from mltrack.cli.command import Command

models = typer.Typer(name="models", help="The model registry.", no_args_is_help=True)


@models.command("list", cls=Command)
def _models_list(
    output: str | None = option("output", "text or json.", "text"), tracking_uri: str | None = URI
) -> None:
    """The registered models and their aliases."""
    from mltrack.cli.models import list_models

    list_models(tracking_uri, output or "text")


@models.command("show", cls=Command, short_help="The versions of a model, and its champions.")
def _models_show(
    name: str = typer.Argument(..., help="A registered model."),
    output: str | None = option("output", "text or json.", "text"),
    tracking_uri: str | None = URI,
) -> None:
    """The versions of a model: figures, what each was trained from, who was champion when and why."""
    from mltrack.cli.models import show_model

    show_model(name, tracking_uri, output or "text")


@models.command("promote", cls=Command)
def _models_promote(
    name: str = typer.Argument(..., help="A registered model."),
    version: str | None = option("version", "Its version; default with --dataset-path: the challenger."),
    alias: str | None = option("alias", "The alias that moves.", "champion"),
    dataset_path: str | None = option(
        "dataset_path", "Records, or stdlib: evaluate the version and the champion on them; the better one is champion."
    ),
    columns: str | None = COLUMNS,
    labels: str | None = LABELS,
    on_bad_record: str | None = ON_BAD_RECORD,
    promote_margin: str | None = option("promote_margin", "By how much it must be better; not set: that of its run."),
    batch_size: str | None = option("batch_size", "Examples per batch; the result does not depend on it.", "16"),
    output: str | None = option("output", "text or json.", "text"),
    tracking_uri: str | None = URI,
) -> None:
    """Move an alias to a version by hand, or let a data set decide."""
    from mltrack.cli.models import promote_model

    reading = {"columns": columns, "labels": labels, "on_bad_record": on_bad_record}
    promote_model(
        name,
        version,
        alias or "champion",
        dataset_path,
        promote_margin,
        batch_size or "16",
        output or "text",
        tracking_uri,
        reading,
    )


@models.command("rollback", cls=Command)
def _models_rollback(
    name: str = typer.Argument(..., help="A registered model."), tracking_uri: str | None = URI
) -> None:
    """Make the champion before the present one champion again."""
    from mltrack.cli.models import rollback_model

    rollback_model(name, tracking_uri)


@models.command("delete", cls=Command)
def _models_delete(
    name: str = typer.Argument(..., help="A registered model."),
    version: str | None = option("version", "Its version; not set: the whole model."),
    force: str | None = flag("force", "Also delete a champion, or a version with another alias of yours."),
    keep_files: str | None = flag("keep_files", "Only the registry's entry. The files stay with the run."),
    tracking_uri: str | None = URI,
) -> None:
    """Delete a version, or a whole registered model, with its files."""
    from mltrack.cli.models import delete_model

    delete_model(name, version, force or "false", keep_files or "false", tracking_uri)
