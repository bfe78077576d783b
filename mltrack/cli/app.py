"""The commands; each is implemented in the module of its name."""

from __future__ import annotations

from typing import Any

import typer

from mltrack import __version__
from mltrack.cli.arguments import COLUMNS, LABELS, ON_BAD_RECORD, URI, flag, option
from mltrack.cli.command import BOOL, Command, Group, TaskCommand
from mltrack.cli.data_group import cache, data
from mltrack.cli.model_group import models
from mltrack.cli.parameters import spellings, takes_options, train_options

app = typer.Typer(
    name="mltrack",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than all the rest
    context_settings={"max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mltrack {__version__}")
        raise typer.Exit


@app.callback()
def _mltrack(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Fine-tune code models and keep every run in MLflow."""


runs = typer.Typer(name="runs", help="List the local runs: state, steps, best, delivery; or show one.")
app.add_typer(runs)
config = typer.Typer(name="config", help="Options of a training.", no_args_is_help=True)
app.add_typer(config)
for group in (models, data, cache):
    app.add_typer(group)


def _train(words: dict[str, str]) -> None:
    """Train a model; every option may be given to `mlflow run` with -P."""
    from mltrack.cli.train import train

    raise typer.Exit(train(words))


class _TrainCommand(TaskCommand):
    """Takes the options of `train`."""

    declared = staticmethod(train_options)
    action = staticmethod(_train)


app.command("train", cls=_TrainCommand, short_help="Train a model.")(takes_options(train_options(), _train))


DEMO = {"epochs": "1", "eval_every": "100"}
"""What `make demo` trains beside the defaults, which are code generation on the standard library."""


def _demo(words: dict[str, str]) -> None:
    """Train the demo: code generation on Python's own standard library, one epoch, nothing to download. Takes the
    options of `mltrack train`.
    """
    _train(DEMO | words)


app.command("demo", cls=Command, short_help="Train the demo; takes the options of train.")(
    takes_options(train_options(), _demo)
)


@app.command("init", cls=Command)
def _init(
    path: str = typer.Argument("mltrack.yaml", help="The file to write."),
    task: str | None = option("task", "The task, whose defaults the file names."),
    dataset_path: str | None = option("dataset_path", "Records, or stdlib."),
    model_name: str | None = option("model_name", "The model."),
    force: str | None = flag("force", "Replace a file that is there."),
) -> None:
    """Write a commented file of options for `mltrack train --config`."""
    from mltrack.cli.config_commands import init
    from mltrack.cli.parameters import as_bool

    given = {"task": task, "dataset_path": dataset_path, "model_name": model_name}
    init(path, {name: word for name, word in given.items() if word}, force=as_bool(force or "false"))


def _config_show(words: dict[str, str]) -> None:
    """The effective options of a training, and where each comes from: default, file, command line."""
    from mltrack.cli.config_commands import show

    show({name: word for name, word in words.items() if name != "output"}, words.get("output", "text"))


class _ConfigShowCommand(_TrainCommand):
    """Takes what `train` takes."""

    action = staticmethod(_config_show)


config.command("show", cls=_ConfigShowCommand, short_help="The effective options, and where each comes from.")(
    takes_options(train_options(), _config_show)
)


@app.command("predict", cls=Command)
def _predict(
    model_uri: str = typer.Option(
        ..., *spellings("model_uri"), help="models:/name@alias, models:/name/version, or a model folder."
    ),
    text: str | None = option("text", "What the model gets: a description, or code."),
    input_path: str | None = option(
        "input_path", "A file with one text a line (.txt), or records (.jsonl, .json); - is standard input as one text."
    ),
    max_new_tokens: str | None = option("max_new_tokens", "Longest completion in tokens."),
    temperature: str | None = option("temperature", "0 takes the likeliest token; higher is more random."),
    stop: list[str] = typer.Option(
        [],
        "--stop",
        help="Text that ends a completion and is not part of it; may be given several times.",
        show_default=False,
    ),
    output: str | None = option("output", "text or json.", "text"),
    tracking_uri: str | None = URI,
) -> None:
    """Ask a model: labels with scores, or completions."""
    from mltrack.cli.predict import predict

    predict(model_uri, text, input_path, max_new_tokens, temperature, stop, output or "text", tracking_uri)


@app.command("evaluate", cls=Command)
def _evaluate(
    model_uri: str = typer.Option(
        ..., *spellings("model_uri"), help="models:/name@alias, models:/name/version, or a model folder."
    ),
    dataset_path: str = typer.Option(..., *spellings("dataset_path"), help="Records to evaluate on, or stdlib."),
    columns: str | None = COLUMNS,
    labels: str | None = LABELS,
    on_bad_record: str | None = ON_BAD_RECORD,
    batch_size: str | None = option("batch_size", "Examples per batch; the result does not depend on it.", "16"),
    output: str | None = option("output", "text or json.", "text"),
    tracking_uri: str | None = URI,
) -> None:
    """Evaluate a model on a data set."""
    from mltrack.cli.predict import evaluate

    reading = {"columns": columns, "labels": labels, "on_bad_record": on_bad_record}
    evaluate(model_uri, dataset_path, batch_size or "16", output or "text", tracking_uri, reading)


@app.command("sync", cls=Command)
def _sync(
    run: list[str] = typer.Argument(None, help="Run directories or run ids.", show_default=False),
    follow: str | None = option(
        "follow", "A run directory that is being written: deliver until its trainer has ended."
    ),
    all_runs: str | None = typer.Option(
        None, "--all", help="Every run in the output folder.", metavar=BOOL, show_default=False
    ),
    output_dir: str | None = option("output_dir", "Folder of the run directories.", "mltrack-runs"),
    tracking_uri: str | None = URI,
) -> None:
    """Complete the delivery of runs to MLflow."""
    from mltrack.cli.runs_and_sync import sync_runs

    raise typer.Exit(sync_runs(run or [], follow, all_runs, output_dir or "mltrack-runs", tracking_uri))


@runs.callback(invoke_without_command=True, cls=Group)
def _runs(
    ctx: typer.Context,
    output_dir: str | None = option("output_dir", "Folder of the run directories.", "mltrack-runs"),
    output: str | None = option("output", "text or json.", "text"),
    watch: str | None = flag("watch", "Show the table anew every two seconds until Ctrl-C."),
    reap: str | None = flag("reap", "Correct MLflow runs that say RUNNING although their trainer has ended."),
    limit: str | None = option("limit", "How many of the newest runs are listed; 0: all.", "50"),
    kind: str | None = option("kind", "Only runs of this kind, such as train. Not set: all."),
    tracking_uri: str | None = URI,
) -> None:
    """List the local runs, and the MLflow runs that say RUNNING without a trainer."""
    if ctx.invoked_subcommand is not None:
        return
    from mltrack.cli.parameters import as_bool
    from mltrack.cli.runs_and_sync import list_runs

    list_runs(
        output_dir or "mltrack-runs",
        output or "text",
        reap or "false",
        tracking_uri,
        limit or "50",
        kind or None,
        watch=as_bool(watch or "false"),
    )


@runs.command("show", cls=Command, short_help="One run: result, options, data, curves, checkpoints.")
def _runs_show(
    run: str = typer.Argument(..., help="A run id or the beginning of one, or a run directory."),
    output_dir: str | None = option("output_dir", "Folder of the run directories.", "mltrack-runs"),
    output: str | None = option("output", "text or json.", "text"),
) -> None:
    """Show one run: result beside its baselines, options that differ from the defaults, data, curves, checkpoints."""
    from mltrack.cli.run_page import show_run

    show_run(run, output_dir or "mltrack-runs", output or "text")


class _ResumeCommand(Command):
    """The run may be left out in front of options of `train`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        is_left_out = bool(args) and args[0].startswith("-") and args[0] != "--help"
        return super().parse_args(ctx, ["latest", *args] if is_left_out else args)


@app.command("resume", cls=_ResumeCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _resume(
    ctx: typer.Context,
    run: str = typer.Argument("latest", help="A run id or the beginning of one; latest: the newest with a checkpoint."),
) -> None:
    """Continue a run: `mltrack train --resume RUN`, with any of its options after the run."""
    from mltrack.cli import run as run_words

    raise typer.Exit(run_words(["train", "--resume", run, *ctx.args]))


@app.command("ui", cls=Command, short_help="Open MLflow on the database of the trainings here.")
def _ui(
    run: str | None = typer.Argument(None, help="A run whose page is opened; not set: the newest.", show_default=False),
    port: str | None = option("port", "Port on 127.0.0.1; not set: a free one."),
    open_browser: str | None = typer.Option(
        "true", "--open", help="Open the page in a browser, if there is a desktop.", metavar=BOOL, show_default=False
    ),
    output_dir: str | None = option("output_dir", "Folder of the run directories.", "mltrack-runs"),
    tracking_uri: str | None = URI,
) -> None:
    """Open MLflow on the database of the trainings here, and print the address."""
    from mltrack.cli.parameters import as_bool
    from mltrack.cli.ui import ui

    opens = as_bool(open_browser or "true")
    raise typer.Exit(ui(run, tracking_uri, output_dir or "mltrack-runs", port, opens=opens))


@app.command("doctor", cls=Command)
def _doctor(tracking_uri: str | None = URI) -> None:
    """Check this machine: one line each, with the remedy."""
    from mltrack.cli.doctor import doctor

    raise typer.Exit(doctor(tracking_uri))
