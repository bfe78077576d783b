"""What the way of splitting does to the figures: one model, the same seeds, three splits of the same records.

    random        every record for itself, stratified by label: what most scripts do
    deduplicated  exact and near-duplicates on one side: mltrack's default
    grouped       also the records of one group on one side: `group`

For each split: how many evaluation records have a twin in training (the same normalised tokens or nearly, or the same
group), the majority class, TF-IDF with logistic regression, and the model; mean and range over the seeds, which seed
both the split and the training.

    python benchmarks/splits.py task.jsonl other_valid.jsonl --task text_classification --pairs true --seeds 1 2 3
    --max-steps 100

The files are one pool of records. Without a `--group` column, `--pairs true` takes every two records in a row for one
group: a function before and after its fix. Prints one table and writes one JSON (`--output`)."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

SPLITS = ("random", "deduplicated", "grouped")


def pooled(paths: list[Path], group: str, pairs: bool) -> list[dict[str, Any]]:
    """All records of the files, with a group."""
    rows = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            if pairs:
                row[group] = f"{path.name}:{number // 2}"
            rows.append(row)
    return rows


def split(records: Any, how: str, group: str, test_size: float, seed: int) -> tuple[Any, Any]:
    """Positions of the records in training and evaluation."""
    from sklearn.model_selection import train_test_split

    from mltrack.records.splits import split_indices

    if how == "random":
        labels = [record.label for record in records]
        return tuple(
            np.sort(side)
            for side in train_test_split(
                np.arange(len(records)), test_size=test_size, random_state=seed, stratify=labels
            )
        )  # type: ignore[return-value]
    return split_indices(records, test_size, seed, stratify=True, group=group if how == "grouped" else None)


def twins(records: Any, train: Any, test: Any, group: str) -> tuple[int, int]:
    """Evaluation records with a near-duplicate in training, and with a record of their group there."""
    from mltrack.records.similar.near_duplicates import duplicate_groups
    from mltrack.records.splits import group_numbers

    near, groups = duplicate_groups(records).near, group_numbers(records, group)
    return int(np.isin(near[test], near[train]).sum()), int(
        np.isin(groups[test], groups[train][groups[train] >= 0]).sum()
    )


def trained(
    folder: Path, rows: list[dict[str, Any]], train: Any, test: Any, seed: int, options: argparse.Namespace
) -> dict[str, float]:
    """The metrics of one training and of its baselines."""
    from mltrack import TrainModelRequest, TrainModelUseCase

    folder.mkdir(parents=True)
    for name, side in (("train", train), ("valid", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(rows[i]) + "\n" for i in side), encoding="utf-8")
    request = TrainModelRequest(
        dataset_path=str(folder / "train.jsonl"),
        validation_path=str(folder / "valid.jsonl"),
        task=options.task,
        model_name=options.model,
        max_steps=options.max_steps,
        epochs=1000,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        max_length=options.max_length,
        metric_name="eval_macro_f1",
        eval_every=options.max_steps,
        save_every=options.max_steps,
        seed=seed,
        output_dir=str(folder / "runs"),
        offline=True,
    )
    response = TrainModelUseCase().execute(request)
    if not response.success:
        raise SystemExit(response.errors[0])
    assert response.metrics_file is not None
    points = json.loads(Path(response.metrics_file).read_text(encoding="utf-8"))
    return {
        **response.baselines,
        "macro_f1": last_value(points, "eval_macro_f1"),
        "accuracy": last_value(points, "eval_accuracy"),
    }


def last_value(written: dict[str, Any], name: str) -> float:
    """The last value of a metric in `metrics.json`: the model at the end, not the best of several looks at the
    evaluation records.
    """
    return float(written["summary"]["statistics"][name]["last"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--task", default="text_classification")
    parser.add_argument("--group", default="pair")
    parser.add_argument("--pairs", choices=("true", "false"), default="false")
    parser.add_argument("--test-size", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--model", default="scratch:small")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, help="not set: the task's default")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("splits.json"))
    options = parser.parse_args()

    from mltrack.data import Record

    rows = pooled(options.paths, options.group, options.pairs == "true")
    records = [
        Record(row["code"], str(row["label"]), None, "pool", number, {options.group: row[options.group]})
        for number, row in enumerate(rows, start=1)
    ]
    results: dict[str, list[dict[str, float]]] = {how: [] for how in SPLITS}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            for how in SPLITS:
                train, test = split(records, how, options.group, options.test_size, seed)
                near, same_group = twins(records, train, test, options.group)
                figures = trained(Path(scratch) / f"{how}-{seed}", rows, train, test, seed, options)
                results[how].append(
                    {"seed": seed, "evaluation": len(test), "near_twins": near, "group_twins": same_group, **figures}
                )
                print(f"{how} seed {seed}: {results[how][-1]}", flush=True)
                options.output.write_text(
                    json.dumps(
                        {
                            "task": options.task,
                            "records": len(rows),
                            "max_steps": options.max_steps,
                            "results": results,
                        },
                        indent=1,
                    )
                )
    print(table(results))


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """One row per split, macro-F1 as mean [lowest, highest]."""
    lines = [
        (
            "| split | evaluation records | with a near-twin in training | with its pair in training | majority |"
            " TF-IDF | model |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for how, runs in results.items():
        counts = [f"{mean(run[name] for run in runs):.0f}" for name in ("evaluation", "near_twins", "group_twins")]
        scores = []
        for name in ("baseline_majority_macro_f1", "baseline_tfidf_macro_f1", "macro_f1"):
            values = [run[name] for run in runs]
            scores.append(f"{mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
        lines.append(f"| {how} | {' | '.join(counts + scores)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
