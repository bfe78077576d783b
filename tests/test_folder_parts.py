"""A folder with files for training, validation and test: the test files are never trained on, and one line says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mltrack.config import TrainModelRequest
from mltrack.data import DatasetLoader
from mltrack.data.requested import checked_paths, one_part, requested_records
from mltrack.errors import ConfigurationError, DatasetError
from mltrack.journal import RunDirectory
from mltrack.records.readers import find_sources
from mltrack.records.readers.folder_parts import Parts, parts_of
from mltrack.runs.provenance import saved_options


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("training.csv", "valid.csv", "testing.csv"),
        ("Train.JSONL", "VAL.jsonl.gz", "TEST.jsonl"),
        (
            "train-00000-of-00002.parquet train-00001-of-00002.parquet",
            "dev-00000-of-00001.parquet",
            "test-00000-of-00001.parquet",
        ),
        ("data/train.jsonl", "data/eval.jsonl", "data/test.jsonl"),
        ("train/part1.jsonl train/part2.jsonl", "dev/part1.jsonl", "test/part1.jsonl"),
        ("Training/a.jsonl", "Validation/a.jsonl", "Test/a.jsonl"),
        ("en/train.jsonl fr/train.jsonl", "", "en/test.jsonl fr/test.jsonl"),
        ("python_train_0.jsonl", "python_valid_0.jsonl", "python_test_0.jsonl"),
        ("trainset.jsonl", "", "testset.jsonl"),
        ("TrainData.json", "", "TestData.json"),
        ("train.clean.jsonl", "", "test.clean.jsonl"),
        ("train.jsonl", "dev.jsonl", "eval.jsonl"),
        ("train/test_utils.jsonl", "", "test/train_of_thought.jsonl"),
        ("dev-tools/train.jsonl", "", "dev-tools/test.jsonl"),
        ("defects.train.jsonl", "", "defects.test.jsonl"),
        ("data.train.csv", "", "data.test.csv"),
        ("python.train.jsonl.gz", "python.valid.jsonl.gz", "python.test.jsonl.gz"),
        ("train.final.jsonl", "", "v2.test.jsonl"),
        ("x_train_final.jsonl", "", "x_test_final.jsonl"),
        ("codexglue_train_defect.jsonl", "codexglue_cv_defect.jsonl", "codexglue_test_defect.jsonl"),
        ("trainsplit.jsonl", "", "testsplit.jsonl"),
        ("mydatatrain.jsonl", "", "mydatatest.jsonl"),
        ("codetrain.jsonl", "codeval.jsonl", "codetest.jsonl"),
        ("CVTrain.jsonl", "", "CVTest.jsonl"),
        ("train.jsonl", "validate.jsonl cv.jsonl", "tests.jsonl devtest.jsonl DevTest.jsonl tst.jsonl"),
        ("train.jsonl", "", "tests/a.jsonl held-out.jsonl held_out.jsonl hold_out.jsonl HeldOut.jsonl heldout.jsonl"),
    ],
)
def test_names_tell_the_parts(train: str, validation: str, test: str) -> None:
    parts = parts_of("data", [*test.split(), *train.split(), *validation.split()])
    assert parts == Parts(train.split(), validation.split(), test.split())
    assert parts.are_several


@pytest.mark.parametrize(
    "files",
    [
        "a.jsonl b.jsonl",
        "test.jsonl",
        "train-0.jsonl train-1.jsonl",
        "google_test.jsonl numpy.jsonl",
        "google.test.jsonl numpy_test_utils.jsonl scipy.jsonl",
        "contest.json latest.json",
    ],
)
def test_files_of_one_part_or_of_none_are_read_as_they_are(files: str) -> None:
    assert not parts_of("data", files.split()).are_several


@pytest.mark.parametrize(
    ("files", "unclear"),
    [
        ("a.jsonl test.jsonl", "a.jsonl"),
        ("train.jsonl test.jsonl extra.jsonl", "extra.jsonl"),
        ("train.jsonl extra.jsonl", "extra.jsonl"),
        ("defects.train.jsonl unseen.jsonl", "unseen.jsonl"),
        ("train/a.jsonl train/test.jsonl", "train/test.jsonl"),
        ("data-train/train/test.jsonl data-train/train/dev.jsonl", "train/test.jsonl"),
        ("train.jsonl test.jsonl train_test.jsonl", "train_test.jsonl"),
        ("valid.jsonl test.jsonl", "no training files"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_files(files: str, unclear: str) -> None:
    with pytest.raises(DatasetError) as caught:
        parts_of("data", files.split())
    assert str(caught.value).startswith("data: holds ")
    assert unclear in str(caught.value)
    assert "data:all" in str(caught.value)
    assert ("data:train for" in str(caught.value)) is ("for training" in str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_part_that_is_named_needs_no_names_of_the_other_files(tmp_path: Path) -> None:
    for name in ("train", "test", "extra"):
        rows = [{"code": f"{name}_({n})", "label": n} for n in (1, 2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for part in ("train", "test"):
        assert parts_seen(DatasetLoader(f"{tmp_path}:{part}").records) == {part}
    assert parts_seen(DatasetLoader(f"{tmp_path}:all").records) == {"train", "test", "extra"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """10 training, 4 validation and 6 test records, each with its part in its text."""
    made = tmp_path / "records"
    for name, count in (("train/a", 6), ("train/b", 4), ("valid", 4), ("test", 6)):
        path = made / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"code": f"{name.replace('/', '_')}_{chr(97 + n)}({'x, ' * (n + 1)}{n * 7})", "label": "ab"[n % 2]}
            for n in range(count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def request(path: object, **options: object) -> TrainModelRequest:
    return TrainModelRequest(task="text_classification", dataset_path=str(path), **options)


def parts_seen(records: object) -> set[str]:
    return {record.text.split("_")[0] for record in records}


@pytest.mark.parametrize("path", ["{folder}", "{folder}/**/*.jsonl"])
def test_the_training_files_are_trained_on_and_the_validation_files_evaluated(folder: Path, path: str) -> None:
    path = path.format(folder=folder)
    found = requested_records(request(path))
    assert (parts_seen(found.train), len(found.train)) == ({"train"}, 10)
    assert (parts_seen(found.evaluation), len(found.evaluation)) == ({"valid"}, 4)
    (line,) = found.lines
    assert (
        line
        == f"{path}: train/a.jsonl, train/b.jsonl for training and valid.jsonl for validation; left out: test.jsonl"
        f" ({path}:all is every file)"
    )
    recorded, lines = checked_paths(request(path))
    assert (recorded.dataset_path, recorded.validation_path, lines) == (f"{path}:train", f"{path}:validation", [line])
    assert checked_paths(recorded) == (recorded, []), "what is recorded says which files it was"


def test_a_split_or_a_path_that_was_given_wins_over_the_validation_files(folder: Path) -> None:
    for options in ({"validation_split": 0.3}, {"as_typed": {"validation_split": "0.1"}}):
        found = requested_records(request(folder, **options))
        assert parts_seen(found.train) == parts_seen(found.evaluation) == {"train"}
        assert "left out: valid.jsonl, test.jsonl" in found.lines[0]
    found = requested_records(request(folder, validation_path=str(folder / "test.jsonl")))
    assert (parts_seen(found.train), parts_seen(found.evaluation)) == ({"train"}, {"test"})
    found = requested_records(request(folder / "train", validation_path=str(folder)))
    assert (parts_seen(found.train), parts_seen(found.evaluation)) == ({"train"}, {"valid"})
    (folder / "valid.jsonl").unlink()
    found = requested_records(request(folder))
    assert parts_seen(found.train) == parts_seen(found.evaluation) == {"train"}
    with pytest.raises(DatasetError, match=f"{folder}: .*several parts.* {folder}:train, {folder}:test"):
        requested_records(request(folder / "train", validation_path=str(folder)))


def test_a_part_is_named(folder: Path) -> None:
    for part, seen in (
        ("train", {"train"}),
        ("validation", {"valid"}),
        ("test", {"test"}),
        ("all", {"train", "valid", "test"}),
    ):
        assert parts_seen(DatasetLoader(f"{folder}:{part}").records) == seen
    assert len(find_sources(f"{folder}/*.jsonl:all")) == 2
    (folder / "valid.jsonl").unlink()
    with pytest.raises(DatasetError, match=f"no validation files.*{folder}:train, {folder}:test, {folder}:all"):
        find_sources(f"{folder}:validation")


def test_a_loader_of_the_folder_reads_the_training_files_and_warns(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="mltrack.data"):
        assert parts_seen(DatasetLoader(folder).records) == {"train"}
    assert "left out: valid.jsonl, test.jsonl" in caplog.text


def test_what_a_model_is_judged_on_is_named(folder: Path) -> None:
    assert one_part(f"{folder}:test") == f"{folder}:test"
    with pytest.raises(
        DatasetError, match=f"name one: {folder}:train, {folder}:validation, {folder}:test, {folder}:all"
    ):
        one_part(str(folder))
    (folder / "extra.jsonl").write_text("{}\n")
    with pytest.raises(ConfigurationError, match=r"dataset_path: .*extra\.jsonl"):
        checked_paths(request(folder))


@pytest.mark.parametrize("typed", [True, False])
def test_a_run_that_was_trained_on_every_file_goes_on_with_them(folder: Path, tmp_path: Path, typed: bool) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    (run.path / "config.json").write_text(
        json.dumps({"task": "text_classification", "dataset_path": str(folder), "validation_split": 0.1})
    )
    resumed = saved_options(run, request(folder) if typed else TrainModelRequest())
    assert resumed.dataset_path == f"{folder}:all"
    found = requested_records(resumed)
    assert parts_seen(found.train) | parts_seen(found.evaluation) == {"train", "valid", "test"}
    (folder / "extra.jsonl").write_text('{"code": "extra_(1)", "label": "a"}\n')
    assert saved_options(run, TrainModelRequest()).dataset_path == f"{folder}:all", (
        "of folders that are refused by now, too"
    )
