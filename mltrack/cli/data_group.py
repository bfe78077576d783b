"""`mltrack data ...` and `mltrack cache ...`."""

from __future__ import annotations

import typer

from mltrack.cli.arguments import URI, option
from mltrack.cli.command import Command, TaskCommand
from mltrack.cli.parameters import split_options, takes_options

data = typer.Typer(name="data", help="What is trained on.", no_args_is_help=True)
cache = typer.Typer(name="cache", help="The cache folder: fetched models, token ids, records.", no_args_is_help=True)

KIND = typer.Option("all", "--kind", help="all, model, tokens, records or rows (of scans).")


@cache.command("list", cls=Command)
def _cache_list(kind: str = KIND, output: str | None = option("output", "text or json.", "text")) -> None:
    """List the cache: kind, size, time of last use."""
    from mltrack.cli.cache_commands import list_cache

    list_cache(kind, output or "text")


@cache.command("clear", cls=Command, short_help="Delete what no process uses.")
def _cache_clear(kind: str = KIND, output: str | None = option("output", "text or json.", "text")) -> None:
    """Delete what no process uses; it is fetched or made again when needed."""
    from mltrack.cli.cache_commands import clear_cache

    clear_cache(kind, output or "text")


@data.command("inspect", cls=Command)
def _data_inspect(
    path: str = typer.Argument(..., help="Records, as --dataset-path of train takes them, or stdlib."),
    task: str | None = option("task", "The task; not set: by the fields of the first record."),
    model_name: str | None = option("model_name", "Whose tokenizer counts, as for train.", None),
    model_revision: str | None = option("model_revision", "Branch, tag or commit of a hub model."),
    max_length: str | None = option("max_length", "Tokens from which a record is cut; not set: by task."),
    columns: str | None = option("columns", "Which columns of the data hold what: code=func,label=target."),
    labels: str | None = option("labels", "Which class each label of the data means: 0=safe,1=unsafe."),
    on_bad_record: str | None = option(
        "on_bad_record", "stop at the first bad record, or skip: leave them out and count them."
    ),
    output: str | None = option("output", "text or json."),
) -> None:
    """What is in a data set: counts, lengths in tokens, examples."""
    from mltrack.cli.data import inspect

    given = {"task": task, "model_name": model_name, "max_length": max_length, "columns": columns, "labels": labels}
    inspect(path, {**given, "model_revision": model_revision, "on_bad_record": on_bad_record, "output": output})


@data.command("check", cls=Command, short_help="Leaks, copies, contradictions, imbalance, lengths.")
def _data_check(
    train: str = typer.Argument(..., help="Training records, as --dataset-path of train takes them, or stdlib."),
    valid: str | None = typer.Argument(None, help="Validation records.", show_default=False),
    task: str | None = option("task", "The task; not set: by the fields of the first record."),
    columns: str | None = option("columns", "Which columns of the data hold what: code=func,label=target."),
    labels: str | None = option("labels", "Which class each label of the data means: 0=safe,1=unsafe."),
    group: str | None = option("group", "A column whose equal values should be on one side."),
    on_bad_record: str | None = option(
        "on_bad_record", "stop at the first bad record, or skip: leave them out, count and write them."
    ),
    thresholds: str | None = option(
        "thresholds", "Thresholds by name: near_overlap=0.01,imbalance=20; the output names them all."
    ),
    output: str | None = option("output", "text or json."),
) -> None:
    """Leaks, copies, contradictions, imbalance, lengths, broken code; exit code 1 if a value is above its threshold."""
    from mltrack.cli.data_check import check

    given = {
        "task": task,
        "columns": columns,
        "labels": labels,
        "group": group,
        "on_bad_record": on_bad_record,
        "output": output,
    }
    raise typer.Exit(check(train, valid, given, thresholds))


@data.command("show", cls=Command, short_help="What a run was trained and evaluated on.")
def _data_show(
    run: str = typer.Argument(..., help="A run id, or a run directory."),
    output_dir: str | None = option("output_dir", "Folder of the run directories.", "mltrack-runs"),
    output: str | None = option("output", "text or json.", "text"),
    tracking_uri: str | None = URI,
) -> None:
    """What a run was trained and evaluated on, and the command that makes the same records again."""
    from mltrack.cli.data_lineage import show

    show(run, output_dir or "mltrack-runs", output or "text", tracking_uri)


def _data_split(words: dict[str, str]) -> None:
    """Count or write the training and evaluation records of a training with these options."""
    from mltrack.cli.data_lineage import split

    split(words)


class _SplitCommand(TaskCommand):
    """Takes what decides the records of a training."""

    declared = staticmethod(split_options)
    action = staticmethod(_data_split)


data.command("split", cls=_SplitCommand, short_help="The records of both sides, counted or written.")(
    takes_options(split_options(), _data_split)
)
