"""DatasetLoader: one label mapping for both sides, statistics, and a line for each contradiction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mltrack import CodeDataset, DatasetLoader
from mltrack.errors import ConfigurationError, DatasetError

SAMPLES = Path(__file__).parent.parent / "projects"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(["</s>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def write(path: Path, labels: list[Any]) -> Path:
    path.write_text(json.dumps([{"code": f"code {n}", "label": label} for n, label in enumerate(labels)]))
    return path


def test_the_snippet_of_the_api_page(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "python_samples.json", ["unsafe", "safe"] * 10)
    loader = DatasetLoader(data_path=path, tokenizer=tokenizer, task="text_classification", max_length=512)
    train_ds, test_ds = loader.get_train_test_split(test_size=0.2)
    assert (type(train_ds), len(train_ds), len(test_ds)) == (CodeDataset, 16, 4)
    assert test_ds.class_counts == {"safe": 2, "unsafe": 2}
    assert list(loader.label_mapping.items()) == [("safe", 0), ("unsafe", 1)]
    statistics = loader.get_statistics()
    assert (statistics["records"], statistics["classes"], statistics["truncated"]) == (
        20,
        {"safe": 10, "unsafe": 10},
        0.0,
    )
    assert statistics["tokens"] == {"min": 6, "p5": 6, "p25": 6, "p50": 6 + 1, "p75": 7, "p95": 7, "p99": 7, "max": 7}
    info = loader.get_info()
    assert (info["source"], info["task"], info["max_length"]) == (str(path), "text_classification", 512)
    assert info["digest"] == loader.load().digest
    json.dumps([statistics, info])


def test_statistics_count_what_max_length_cuts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"code": "x" * size, "label": str(size % 2)} for size in (4, 7, 8, 9, 100)]))
    statistics = DatasetLoader(path, tokenizer, max_length=8).get_statistics()
    assert (statistics["truncated"], statistics["tokens"]["max"]) == (0.4, 100)
    assert DatasetLoader(path).get_statistics()["tokens"] is None


def test_both_sides_share_the_mapping_of_all_records(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    loader = DatasetLoader(write(tmp_path / "a.json", ["b", "a", "c"] + ["d"] * 30), tokenizer)
    train, test = loader.get_train_test_split(0.1)
    assert train.label_mapping == test.label_mapping == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert set(test.class_counts) == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ([10, 9, 2], ["2", "9", "10"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        ([True, False], ["False", "True"]),
        (["07", "7", "-1"], ["-1", "07", "7"]),
    ],
)
def test_numbers_are_sorted_as_numbers(tmp_path: Path, labels: list[Any], order: list[str]) -> None:
    assert list(DatasetLoader(write(tmp_path / "a.json", labels)).label_mapping) == order


def test_the_seed_makes_the_split(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", ["a", "b"] * 50)
    tests = [[r.text for r in DatasetLoader(path, seed=seed).split_records(0.2)[1]] for seed in (1, 1, 2)]
    assert tests[0] == tests[1] != tests[2]


def test_one_class_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", ["safe"] * 4)
    for task in ("text_classification", "security_classification"):
        with pytest.raises(DatasetError) as caught:
            _ = DatasetLoader(path, task=task).records
        assert str(caught.value).startswith(f"{path}, field 'label': ")
        assert "one class only" in str(caught.value)
        assert "'safe' in all 4 records" in str(caught.value)


def test_num_labels_that_contradicts_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", ["safe", "low", "high"])
    assert len(DatasetLoader(path, num_labels=3).records) == 3
    assert len(DatasetLoader(path, task="security_classification", num_labels=5).records) == 3
    with pytest.raises(DatasetError) as caught:
        _ = DatasetLoader(path, num_labels=2).label_mapping, DatasetLoader(path, num_labels=2).records
    assert str(caught.value).startswith(
        f"{path}, field 'label': num_labels is 2, but there are 3 classes: high, low, safe"
    )
    with pytest.raises(
        DatasetError, match="num_labels is 3, but there are 5 classes: safe, low, medium, high, critical"
    ):
        _ = DatasetLoader(path, task="security_classification", num_labels=3).records
    with pytest.raises(ConfigurationError, match=r"num_labels=2 .*code_generation.* no classes"):
        DatasetLoader(path, task="code_generation", num_labels=2)


def test_a_validation_file_is_read_with_the_training_files_classes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    mapping = DatasetLoader(write(tmp_path / "train.json", ["a", "b", "c"])).label_mapping
    validation = DatasetLoader(write(tmp_path / "one.json", ["c", "c"]), tokenizer, label_mapping=mapping)
    assert [validation.load()[i]["labels"] for i in range(2)] == [2, 2]
    path = write(tmp_path / "other.json", ["a", "d"])
    with pytest.raises(DatasetError) as caught:
        _ = DatasetLoader(path, label_mapping=mapping).records
    assert str(caught.value).startswith(f"{path}, record 2, field 'label': ")
    assert "a, b, c" in str(caught.value)
    assert "'d'" in str(caught.value)
    skipping = DatasetLoader(path, label_mapping=mapping, on_bad_record="skip")
    assert ([r.label for r in skipping.records], skipping.skipped) == (["a"], [str(caught.value)])
    with pytest.raises(DatasetError, match=r"none of the 2 records has a known label; the first: .*record 1"):
        _ = DatasetLoader(
            write(tmp_path / "none.json", ["x", "y"]), label_mapping=mapping, on_bad_record="skip"
        ).records


def test_skipped_records_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"code": "a", "label": "x"}\n{"code": "b"}\n{"code": "c", "label": "y"}\n')
    loader = DatasetLoader(path, on_bad_record="skip")
    assert (len(loader.records), loader.get_statistics()["skipped"]) == (2, 1)
    (line,) = loader.skipped
    assert line.startswith(f"{path}, record 2, field 'label': ")
    assert "missing" in line


def test_a_data_set_needs_a_tokenizer(tmp_path: Path) -> None:
    loader = DatasetLoader(write(tmp_path / "a.json", ["a", "b"]))
    with pytest.raises(ConfigurationError, match=r"tokenizer is None; .*DatasetLoader"):
        loader.load()


@pytest.mark.parametrize("task", ["text_classification", "code_generation", "security_classification"])
def test_the_sample_of_each_project(task: str, tokenizer: PreTrainedTokenizerFast) -> None:
    loader = DatasetLoader(SAMPLES / task / "data" / "sample.jsonl", tokenizer, task, max_length=1024)
    statistics = loader.get_statistics()
    assert 40 <= statistics["records"] == statistics["distinct"] <= 80
    assert statistics["truncated"] == 0
    assert all(count >= 8 for count in statistics["classes"].values())
    for record in loader.records:
        compile(record.text, record.location, "exec")
