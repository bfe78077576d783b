"""The commands; each is implemented in the module of its name."""

from __future__ import annotations

from typing import Any

import typer

from mltrack import __version__
from mltrack.cli.command import BOOL, Command, Group, task_options
from mltrack.cli.parameters import completion, spellings, split_options, takes_options, train_options
from mltrack.config import OPTIONS

app = typer.Typer(
    name="mltrack",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than all the rest
    context_settings={"max_content_width": 100},
)
models = typer.Typer(name="models", help="The model registry.", no_args_is_help=True)
app.add_typer(models)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mltrack {__version__}")
        raise typer.Exit


@app.callback()
def _mltrack(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Fine-tune code models and keep every run in MLflow."""


data = typer.Typer(name="data", help="What is trained on.", no_args_is_help=True)
app.add_typer(data)
runs = typer.Typer(name="runs", help="List the local runs: state, steps, best, delivery; or show one.")
app.add_typer(runs)
config = typer.Typer(name="config", help="Options of a training.", no_args_is_help=True)
app.add_typer(config)
cache = typer.Typer(name="cache", help="The cache folder: fetched models, token ids, records.", no_args_is_help=True)
app.add_typer(cache)

URI = typer.Option(
    None,
    *spellings("tracking_uri"),
    help="MLflow tracking URI; not set: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here.",
    show_default=False,
)


def _option(name: str, help: str, default: str | None = None) -> str | None:
    offered = completion(OPTIONS[name]) if name in OPTIONS else None
    return typer.Option(default, *spellings(name), help=help, show_default=default is not None, autocompletion=offered)


COLUMNS = _option("columns", "Which columns of the data hold what: code=func,label=target.")
LABELS = _option("labels", "Which class each label of the data means: 0=safe,1=unsafe.")
ON_BAD_RECORD = _option("on_bad_record", "stop at the first bad record, or skip: leave them out, count and write them.")


def _flag(name: str, help: str) -> str | None:
    return typer.Option("false", *spellings(name), help=help, metavar=BOOL, show_default=False)


def _train(words: dict[str, str]) -> None:
    """Train a model; every option may be given to `mlflow run` with -P."""
    from mltrack.cli.train import train

    raise typer.Exit(train(words))


class _TrainCommand(Command):
    """Also takes the options of a task from an installed package."""

    action = staticmethod(_train)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        if further := task_options(args):
            made = typer.Typer(add_completion=False)
            made.command()(takes_options(train_options() | further, self.action))
            whole = typer.main.get_command(made)
            self.params, self.callback = whole.params, whole.callback
        return super().parse_args(ctx, args)


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
    task: str | None = _option("task", "The task, whose defaults the file names."),
    dataset_path: str | None = _option("dataset_path", "Records, or stdlib."),
    model_name: str | None = _option("model_name", "The model."),
    force: str | None = _flag("force", "Replace a file that is there."),
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
    text: str | None = _option("text", "What the model gets: a description, or code."),
    input_path: str | None = _option(
        "input_path", "A file with one text a line (.txt), or records (.jsonl, .json); - is standard input as one text."
    ),
    max_new_tokens: str | None = _option("max_new_tokens", "Longest completion in tokens."),
    temperature: str | None = _option("temperature", "0 takes the likeliest token; higher is more random."),
    stop: list[str] = typer.Option(
        [],
        "--stop",
        help="Text that ends a completion and is not part of it; may be given several times.",
        show_default=False,
    ),
    output: str | None = _option("output", "text or json.", "text"),
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
    batch_size: str | None = _option("batch_size", "Examples per batch; the result does not depend on it.", "16"),
    output: str | None = _option("output", "text or json.", "text"),
    tracking_uri: str | None = URI,
) -> None:
    """Evaluate a model on a data set."""
    from mltrack.cli.predict import evaluate

    reading = {"columns": columns, "labels": labels, "on_bad_record": on_bad_record}
    evaluate(model_uri, dataset_path, batch_size or "16", output or "text", tracking_uri, reading)


@app.command("sync", cls=Command)
def _sync(
    run: list[str] = typer.Argument(None, help="Run directories or run ids.", show_default=False),
    follow: str | None = _option(
        "follow", "A run directory that is being written: deliver until its trainer has ended."
    ),
    all_runs: str | None = typer.Option(
        None, "--all", help="Every run in the output folder.", metavar=BOOL, show_default=False
    ),
    output_dir: str | None = _option("output_dir", "Folder of the run directories.", "mltrack-runs"),
    tracking_uri: str | None = URI,
) -> None:
    """Complete the delivery of runs to MLflow."""
    from mltrack.cli.runs_and_sync import sync_runs

    raise typer.Exit(sync_runs(run or [], follow, all_runs, output_dir or "mltrack-runs", tracking_uri))


@runs.callback(invoke_without_command=True, cls=Group)
def _runs(
    ctx: typer.Context,
    output_dir: str | None = _option("output_dir", "Folder of the run directories.", "mltrack-runs"),
    output: str | None = _option("output", "text or json.", "text"),
    watch: str | None = _flag("watch", "Show the table anew every two seconds until Ctrl-C."),
    reap: str | None = _flag("reap", "Correct MLflow runs that say RUNNING although their trainer has ended."),
    limit: str | None = _option("limit", "How many of the newest runs are listed; 0: all.", "50"),
    kind: str | None = _option("kind", "Only runs of this kind, such as train. Not set: all."),
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
    output_dir: str | None = _option("output_dir", "Folder of the run directories.", "mltrack-runs"),
    output: str | None = _option("output", "text or json.", "text"),
) -> None:
    """Show one run: result beside its baselines, options that differ from the defaults, data, curves, checkpoints."""
    from mltrack.cli.run_page import show_run

    show_run(run, output_dir or "mltrack-runs", output or "text")


@app.command("resume", cls=Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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
    port: str | None = _option("port", "Port on 127.0.0.1; not set: a free one."),
    open_browser: str | None = typer.Option(
        "true", "--open", help="Open the page in a browser, if there is a desktop.", metavar=BOOL, show_default=False
    ),
    output_dir: str | None = _option("output_dir", "Folder of the run directories.", "mltrack-runs"),
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


@models.command("list", cls=Command)
def _models_list(
    output: str | None = _option("output", "text or json.", "text"), tracking_uri: str | None = URI
) -> None:
    """The registered models and their aliases."""
    from mltrack.cli.models import list_models

    list_models(tracking_uri, output or "text")


@models.command("show", cls=Command, short_help="The versions of a model, and its champions.")
def _models_show(
    name: str = typer.Argument(..., help="A registered model."),
    output: str | None = _option("output", "text or json.", "text"),
    tracking_uri: str | None = URI,
) -> None:
    """The versions of a model: figures, what each was trained from, who was champion when and why."""
    from mltrack.cli.models import show_model

    show_model(name, tracking_uri, output or "text")


@models.command("promote", cls=Command)
def _models_promote(
    name: str = typer.Argument(..., help="A registered model."),
    version: str | None = _option("version", "Its version; default with --dataset-path: the challenger."),
    alias: str | None = _option("alias", "The alias that moves.", "champion"),
    dataset_path: str | None = _option(
        "dataset_path", "Records, or stdlib: evaluate the version and the champion on them; the better one is champion."
    ),
    columns: str | None = COLUMNS,
    labels: str | None = LABELS,
    on_bad_record: str | None = ON_BAD_RECORD,
    promote_margin: str | None = _option("promote_margin", "By how much it must be better; not set: that of its run."),
    batch_size: str | None = _option("batch_size", "Examples per batch; the result does not depend on it.", "16"),
    output: str | None = _option("output", "text or json.", "text"),
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
    version: str | None = _option("version", "Its version; not set: the whole model."),
    force: str | None = _flag("force", "Also delete a champion, or a version with another alias of yours."),
    keep_files: str | None = _flag("keep_files", "Only the registry's entry. The files stay with the run."),
    tracking_uri: str | None = URI,
) -> None:
    """Delete a version, or a whole registered model, with its files."""
    from mltrack.cli.models import delete_model

    delete_model(name, version, force or "false", keep_files or "false", tracking_uri)


KIND = typer.Option("all", "--kind", help="all, model, tokens, records or rows (of scans).")


@cache.command("list", cls=Command)
def _cache_list(kind: str = KIND, output: str | None = _option("output", "text or json.", "text")) -> None:
    """List the cache: kind, size, time of last use."""
    from mltrack.cli.cache_commands import list_cache

    list_cache(kind, output or "text")


@cache.command("clear", cls=Command, short_help="Delete what no process uses.")
def _cache_clear(kind: str = KIND, output: str | None = _option("output", "text or json.", "text")) -> None:
    """Delete what no process uses; it is fetched or made again when needed."""
    from mltrack.cli.cache_commands import clear_cache

    clear_cache(kind, output or "text")


@data.command("inspect", cls=Command)
def _data_inspect(
    path: str = typer.Argument(..., help="Records, as --dataset-path of train takes them, or stdlib."),
    task: str | None = _option("task", "The task; not set: by the fields of the first record."),
    model_name: str | None = _option("model_name", "Whose tokenizer counts, as for train.", None),
    model_revision: str | None = _option("model_revision", "Branch, tag or commit of a hub model."),
    max_length: str | None = _option("max_length", "Tokens from which a record is cut; not set: by task."),
    columns: str | None = _option("columns", "Which columns of the data hold what: code=func,label=target."),
    labels: str | None = _option("labels", "Which class each label of the data means: 0=safe,1=unsafe."),
    on_bad_record: str | None = _option(
        "on_bad_record", "stop at the first bad record, or skip: leave them out and count them."
    ),
    output: str | None = _option("output", "text or json."),
) -> None:
    """What is in a data set: counts, lengths in tokens, examples."""
    from mltrack.cli.data import inspect

    given = {"task": task, "model_name": model_name, "max_length": max_length, "columns": columns, "labels": labels}
    inspect(path, {**given, "model_revision": model_revision, "on_bad_record": on_bad_record, "output": output})


@data.command("check", cls=Command, short_help="Leaks, copies, contradictions, imbalance, lengths.")
def _data_check(
    train: str = typer.Argument(..., help="Training records, as --dataset-path of train takes them, or stdlib."),
    valid: str | None = typer.Argument(None, help="Validation records.", show_default=False),
    task: str | None = _option("task", "The task; not set: by the fields of the first record."),
    columns: str | None = _option("columns", "Which columns of the data hold what: code=func,label=target."),
    labels: str | None = _option("labels", "Which class each label of the data means: 0=safe,1=unsafe."),
    group: str | None = _option("group", "A column whose equal values should be on one side."),
    on_bad_record: str | None = _option(
        "on_bad_record", "stop at the first bad record, or skip: leave them out, count and write them."
    ),
    thresholds: str | None = _option(
        "thresholds", "Thresholds by name: near_overlap=0.01,imbalance=20; the output names them all."
    ),
    output: str | None = _option("output", "text or json."),
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
    output_dir: str | None = _option("output_dir", "Folder of the run directories.", "mltrack-runs"),
    output: str | None = _option("output", "text or json.", "text"),
    tracking_uri: str | None = URI,
) -> None:
    """What a run was trained and evaluated on, and the command that makes the same records again."""
    from mltrack.cli.data_lineage import show

    show(run, output_dir or "mltrack-runs", output or "text", tracking_uri)


def _data_split(words: dict[str, str]) -> None:
    """Count or write the training and evaluation records of a training with these options."""
    from mltrack.cli.data_lineage import split

    split(words)


data.command("split", cls=Command, short_help="The records of both sides, counted or written.")(
    takes_options(split_options(), _data_split)
)
