"""`mltrack data check TRAIN [VALID]`: leaks, copies, contradictions, imbalance, lengths, broken code; exit code 1 above
a threshold.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mltrack.config import OPTIONS, Option
from mltrack.config.pairs import parse_pairs
from mltrack.tasks import task_named

if TYPE_CHECKING:
    from mltrack.data.loader import DatasetLoader
    from mltrack.records.check import DataReport


def check(train: str, valid: str | None, words: Mapping[str, str | None], thresholds: str | None = None) -> int:
    """Print the report of these records; returns 1 if a value is above its threshold, else 0.

    Records that `on_bad_record=skip` skips are counted, printed, and written with reasons into the working directory.

    Args:
        train: as for `--dataset-path` of a training.
        valid: as for its `--validation-path`, or None.
        words: options of `mltrack train` for reading the records, and `output`; None for each one not given.
        thresholds: `name=number,name=number`, which override the defaults.
    """
    from mltrack.cli.data import guessed_task
    from mltrack.data.loader import DatasetLoader
    from mltrack.records.check import THRESHOLDS, check_data
    from mltrack.records.readers import find_parts

    values = {
        name: OPTIONS[name].default if word is None else OPTIONS[name].parse(word) for name, word in words.items()
    }
    limits = _limits(thresholds)
    parts = find_parts(train)
    if parts is not None and parts.are_several:
        used = ["train"] + ["validation"] * bool(parts.validation and valid is None)
        print(parts.line(train, used), file=sys.stderr if values["output"] == "json" else sys.stdout)
        train, valid = f"{train}:train", valid if len(used) < 2 else f"{train}:validation"
    task = task_named(values["task"]) if words["task"] is not None else guessed_task(train, values["columns"])
    reading = {"task": task, **{name: values[name] for name in ("columns", "labels", "on_bad_record")}}
    loader = DatasetLoader(train, **reading)
    mapping = loader.label_mapping if task.has_classes else None
    loaders = {"training": loader} | (
        {"evaluation": DatasetLoader(valid, label_mapping=mapping, **reading)} if valid is not None else {}
    )
    records = [one.records for one in loaders.values()]
    report = check_data(
        records[0],
        records[1] if valid is not None else None,
        group=values["group"],
        thresholds=limits,
        classes=task.stratified,
    )
    kept = {side: one.bad_records.keep(f"bad_records-{side}.jsonl") for side, one in loaders.items()}
    if values["output"] == "json":
        left_out = {
            side: {"records": one.num_skipped, "file": str(kept[side]) if kept[side] else None}
            for side, one in loaders.items()
        }
        print(json.dumps({**report.to_dict(), "left_out": left_out}))
    else:
        _print(report, list(loaders.values()), {**THRESHOLDS, **limits})
        for side, path in kept.items():
            if path is not None:
                print(f"skipped {loaders[side].num_skipped:,} of the {side} records; their reasons are in {path}")
    return 1 if report.findings else 0


def _limits(thresholds: str | None) -> dict[str, float]:
    from mltrack.records.check import THRESHOLDS

    if thresholds is None:
        return {}
    checked = Option(name="thresholds", kind="pairs", choices=tuple(THRESHOLDS), help="").parse(thresholds)
    pairs = parse_pairs(checked)
    return {
        name: Option(name=f"thresholds: {name}", kind="float", minimum=0, help="").parse(word)
        for name, word in pairs.items()
    }


def _print(report: DataReport, loaders: Sequence[DatasetLoader], limits: Mapping[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(loader.data_path for loader in loaders), box=None, pad_edge=False)
    sides = [one for one in (report.train, report.valid) if one is not None]
    for title, name in (
        ("records", "records"),
        ("distinct", "distinct"),
        ("exact duplicates", "exact_duplicates"),
        ("near-duplicates", "near_duplicates"),
        ("largest group of near-duplicates", "largest_group"),
        ("label conflicts", "label_conflicts"),
        ("read as Python", "python"),
        ("of them not parsed", "unparsable"),
    ):
        table.add_row(title, *(f"{getattr(one, name):,}" for one in sides))
    if any(loader.num_skipped for loader in loaders):
        table.add_row("skipped", *(f"{loader.num_skipped:,}" for loader in loaders))
    table.add_row(
        "characters p5 / p50 / p95 / max",
        *(" / ".join(f"{one.characters[name]:,}" for name in ("p5", "p50", "p95", "max")) for one in sides),
    )
    for label in list(report.train.classes)[:20]:
        table.add_row(f"class {label}", *(f"{one.classes.get(label, 0):,}" for one in sides))
    if len(report.train.classes) > 20:
        table.add_row(f"and {len(report.train.classes) - 20:,} more classes", *("" for _ in sides))
    if report.valid is not None:
        for title, count in (
            ("exact", report.exact_overlap),
            ("near", report.near_overlap),
            ("group", report.group_overlap),
            ("with another label", report.conflicting_overlap),
        ):
            table.add_row(f"in training, too: {title}", "", f"{count:,}")
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)
    for loader in loaders:
        for line in loader.bad_records.told(loader.data_path):
            print(line)
    for finding in report.findings:
        print(finding.line)
    print(
        "thresholds: " + ", ".join(f"{name} {value:.4g} ({limits[name]:g})" for name, value in report.shares().items())
    )
    if not report.findings:
        print("nothing is above its threshold")
