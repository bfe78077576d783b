"""`mltrack data inspect`: an overview of a data set before training."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from mltrack.config import OPTIONS
from mltrack.errors import DatasetError
from mltrack.tasks import all_tasks, task_named
from mltrack.tasks.contract import Task

if TYPE_CHECKING:
    from mltrack.data.loader import DatasetLoader
    from mltrack.data.overview import Inspection

_TRAINED_ON = 2000
"""Records for the tokenizer of a scratch model here; a training uses its whole training split."""
_GUESSED_FROM = 100
"""Records of each file that are examined to guess the task."""
_BAR = 40
_EXAMPLE_LINES = 8


def inspect(path: str, words: Mapping[str, str | None]) -> None:
    """Print an overview of a data set.

    Args:
        path: as for `--dataset-path` of a training.
        words: options of `mltrack train` for reading and tokenizing, and `output`; None for each one not given.
    """
    values = {
        name: OPTIONS[name].default if word is None else OPTIONS[name].parse(word) for name, word in words.items()
    }
    task = task_named(values["task"]) if words["task"] is not None else guessed_task(path, values["columns"])
    name = values["model_name"]
    max_length = values["max_length"] or task.defaults(name)["max_length"]
    from mltrack.data.loader import DatasetLoader
    from mltrack.data.overview import evenly, inspect_records

    loader = DatasetLoader(
        path,
        task=task,
        max_length=max_length,
        **{option: values[option] for option in ("columns", "labels", "on_bad_record")},
    )
    records = loader.records  # invalid data is reported before the model is resolved
    from mltrack.models import resolve_model

    source = resolve_model(name, task, revision=values["model_revision"])
    if source.kind == "scratch":
        source.train_tokenizer(
            text for record in evenly(records, _TRAINED_ON) for text in (record.description, record.text) if text
        )
    found = inspect_records(loader, source.tokenizer)
    if values["output"] == "json":
        bins = [[one.first, one.last, one.count] for one in found.histogram]
        print(
            json.dumps({**found.statistics, "model_name": name, "token_histogram": bins, "bad_records": loader.skipped})
        )
        return
    tokenizer = f"tokenizer of {name}" + (
        f", trained on {min(_TRAINED_ON, len(records)):,} of the records" if source.kind == "scratch" else ""
    )
    _print(found, loader, tokenizer, told_task=words["task"] is not None)


def guessed_task(path: str, columns: str | None) -> Task:
    """The first task whose fields the first record has; the default task for the built-in source.

    Raises:
        DatasetError: the first records have the fields of no task.
    """
    from mltrack.config.pairs import parse_pairs
    from mltrack.records.builtin.stdlib_source import STDLIB
    from mltrack.records.readers import find_sources
    from mltrack.records.record import listed

    default, names = task_named(OPTIONS["task"].default), parse_pairs(columns) if columns else {}
    if path == STDLIB:
        return default
    first: DatasetError | None = None
    for source in find_sources(path):
        for raw in islice(source.raw_records(), _GUESSED_FROM):
            if not isinstance(raw.value, Mapping):
                continue
            tasks = all_tasks()
            telling = [task.fields[-1] if task.has_classes else task.fields[0] for task in tasks]
            for task, field in zip(tasks, telling, strict=True):
                if names.get(field, field) in raw.value:
                    return task
            if first is None:
                shown = [f"'{names.get(field, field)}'" for field in dict.fromkeys(telling)]
                wanted = ", or ".join(dict.fromkeys(" and ".join(task.fields) for task in tasks))
                first = DatasetError(
                    f"has the fields {listed(raw.value)}, neither {' nor '.join(shown)}; a record needs {wanted}"
                    " (--columns label=COLUMN names another column)",
                    path=source.name,
                    record=raw.number,
                )
    if first is not None:
        raise first
    return default


def _print(found: Inspection, loader: DatasetLoader, tokenizer: str, *, told_task: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    numbers = found.statistics
    guessed = "" if told_task else " (another one: --task)"
    duplicates = numbers["records"] - numbers["distinct"]
    part = "" if numbers["tokenized"] == numbers["records"] else f", of {numbers['tokenized']:,} records evenly spread"
    lines = [
        ("source", f"{numbers['source']}"),
        ("task", f"{numbers['task']}{guessed}"),
        ("digest", numbers["digest"][:36]),
        (
            "records",
            f"{numbers['records']:,}"
            + (f", {duplicates:,} of them copies of another" if duplicates else ", no two alike"),
        ),
        *(
            [("skipped", f"{numbers['skipped']:,} of {numbers['read']:,} records that were read")]
            if numbers["skipped"]
            else []
        ),
        ("characters", _percentile_line(numbers["characters"])),
        ("tokens", f"{_percentile_line(numbers['tokens'])} ({tokenizer}{part})"),
        ("truncated", f"{numbers['truncated']:.1%} are longer than max_length={numbers['max_length']}"),
    ]
    for name, value in lines:
        console.print(Text(f"{name:<12}{value}"))
    for line in loader.skipped:
        console.print(Text(f"skipped: {line}"))
    if numbers["classes"]:
        console.print(
            _bars(
                "class",
                [(label, count) for label, count in list(numbers["classes"].items())[:50]],
                numbers["records"],
                Table,
                Text,
            )
        )
    bins = [
        (f"{one.first:,}-{one.last:,}" if one.last > one.first else f"{one.first:,}", one.count)
        for one in found.histogram
    ]
    console.print(_bars("tokens", bins, numbers["tokenized"], Table, Text))
    for record in found.examples:
        what = "" if record.label is None else f", label {record.label!r}"
        console.print(Text(f"\n{record.location}{what}", style="bold"))
        if record.description:
            console.print(Text(_beginning(record.description), style="italic"))
        console.print(Text(_beginning(record.text)))


def _bars(name: str, counts: list[tuple[str, int]], whole: int, table_class: Any, text_class: Any) -> Any:
    """A table of counts with a bar each, scaled to the largest count."""
    table = table_class(box=None, pad_edge=False)
    for header, side in (
        (name, "right" if name == "tokens" else "left"),
        ("records", "right"),
        ("share", "right"),
        ("", "left"),
    ):
        table.add_column(header, justify=side, no_wrap=True)
    most = max((count for _, count in counts), default=0) or 1
    for label, count in counts:
        bar = "#" * max(round(_BAR * count / most), 1 if count else 0)
        table.add_row(
            text_class(label if len(label) <= 40 else label[:37] + "..."),
            f"{count:,}",
            f"{count / whole:.1%}",
            text_class(bar),
        )
    return table


def _percentile_line(found: Mapping[str, int]) -> str:
    return "  ".join(f"{name} {found[name]:,}" for name in ("min", "p5", "p50", "p95", "p99", "max"))


def _beginning(text: str) -> str:
    """The first lines of a text, without control characters."""
    lines = text.strip("\n").splitlines()
    shown = [
        "".join(c if c.isprintable() or c == "\t" else "?" for c in line[:140]) + ("..." if len(line) > 140 else "")
        for line in lines[:_EXAMPLE_LINES]
    ]
    return "\n".join(
        "    " + line
        for line in [
            *shown,
            *([f"... {len(lines) - _EXAMPLE_LINES} more lines"] if len(lines) > _EXAMPLE_LINES else []),
        ]
    )
