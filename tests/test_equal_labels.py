"""Equal label values mean equal classes, whatever format they are kept in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from ready_store import ready_store

from mltrack import DatasetLoader
from mltrack.config import TrainModelRequest
from mltrack.data.requested import EarlierLabels, requested_records
from mltrack.errors import DatasetError
from mltrack.journal import RunDirectory
from mltrack.records.record import label_value
from mltrack.runs.provenance import earlier_labels
from mltrack.runs.remote_run import _config
from mltrack.store import artifacts, connect, create_run

CODE = ["a = 1", "eval(b)", "c = len(d)", "exec(e)"]
NAMED = datasets.Features({"code": datasets.Value("string"), "label": datasets.ClassLabel(names=["safe", "unsafe"])})


def kept(folder: Path, labels: list[Any]) -> dict[str, Path]:
    """The same table in each format, as pandas and datasets write it."""
    table = pd.DataFrame({"code": CODE, "label": labels})
    paths = {suffix: folder / f"data.{suffix}" for suffix in ("csv", "json", "jsonl", "parquet")}
    table.to_csv(paths["csv"], index=False)
    table.to_json(paths["json"], orient="records")
    table.to_json(paths["jsonl"], orient="records", lines=True)
    table.to_parquet(paths["parquet"])
    paths["saved"] = folder / "saved"
    datasets.Dataset.from_pandas(table).save_to_disk(str(paths["saved"]))
    return paths


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([1, 0, 1, 0], ["0", "1"]),
        (["1", "0", "1", "0"], ["0", "1"]),
        ([1.0, 0.0, 1.0, 0.0], ["0", "1"]),
        ([1.0, 0.0, 1.0, None], ["0", "1"]),
        ([True, False, True, False], ["False", "True"]),
        ([" y", "x ", "y", "x"], ["x", "y"]),
        ([1e20, 0.0, 1e20, 0.0], ["0", "100000000000000000000"]),
    ],
    ids=str,
)
def test_a_table_has_the_same_classes_in_every_format(tmp_path: Path, labels: list[Any], classes: list[str]) -> None:
    for name, path in kept(tmp_path, labels).items():
        loader = DatasetLoader(path, on_bad_record="skip")
        assert list(loader.label_mapping) == classes, name
        assert [record.label for record in loader.records] == [classes[1], classes[0], classes[1], classes[0]][
            : len(loader.records)
        ]


def test_a_number_with_a_fraction_is_no_class_unless_it_is_named(tmp_path: Path) -> None:
    """A CSV file holds text alone: 3.10 may be the name of a version there."""
    for name, path in kept(tmp_path, [0.5, 1.5, 0.5, 1.5]).items():
        if name == "csv":
            assert list(DatasetLoader(path).label_mapping) == ["0.5", "1.5"]
        else:
            with pytest.raises(DatasetError, match=r"field 'label': .*a whole number.* 0\.5"):
                DatasetLoader(path).label_mapping  # noqa: B018
        assert list(DatasetLoader(path, labels="0.5=low,1.5=high").label_mapping) == ["high", "low"], name


@pytest.mark.parametrize("text", ["0e0", "0.0", "-0.0", "0.00E+5"])
def test_every_spelling_of_a_whole_number_is_that_number(text: str) -> None:
    assert label_value(text) == label_value("0")
    assert (label_value("1.152921504606847e+18"), label_value("1e999")) == ("1152921504606846976", "1e999")


@pytest.mark.parametrize(
    ("training", "evaluation"),
    [('["True", "False"]', "[true, false]"), ("[true, false]", '["true", "FALSE"]'), ("[1, 0]", '["1.0", 0.0]')],
)
def test_two_spellings_of_a_value_are_one_class(tmp_path: Path, training: str, evaluation: str) -> None:
    def write(name: str, labels: str) -> Path:
        rows = [{"code": f"{name}({n})", "label": label} for n, label in enumerate(json.loads(labels))]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    first = DatasetLoader(write("first.jsonl", training))
    other = DatasetLoader(write("second.jsonl", evaluation), label_mapping=first.label_mapping)
    assert [record.label for record in other.records] == [record.label for record in first.records]
    both = DatasetLoader(tmp_path / "*.jsonl")
    assert len(both.label_mapping) == 2


def shard(path: Path, labels: list[int], features: Any = NAMED) -> Path:
    made = {"code": [f"{path.stem}({n})" for n in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(made, features=features).to_parquet(str(path))
    return path


def test_class_names_of_a_parquet_file_are_used_as_those_of_save_to_disk(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"code": CODE, "label": [0, 1, 0, 1]}, features=NAMED)
    made.to_parquet(str(tmp_path / "data.parquet"))
    made.save_to_disk(str(tmp_path / "saved"))
    for path in ("data.parquet", "saved"):
        loader = DatasetLoader(tmp_path / path)
        assert [record.label for record in loader.records] == ["safe", "unsafe", "safe", "unsafe"], path
    levels = DatasetLoader(tmp_path / "data.parquet", labels="0=low,1=high")
    assert sorted(levels.label_mapping) == ["high", "low"], "who says what the numbers mean is asked"
    renamed = DatasetLoader(tmp_path / "data.parquet", labels="safe=ok,unsafe=bad")
    assert sorted(renamed.label_mapping) == ["bad", "ok"]
    numbers = DatasetLoader(tmp_path / "data.parquet", class_names=False)
    assert list(numbers.label_mapping) == ["0", "1"]


def test_a_shard_without_class_names_has_those_of_the_others(tmp_path: Path) -> None:
    plain = datasets.Features({"code": datasets.Value("string"), "label": datasets.Value("int64")})
    shard(tmp_path / "a.parquet", [1, 0])
    pd.DataFrame({"code": ["f()", "g()"], "label": [0, 1]}).to_parquet(tmp_path / "b.parquet")
    shard(tmp_path / "c.parquet", [0, 1], plain)
    assert [record.label for record in DatasetLoader(tmp_path).records] == [
        "unsafe",
        "safe",
        "safe",
        "unsafe",
        "safe",
        "unsafe",
    ]
    other = datasets.Features(
        {"code": datasets.Value("string"), "label": datasets.ClassLabel(names=["unsafe", "safe"])}
    )
    shard(tmp_path / "d.parquet", [0, 1], other)
    with pytest.raises(
        DatasetError,
        match=r"b\.parquet, field 'label': has no class names, and those of .*a\.parquet, .*d\.parquet differ",
    ):
        _ = DatasetLoader(tmp_path).records
    for name in ("b", "c"):
        (tmp_path / f"{name}.parquet").unlink()
    assert [record.label for record in DatasetLoader(tmp_path).records] == ["unsafe", "safe", "unsafe", "safe"], (
        "each by its own names"
    )


def test_a_number_that_no_class_has_is_a_bad_record(tmp_path: Path) -> None:
    shard(tmp_path / "data.parquet", [0, 1, -1])
    with pytest.raises(DatasetError, match=r"record 3, field 'label': .* null"):
        _ = DatasetLoader(tmp_path / "data.parquet").records


def test_a_run_of_0_1_goes_on_with_the_classes_that_it_has(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    checkpoint = run.checkpoints / "step-00000001"
    checkpoint.mkdir(parents=True)
    (run.path / "config.json").write_text("{}")
    (checkpoint / "config.json").write_text(json.dumps({"label2id": {"0": 0, "1": 1}}))
    found = earlier_labels(run)
    assert found == EarlierLabels(["0", "1"], class_names=False)
    path = shard(tmp_path / "data.parquet", [0, 1] * 10)
    request = TrainModelRequest(task="text_classification", dataset_path=str(path))
    assert list(requested_records(request, earlier=found).loader.label_mapping) == ["0", "1"]
    pd.DataFrame({"code": [f"f{n}({n})" for n in range(20)], "label": [1.0, 0.0] * 10}).to_csv(
        tmp_path / "data.csv", index=False
    )
    request = TrainModelRequest(task="text_classification", dataset_path=str(tmp_path / "data.csv"))
    assert list(
        requested_records(request, earlier=EarlierLabels(["0.0", "1.0"], class_names=False)).loader.label_mapping
    ) == ["0.0", "1.0"]
    (run.path / "config.json").write_text('{"class_names": true}')
    assert earlier_labels(run).class_names
    assert earlier_labels(None) is None


def test_class_names_reach_another_machine_through_mlflow(tmp_path: Path) -> None:
    store = connect(ready_store(tmp_path))
    run = create_run(store, experiment_name="e", run_name="r", tags={}, idempotency_key="k", start_time_ms=1)
    (tmp_path / "config.json").write_text('{"class_names": true, "batch_size": 4}')
    artifacts.put_file(store, run.run_id, tmp_path / "config.json")
    assert _config(store, run) == {"class_names": True, "batch_size": 4}
