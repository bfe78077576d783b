"""`mltrack init` and `mltrack config show`: a file of options, and what a training would have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mltrack.config import OPTIONS, ConfigFile, commented_config, options_of
from mltrack.errors import ConfigurationError
from mltrack.tasks import task_named

WRITTEN = ("task", "dataset_path", "model_name")
"""Options that a new file sets."""


def init(path: str, words: Mapping[str, str], *, force: bool) -> None:
    """Write a commented file of options.

    Args:
        words: values of `WRITTEN` that were typed.

    Raises:
        ConfigurationError: the file is there, or cannot be written; a value that is not accepted.
    """
    chosen = {name: words.get(name) or str(OPTIONS[name].default) for name in WRITTEN}
    for name, word in chosen.items():
        OPTIONS[name].parse(word)
    task = task_named(chosen["task"])
    text = commented_config(options_of(chosen["task"]), chosen, task.defaults(chosen["model_name"]))
    try:
        with Path(path).open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigurationError(f"{path} is there already; use --force to replace it, or name another file") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    print(f"{path} written. Edit it, then: mltrack train --config {path}")


def show(words: Mapping[str, str], output: str) -> None:
    """Print each option's effective value and where it comes from.

    Args:
        words: of the command line, `config` among them.

    Raises:
        ConfigurationError: a value that is not accepted.
    """
    OPTIONS["output"].check(output)
    typed = dict(words)
    file = ConfigFile.read(path) if (path := typed.pop("config", None)) else None
    rows = _rows(typed, file)
    if output == "json":
        print(json.dumps({name: {"value": value, "from": source} for name, value, source in rows}))
        return
    widths = [max(len(row[column]) for row in ((n, str(v)) for n, v, _ in rows)) for column in (0, 1)]
    for name, value, source in rows:
        shown = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        print(f"{name:{widths[0]}}  {shown:{min(widths[1], 40)}}  {source}".rstrip())


def _rows(typed: Mapping[str, str], file: ConfigFile | None) -> list[tuple[str, Any, str]]:
    """(name, value, source) of every option."""
    held = file.words if file is not None else {}
    words = {name: word.word for name, word in held.items()} | dict(typed)
    chosen: dict[str, Any] = {}
    options = options_of(OPTIONS["task"].parse(words.get("task", "")))
    for name, word in words.items():
        chosen[name] = options[name].parse(word)
    task = chosen.get("task", OPTIONS["task"].default)
    by_task = task_named(task).defaults(chosen.get("model_name", OPTIONS["model_name"].default))
    rows = []
    for name, option in options.items():
        if name in typed:
            source = "command line"
        elif name in held:
            source = f"{file.path if file is not None else ''}, line {held[name].line}"
        else:
            source = f"default of {task}" if option.by_task else "default"
        rows.append((name, chosen.get(name, by_task.get(name, option.default)), source))
    return rows
