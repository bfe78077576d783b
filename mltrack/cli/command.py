"""A command whose help has headings and whose booleans are also flags: `--offline` and `--no-offline`."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mltrack.cli.parameters import takes_options
from mltrack.config import ConfigFile, Option
from mltrack.config.option import TRUTHS
from mltrack.config.task_options import own_options
from mltrack.errors import ConfigurationError
from mltrack.tasks import task_names

BOOL = "BOOL"
"""Metavar of an option that takes true or false."""
_FURTHER = re.compile(r", --[\w-]+")


def as_values(words: list[str], flags: set[str], *, takes_arguments: bool = False) -> list[str]:
    """The arguments, with a value after each flag.

    A flag at the end or before another option means true; with the prefix `--no-` it means false.

    Args:
        takes_arguments: the command has arguments, so a word after a flag is its value only if it is true or false.
    """
    made: list[str] = []
    for position, word in enumerate(words):
        if word == "--":
            return made + words[position:]
        negated = word.replace("--no-", "--", 1).replace("--no_", "--", 1)
        following = words[position + 1] if position + 1 < len(words) else "-"
        alone = following.startswith("-") or (takes_arguments and following.lower() not in TRUTHS)
        if word in flags and alone:
            made += [word, "true"]
        elif word not in flags and word != negated and negated in flags:
            made += [negated, "false"]
        else:
            made.append(word)
    return made


class Command(TyperCommand):
    """`--help` shows the options under the headings of their `rich_help_panel`, in the order of their declaration."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        flags = {spelling for one in self.params if one.metavar == BOOL for spelling in one.opts}
        takes_arguments = any(one.param_type_name == "argument" for one in self.params)
        return super().parse_args(ctx, as_values(args, flags, takes_arguments=takes_arguments))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options under their headings, with the first spelling of each option."""
        shown: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            if (record := one.get_help_record(ctx)) is not None:
                panel = getattr(one, "rich_help_panel", None)
                heading = panel or ("arguments" if one.param_type_name == "argument" else "options")
                name = _FURTHER.sub("", record[0])
                if one.metavar == BOOL:
                    name = f"{one.opts[0]} / --no-{one.opts[0].removeprefix('--')}"
                shown.setdefault(heading, []).append((name, record[1]))
        for heading, records in shown.items():
            with formatter.section(heading.capitalize()):
                formatter.write_dl(records)


class TaskCommand(Command):
    """Also takes the options of a task from an installed package."""

    declared: Callable[[], dict[str, Option]]
    """The options that it always takes."""
    action: Callable[[dict[str, str]], None]
    """Gets the words that were typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        if further := task_options(args):
            made = typer.Typer(add_completion=False)
            made.command()(takes_options(self.declared() | further, self.action))
            whole = typer.main.get_command(made)
            self.params, self.callback = whole.params, whole.callback
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A group of commands that does something by itself, with flags and headings as `Command` has them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        flags = {spelling for one in self.params if one.metavar == BOOL for spelling in one.opts}
        return super().parse_args(ctx, as_values(args, flags, takes_arguments=True))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options under their headings, then the commands."""
        Command.format_options(self, ctx, formatter)  # type: ignore[arg-type]
        self.format_commands(ctx, formatter)


def _values_of(option: str, args: list[str]) -> list[str]:
    joined = [word.removeprefix(f"{option}=") for word in args if word.startswith(f"{option}=")]
    return joined + [value for word, value in pairwise(args) if word == option]


def task_options(args: list[str]) -> dict[str, Option]:
    """Options of the named task, if it is from an installed package; with --help, those of every such task."""
    if "--help" in args:
        names = task_names()
    else:
        names = _values_of("--task", args)
        for path in () if names else _values_of("--config", args):
            with suppress(ConfigurationError):  # said where the file is read again
                names += [word.word for name, word in ConfigFile.read(path).words.items() if name == "task"]
    try:
        return {option.name: option for name in names for option in own_options(name).values()}
    except ConfigurationError:  # no such task, which the check of the options reports
        return {}
