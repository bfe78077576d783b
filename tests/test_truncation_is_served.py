"""A saved model reads of a long text what it was trained on: its beginning, its end, or half of each."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tiny
import torch

from mltrack.data import CodeDataset
from mltrack.data.encoding import kept_of_long_texts
from mltrack.models import save_pretrained
from mltrack.tasks.shipped.mltrack_pyfunc import _load_pyfunc

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "size",
    "total",
    "price",
    "row",
    "index",
    "name",
    "value",
    "left",
    "right",
    "first",
    "last",
]


def long_code(number: int) -> str:
    """A function of some hundred tokens that is like none of the others."""
    choose = random.Random(number).choice
    return f"def f{number}(x):\n" + "\n".join(
        f"    {choose(WORDS)} = {choose(WORDS)}.{choose(WORDS)}({choose(WORDS)}) {choose('+-*/')} x" for _ in range(30)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny classifier's folder, what it was made of."""
    folder = tmp_path_factory.mktemp("served")
    records = folder / "records.jsonl"
    records.write_text(
        "".join(json.dumps({"code": long_code(n), "label": ("a", "b")[n % 2]}) + "\n" for n in range(8)),
        encoding="utf-8",
    )
    source, train, _ = tiny.data(records, "text_classification")
    model = tiny.model(source, train, dropout=0.0).eval()
    return folder, source, train, model


@pytest.mark.parametrize("truncation", ["head", "tail", "both", "drop"])
def test_the_model_is_asked_what_it_was_trained_on(saved, truncation: str) -> None:
    folder, source, train, model = saved
    model.config.mltrack["truncation"] = truncation
    save_pretrained(model, source.tokenizer, folder / truncation)
    served = _load_pyfunc(str(folder / truncation))
    kept = kept_of_long_texts({"truncation": truncation})
    texts = [record.text for record in train.records] + ["short"]
    dataset = CodeDataset(list(train.records), source.tokenizer, "text_classification", max_length=64, truncation=kept)
    assert dataset.truncated == len(dataset)
    answers = served.predict(texts)
    for index in range(len(dataset)):
        ids = torch.from_numpy(dataset[index]["input_ids"])[None]
        with torch.inference_mode():
            expected = model(input_ids=ids).logits.float().softmax(-1)[0].tolist()
        assert list(answers[index]["scores"].values()) == pytest.approx(expected, abs=1e-5)
    assert served._shortened(list(range(500)))[:3] == [0, *({"tail": [500 - 63, 500 - 62]}.get(truncation, [1, 2]))]


def test_the_ways_differ(saved) -> None:
    _, source, train, _ = saved
    rows = {
        way: CodeDataset(list(train.records), source.tokenizer, "text_classification", max_length=64, truncation=way)
        for way in ("head", "tail", "both")
    }
    assert len({tuple(dataset[0]["input_ids"].tolist()) for dataset in rows.values()}) == 3


def test_the_folder_of_a_training_says_it(records_file, here: Path) -> None:
    from mltrack import TrainModelRequest, TrainModelUseCase

    path = records_file("text_classification", 24)
    options = {
        "model_name": "scratch:tiny",
        "max_length": 16,
        "epochs": 1,
        "offline": True,
        "device": "cpu",
        "output_dir": str(here / "runs"),
    }
    response = TrainModelUseCase().execute(
        TrainModelRequest(task="text_classification", dataset_path=str(path), truncation="tail", **options)
    )
    assert response.success, response.errors
    assert json.loads((Path(response.model_path) / "config.json").read_text())["mltrack"]["truncation"] == "tail"
    for checkpoint in response.checkpoints:
        assert json.loads((Path(checkpoint["path"]) / "config.json").read_text())["mltrack"]["truncation"] == "tail"
