"""Options that several commands declare."""

from __future__ import annotations

import typer

from mltrack.cli.command import BOOL
from mltrack.cli.parameters import completion, spellings
from mltrack.config import OPTIONS

URI = typer.Option(
    None,
    *spellings("tracking_uri"),
    help="MLflow tracking URI; not set: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here.",
    show_default=False,
)


def option(name: str, help: str, default: str | None = None) -> str | None:
    offered = completion(OPTIONS[name]) if name in OPTIONS else None
    return typer.Option(default, *spellings(name), help=help, show_default=default is not None, autocompletion=offered)


COLUMNS = option("columns", "Which columns of the data hold what: code=func,label=target.")
LABELS = option("labels", "Which class each label of the data means: 0=safe,1=unsafe.")
ON_BAD_RECORD = option("on_bad_record", "stop at the first bad record, or skip: leave them out, count and write them.")


def flag(name: str, help: str) -> str | None:
    return typer.Option("false", *spellings(name), help=help, metavar=BOOL, show_default=False)
