"""`mltrack data show` and `mltrack data split`: the data sets of a run, and how to make them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mltrack.addresses import redacted
from mltrack.cli.parameters import split_options
from mltrack.config import OPTIONS, TrainModelRequest
from mltrack.config.task_options import own_options
from mltrack.errors import ConfigurationError, printable
from mltrack.tasks.contract import Task

_DIGITS = 8
"""Fewest digits of a digest that identify a data set."""


def split(words: Mapping[str, str]) -> None:
    """Print, and with `output_dir` write, the training and evaluation records of a training with these options.

    Raises:
        ConfigurationError: their digests differ from `digests`; nothing is written.
    """
    from mltrack.data.requested import requested_records
    from mltrack.records.table import digest_of

    options = split_options() | own_options(words.get("task", OPTIONS["task"].default))
    values = {name: options[name].parse(word) for name, word in words.items()}
    folder, output, digests = values.pop("output_dir", None), values.pop("output", "text"), values.pop("digests", None)
    found = requested_records(TrainModelRequest.of(values))
    rows: list[dict[str, Any]] = []
    for name, records in (("train", found.train), ("evaluation", found.evaluation)):
        rows.append({"set": name, "records": len(records), "digest": digest_of(records)})
    if digests is not None:
        _compare([row["digest"] for row in rows], digests)
    if folder is not None:
        for row, records in zip(rows, (found.train, found.evaluation), strict=True):
            row["path"] = str(_written(records, Path(folder), row["set"], found.loader.task))
    if output == "json":
        print(json.dumps(rows))
        return
    for line in found.lines:
        print(line)
    for row in rows:
        print(
            f"{row['set']:<12}{row['records']:>10,} records  "
            f"digest {row['digest'][:36]}  {row.get('path', '')}".rstrip()
        )


def show(run_id: str, output_dir: str, output: str, tracking_uri: str | None) -> None:
    """Print the data sets of a local or MLflow run, and the command that makes them again."""
    from mltrack.data.requested import WORKING_DIRECTORY, rebuild_command

    OPTIONS["output"].check(output)
    recorded, options, tags = redacted(_recorded(run_id, output_dir, tracking_uri))  # other tools may have written them
    data_sets = [{**one, "profile": _profile(one.get("profile"))} for one in recorded]
    if not data_sets:
        raise ConfigurationError(
            f"data show: run {run_id} has no data sets; use a run of `mltrack train` that has read its data"
        )
    sides = {one["context"]: (one.get("profile") or {}).get("digest") or one["digest"] for one in data_sets}
    digests = (
        [sides[context] for context in ("training", "evaluation")] if {"training", "evaluation"} <= sides.keys() else []
    )
    place = tags.get(WORKING_DIRECTORY, "")
    command = (
        rebuild_command(options, working_directory=place, digests=digests) if options.get("dataset_path") else None
    )
    if output == "json":
        print(json.dumps({"data_sets": data_sets, "rebuild": command}))
        return
    lines = [line for one in data_sets for line in _lines(one)]
    for line in [*lines, f"rebuild     {command or 'its options are not recorded'}"]:
        print(printable(line))


def _recorded(
    run_id: str, output_dir: str, tracking_uri: str | None
) -> tuple[list[dict[str, Any]], Mapping[str, Any], Mapping[str, str]]:
    """The run's data sets, options and tags: from MLflow if a given URI has the run, else from its run directory, else
    from MLflow.
    """
    from mltrack.journal import JournalReader, find_run_directory, read_json
    from mltrack.runs.remote_run import UnknownRunError, look_up
    from mltrack.store.inputs import data_sets_of
    from mltrack.store.runs import parsed

    directory = find_run_directory(output_dir, run_id)
    if directory is None or tracking_uri is not None:
        try:
            store, run = look_up(run_id if directory is None else directory.read_run().run_id or run_id, tracking_uri)
            return data_sets_of(store, run.run_id), run.params, run.tags
        except UnknownRunError:
            if directory is None:
                raise
    data_sets: dict[tuple[str, str], dict[str, Any]] = {}
    tags: dict[str, str] = {}
    for record in JournalReader(directory.journal).read_new():
        if record["type"] == "inputs":
            for one in record["datasets"]:
                held = {name: str(one.get(name, "")) for name in ("context", "digest", "name")}
                read = {name: parsed(str(one[name]), dict) for name in ("schema", "profile") if one.get(name)}
                data_sets.setdefault((held["context"], held["digest"]), {"source": "", **one, **held, **read})
        elif record["type"] == "tags":
            tags |= record["values"]
    return list(data_sets.values()), read_json(directory.path / "config.json") or {}, tags


def _compare(made: Sequence[str], wanted: str) -> None:
    """Compare digests with the first digits of the wanted ones."""
    beginnings = [one.strip() for one in wanted.split(",")]
    if len(beginnings) != len(made) or not all(len(one) >= _DIGITS for one in beginnings):
        raise ConfigurationError(
            f"digests must be TRAINING,EVALUATION, the digests of both sets of records, at least {_DIGITS} digits"
            f" each, not '{wanted}'"
        )
    for name, digest, beginning in zip(("training", "evaluation"), made, beginnings, strict=True):
        if not digest.startswith(beginning):
            raise ConfigurationError(
                f"digests: the {name} records have {digest[: len(beginning)]}, not {beginning}; the files, or the"
                " library, have changed"
            )


def _profile(given: Any) -> dict[str, Any]:
    """The valid, known parts of a data set's profile; other tools may have written it."""
    profile = given if isinstance(given, dict) else {}
    classes = profile.get("classes")
    counts = {"records": profile.get("records"), "num_rows": profile.get("num_rows")}
    digest = {"digest": profile["digest"]} if isinstance(profile.get("digest"), str) else {}
    held = (
        {"classes": {str(name): count for name, count in classes.items() if isinstance(count, int)}}
        if isinstance(classes, dict)
        else {}
    )
    return {name: count for name, count in counts.items() if isinstance(count, int)} | digest | held


def _lines(one: Mapping[str, Any]) -> list[str]:
    profile, source = one.get("profile") or {}, one["source"]
    made_with = (
        ", ".join(f"{name} {value}" for name, value in source.items() if name != "uri")
        if isinstance(source, dict)
        else ""
    )
    lines = [
        f"{one['context']:<12}{one['name']}: {profile.get('records', 0):,} records",
        f"  digest    {profile.get('digest') or one['digest']}",
        (
            "  source   "
            f" {source.get('uri') if isinstance(source, dict) else source}{f' ({made_with})' if made_with else ''}"
        ),
    ]
    if profile.get("classes"):
        lines.append("  classes   " + ", ".join(f"{label} {count:,}" for label, count in profile["classes"].items()))
    return lines


def _written(records: Sequence[Any], folder: Path, name: str, task: Task) -> Path:
    path = folder / f"{name}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for record in records:
                file.write(json.dumps({**record.extra, **task.columns(record)}) + "\n")
    except OSError as error:
        raise ConfigurationError(f"output_dir: {path} cannot be written ({error.strerror})") from None
    return path
