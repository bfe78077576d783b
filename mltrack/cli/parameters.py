"""Command-line options made from the declarations in `mltrack.config`: each takes a value and accepts `--a-b` and
`--a_b`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

from mltrack.config import DATA_OPTIONS, GROUPS, OPTIONS, Option


def described(option: Option) -> str:
    """Help text of an option, with the accepted values (unless its kind implies them) and the default."""
    says_more = option.choices or option.kind in ("int", "float", "interval", "pairs")
    default = "by task" if option.by_task else str(option.default).lower()
    facts = [option.accepted] * bool(says_more) + [f"default: {default}"] * (
        option.by_task or option.default is not None
    )
    return f"{option.help} [{'; '.join(facts)}]" if facts else option.help


def spellings(name: str) -> list[str]:
    """`--learning-rate` and `--learning_rate`."""
    return list(dict.fromkeys(["--" + name.replace("_", "-"), "--" + name]))


def completion(option: Option) -> Callable[[str], list[str]] | None:
    """The shell's completions of a value; None: the shell's own, such as files."""
    words = ("true", "false") if option.kind == "bool" else option.choices
    if option.kind == "pairs" or not words:
        return None
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def takes_options(names: Mapping[str, Option], command: Callable[[dict[str, str]], None]) -> Callable[..., None]:
    """A Typer command with one text option per name; `command` gets the given ones."""

    def run(**words: str | None) -> None:
        command({name: word for name, word in words.items() if word is not None})

    parameters = []
    for name, option in names.items():
        declared = typer.Option(
            None,
            *spellings(name),
            *(spellings(option.formerly) if option.formerly else ()),
            help=described(option),
            metavar=option.kind.upper(),
            show_default=False,
            rich_help_panel=option.group or None,
            autocompletion=completion(option),
        )
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=declared, annotation=str | None)
        )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.__doc__
    return run


CONFIG = Option(
    name="config",
    kind="path",
    group=[*GROUPS][-1],
    help="A YAML file of options, as `mltrack init` writes one. The command line wins over it.",
)


def train_options() -> dict[str, Option]:
    """All options of `mltrack train`."""
    return {**OPTIONS, "config": CONFIG}


READING = ("columns", "labels", "on_bad_record")
"""The options of `mltrack train` for reading the records of any data path."""


def reading_options(words: Mapping[str, str | None]) -> dict[str, Any]:
    """The values of `READING`; defaults for those not given.

    Raises:
        ConfigurationError: an invalid value.
    """
    return {
        name: OPTIONS[name].default if (word := words.get(name)) is None else OPTIONS[name].parse(word)
        for name in READING
    }


def split_options() -> dict[str, Option]:
    """The options of `mltrack data split`: those of `train` that decide the two sides, and the output."""
    folder = Option(
        name="output_dir",
        kind="path",
        help="Folder for train.jsonl and evaluation.jsonl; not set: the records are only counted.",
    )
    digests = Option(
        name="digests",
        kind="text",
        help="TRAINING,EVALUATION: what the digests must begin with, as `mltrack data show` names them.",
    )
    return DATA_OPTIONS | {
        "digests": digests,
        "output_dir": folder,
        "output": OPTIONS["output"],
    }


def markdown_table() -> str:
    """The table of docs/options.md."""
    rows = ["| option | accepted | default | meaning |", "|---|---|---|---|"]
    for option in OPTIONS.values():
        default = (
            "by task" if option.by_task else ("-" if option.default is None else f"`{str(option.default).lower()}`")
        )
        accepted = option.accepted.replace("|", r"\|")
        rows.append(f"| `{option.name}` | {accepted} | {default} | {option.help.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def as_bool(word: Any) -> bool:
    """A boolean option of a command other than `train`."""
    return bool(Option(name="flag", kind="bool", help="").parse(str(word)))


def without_empty(command: Any, words: Sequence[str]) -> list[str]:
    """The arguments without options of empty value: `mlflow run -P name=` means that the option is not set."""
    kept: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            return [*kept, word, *waiting]
        name, equals, value = word.partition("=")
        given = [word]
        if name in {
            spelling
            for parameter in command.params
            if parameter.param_type_name == "option"
            for spelling in parameter.opts
        }:
            if not equals and waiting and not waiting[0].startswith("-"):
                value = waiting.pop(0)
                given.append(value)
            if not value and (equals or len(given) == 2):
                continue
        else:
            command = getattr(command, "commands", {}).get(word, command)
        kept += given
    return kept
