"""Evaluates two versions on one data set and makes the better one champion.

Invariant: both are evaluated on the same records. A completion's loss per token depends on the tokenizer, so if the
tokenizers differ, the loss is per character of the completions, and records that `max_length` cuts are left out for
both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltrack import store
from mltrack.data.encoding import tokenizer_digest
from mltrack.data.requested import one_part
from mltrack.errors import ConfigurationError, TrackingError, did_you_mean, one_of
from mltrack.registry import gate
from mltrack.registry.champion import CHALLENGER, CHAMPION, decide, existing_model, existing_version, versions_there
from mltrack.registry.loading import connect_existing
from mltrack.store import model_tags
from mltrack.tasks import task_named

PER_CHARACTER = "eval_loss_per_character"


@dataclass(frozen=True)
class Duel:
    """The result of evaluating two versions."""

    challenger: int
    champion: int | None
    metric: str
    challenger_value: float
    champion_value: float | None
    promoted: bool
    why: str


def promote_on(
    name: str,
    dataset_path: str,
    version: str | int | None = None,
    tracking_uri: str | None = None,
    *,
    margin: float | None = None,
    batch_size: int = 16,
    notice: Callable[[str], None] = lambda line: None,
    reading: Mapping[str, Any] | None = None,
) -> Duel:
    """Evaluate a version and the champion on one data set; if it is better by the margin, it becomes champion. The
    decision is recorded either way.

    Args:
        name: of the registered model.
        dataset_path: records, or stdlib.
        version: None: the challenger.
        tracking_uri: of the store.
        margin: in units of the metric; None: the margin of the version's run.
        batch_size: examples per batch; the metrics do not depend on it.
        notice: takes one line at a time for the user.
        reading: how `DatasetLoader` reads the records: columns, labels, on_bad_record.

    Raises:
        TrackingError: no such model or version, or it is champion already.
        DatasetError: records that cannot be used.
        ConfigurationError: the models have different tasks, or this evaluation does not give the metric.
    """
    one_part(dataset_path)
    connected = connect_existing(tracking_uri, name)
    model = existing_model(connected, name)
    if version is None and CHALLENGER not in model.aliases:
        raise TrackingError(
            f"{name}: no version is challenger; choose one with --version: {versions_there(connected, name)}"
        )
    challenger = existing_version(connected, model, model.aliases[CHALLENGER] if version is None else version)
    number = challenger.number
    held = model.aliases.get(CHAMPION)
    if number == held:
        raise TrackingError(f"{name}: version {number} is champion already; choose another one with --version")
    tags = challenger.tags
    metric, mode = tags.get(gate.METRIC, "eval_loss"), tags.get(gate.MODE, "min")
    if margin is None:
        margin = gate.number(tags.get(gate.MARGIN)) or 0.0
    contestants = [number] if held is None else [number, held]
    folders = {one: str(store.resolve(connected, f"models:/{name}/{one}")) for one in contestants}
    for one in contestants:
        notice(f"evaluating {name}/{one} on {dataset_path}")
    metric, values, digest = _evaluate(folders, dataset_path, metric, batch_size, reading or {}, notice)
    for one, value in values.items():
        notice(f"{name}/{one}  {metric}  {value:.6g}")
    if held is None:
        promoted, why = True, f"there was no champion; {metric} {values[number]:.6g}"
    else:
        promoted, why = gate.compare(metric, values[number], values[held], mode, margin)
        why = why.format(other=f"version {held}")
    why = f"{why} ({dataset_path}, digest {digest[:12]})"
    if existing_model(connected, name).aliases.get(CHAMPION) != held:
        raise TrackingError(
            f"{name}: the champion changed while both were evaluated; nothing was decided; run the same command again"
        )
    if promoted:
        decide(connected, name, number, kind="evaluate", why=why)
    decision = {gate.DECISION: f"{'champion' if promoted else 'challenger'}: {why}", gate.DECIDE: "decided"}
    model_tags.set_version_tags(connected, name, number, decision)
    return Duel(number, held, metric, values[number], values[held] if held is not None else None, promoted, why)


def _evaluate(
    folders: dict[int, str],
    dataset_path: str,
    metric: str,
    batch_size: int,
    reading: Mapping[str, Any],
    notice: Callable[[str], None],
) -> tuple[str, dict[int, float], str]:
    """(the compared metric, its value by version, digest of the records)."""
    from mltrack.models.inspection import inspect_trained, read_object

    settings = {one: inspect_trained(f"version {one}", folder) for one, folder in folders.items()}
    tasks = {str(held["task"]) for held in settings.values()}
    if len(tasks) > 1:
        raise ConfigurationError(
            f"the versions {' and '.join(map(str, folders))} were trained for different tasks,"
            f" {' and '.join(sorted(tasks))}; compare versions of one task"
        )
    (task,) = tasks
    from mltrack.data import DatasetLoader
    from mltrack.data.encoding import kept_of_long_texts
    from mltrack.evaluation.evaluate import evaluate
    from mltrack.hardware import allow_planned_attention, choose_device, choose_precision
    from mltrack.hardware.precision import Precision
    from mltrack.models import resolve_model

    kind = task_named(task)
    kinds = {one: kind.configured(held.get("task_options") or {}) for one, held in settings.items()}
    sources = {one: resolve_model(folder, kinds[one], as_trained=True) for one, folder in folders.items()}
    shortest = min(int(held.get("max_length", 512)) for held in settings.values())
    lengths = {
        one: shortest if kind.counts_tokens else int(held.get("max_length", 512)) for one, held in settings.items()
    }
    configs = {one: read_object(Path(folder) / "config.json", f"version {one}") for one, folder in folders.items()}
    mappings: dict[int, dict[str, int] | None] = {
        one: dict(config.get("label2id") or {}) if kind.has_classes else None for one, config in configs.items()
    }
    options: dict[int, dict[str, Any]] = {
        one: {
            "max_length": lengths[one],
            "label_mapping": mappings[one],
            "truncation": kept_of_long_texts(settings[one]),
            **reading,
        }
        for one in folders
    }
    loaders = {
        one: DatasetLoader(dataset_path, sources[one].tokenizer, task=kinds[one], **options[one]) for one in folders
    }
    datasets = {one: loader.dataset(loader.records) for one, loader in loaders.items()}
    for one, loader in loaders.items():
        loader.bad_records.report(dataset_path, f"version-{one}", notice)
    if (
        any(loader.num_skipped for loader in loaders.values())
        and len({dataset.digest for dataset in datasets.values()}) > 1
    ):
        raise ConfigurationError(
            f"{dataset_path}: the versions {' and '.join(map(str, folders))} can read different records of it; use"
            " records that both can"
        )
    per_character = (
        kind.counts_tokens
        and metric == "eval_loss"
        and len({tokenizer_digest(source.tokenizer) for source in sources.values()}) > 1
    )
    if per_character:
        whole = [
            i
            for i in range(len(next(iter(datasets.values()))))
            if all(held.full_lengths[i] <= held.lengths[i] for held in datasets.values())
        ]
        if not whole:
            raise ConfigurationError(
                f"{dataset_path}: every record is longer than {shortest} tokens; use shorter records, which both models"
                " see whole"
            )
        datasets = {one: loader.dataset([loader.records[i] for i in whole]) for one, loader in loaders.items()}
    device = choose_device("auto")
    allow_planned_attention(device, False)
    precision = Precision(choose_precision("auto", device), device)
    values: dict[int, float] = {}
    for one, dataset in datasets.items():
        model: Any = (
            sources[one].build(label_mapping=mappings[one], max_length=lengths[one], seed=0, whole=True).to(device)
        )
        found, _ = evaluate(model, dataset, batch_size=batch_size, device=device, precision=precision)
        figures = {f"eval_{key}": value for key, value in found.items()}
        if metric not in figures:
            raise ConfigurationError(
                f"metric_name: the version was judged by '{metric}'; use"
                f" {one_of(figures)}{did_you_mean(metric, figures)}"
            )
        value = figures[metric]
        if per_character:
            targets = sum(int((dataset[i]["labels"][1:] != -100).sum()) for i in range(len(dataset)))
            value *= targets / max(1, sum(len(record.text) for record in dataset.records))
        values[one] = value
    return (PER_CHARACTER if per_character else metric), values, next(iter(datasets.values())).digest
