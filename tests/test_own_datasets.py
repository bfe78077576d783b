"""A data set that is no `CodeDataset` trains to the same weights, alone and through the use case; a resume goes on bit
for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from mltrack import AdvancedTrainer, CheckpointManager, TrainModelRequest, TrainModelUseCase
from mltrack.errors import ConfigurationError, Interrupted
from mltrack.journal import read_journal
from mltrack.models import save_pretrained

TASKS = ("text_classification", "code_generation")
OPTIONS: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "device": "cpu",
    "use_mixed_precision": False,
}


class Own:
    """Somebody's data set: nothing but what `TrainingDataset` asks for."""

    def __init__(self, like: Any):
        self.task, self.tokenizer, self.max_length = str(like.task), like.tokenizer, like.max_length
        self._rows = [
            {
                "input_ids": like[number]["input_ids"].tolist(),
                "labels": like[number]["labels"] if like.task.has_classes else like[number]["labels"].tolist(),
            }
            for number in range(len(like))
        ]
        self.lengths = [len(row["input_ids"]) for row in self._rows]
        self.target_counts = np.array(like.target_counts, dtype=np.int64)
        self.digest = like.digest
        if like.label_mapping:
            self.label_mapping = like.label_mapping

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._rows[index]


def _weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [values.clone() for values in model.state_dict().values()]


@pytest.mark.parametrize("task", TASKS)
def test_it_trains_to_the_same_weights(records_file: Callable[..., Path], tmp_path: Path, task: str) -> None:
    source, train, evaluation = tiny.data(records_file(task, 24), task)
    ended = []
    for name, sets in {"code": (train, evaluation), "own": (Own(train), Own(evaluation))}.items():
        model = tiny.model(source, train)
        trainer = AdvancedTrainer(model, *sets, output_dir=tmp_path / name, class_weights=_weights_of(task), **OPTIONS)
        results = trainer.train()
        ended.append(([entry["eval_loss"] for entry in results["history"]], _weights(model)))
    (losses, weights), (own_losses, own_weights) = ended
    assert losses == own_losses
    assert all(map(torch.equal, weights, own_weights))


def _weights_of(task: str) -> str:
    return "balanced" if task == "text_classification" else "none"


@pytest.mark.parametrize("task", TASKS)
def test_it_reaches_through_the_use_case(records_file: Callable[..., Path], here: Path, task: str) -> None:
    source, train, evaluation = tiny.data(records_file(task, 24), task)
    save_pretrained(tiny.model(source, train), source.tokenizer, here / "base")
    seen: list[Any] = []

    def make(tokenizer: Any, request: TrainModelRequest) -> tuple[Own, Own]:
        seen.append((type(tokenizer).__name__, request.task))
        held_out = Own(evaluation)
        held_out.source = "held out"
        return Own(train), held_out

    use_case = TrainModelUseCase(datasets=make)
    common: dict[str, Any] = {"task": task, "batch_size": 4, "offline": True, "device": "cpu"}
    response = use_case.execute(TrainModelRequest(model_name=str(here / "base"), max_steps=3, **common))
    assert response.success, response.errors
    assert not response.warnings
    assert seen == [(type(source.tokenizer).__name__, task)]
    directory = here / "mltrack-runs" / str(response.run_id)
    config = json.loads((directory / "config.json").read_text())
    assert (config["dataset_path"], config["max_length"]) == ("Own", 64)
    inputs = [one for one in read_journal(directory / "journal") if one["type"] == "inputs"]
    assert [(one["name"], one["source"]) for one in inputs[0]["datasets"]] == [
        ("Own-train", "Own"),
        ("held out-eval", "held out"),
    ]
    resumed = use_case.execute(
        TrainModelRequest(resume=str(response.run_id), max_steps=5, **{**common, "task": "code_generation"})
        if task == "code_generation"
        else TrainModelRequest(resume=str(response.run_id), max_steps=5, **common)
    )
    assert resumed.success, resumed.errors
    assert resumed.steps_run == 5
    scratch = use_case.execute(TrainModelRequest(model_name="scratch:tiny", max_steps=1, **common))
    assert scratch.success, scratch.errors
    assert seen[-1] == ("NoneType", task), "the tokenizer is that of the training set"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda own: delattr(own, "digest"), "data set Own has no digest; it needs task, tokenizer, "),
        (lambda own: setattr(own, "lengths", [3]), "data set Own: lengths must be 18 whole numbers >= 0"),
        (lambda own: setattr(own, "target_counts", [0.5] * 18), "data set Own: target_counts must be 18 whole numbers"),
        (lambda own: setattr(own, "task", "translation"), "translation"),
        (
            lambda own: delattr(own, "label_mapping"),
            "data set Own is for text_classification and needs a label_mapping",
        ),
    ],
)
def test_what_is_missing_is_one_line(
    records_file: Callable[..., Path], tmp_path: Path, spoil: Callable[[Own], None], said: str
) -> None:
    source, train, _ = tiny.data(records_file("text_classification", 24), "text_classification")
    own = Own(train)
    spoil(own)
    with pytest.raises(ConfigurationError) as caught:
        AdvancedTrainer(tiny.model(source, train), own, output_dir=tmp_path / "out", **OPTIONS)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda tokenizer, request: None,
            "datasets must return (training set, evaluation set), not NoneType",
        ),
        (lambda tokenizer, request: (1, 2), "data set int has no task"),
    ],
)
def test_what_the_use_case_cannot_use_is_one_line(here: Path, make: Callable[..., Any], said: str) -> None:
    request = TrainModelRequest(model_name="scratch:tiny", offline=True, device="cpu")
    response = TrainModelUseCase(datasets=make).execute(request)
    assert (response.success, response.exit_code) == (False, 2)
    assert said in response.errors[0]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda own, others: setattr(own, "tokenizer", others), "has another tokenizer than the model"),
        (lambda own, _: setattr(own, "label_mapping", {"unsafe": 0, "safe": 1}), "have different label mappings"),
    ],
)
def test_two_data_sets_that_do_not_fit_are_one_line(
    records_file: Callable[..., Path], here: Path, spoil: Callable[[Own, Any], None], said: str
) -> None:
    _, train, evaluation = tiny.data(records_file("text_classification", 24), "text_classification")
    others, _, _ = tiny.data(records_file("code_generation", 24), "code_generation")
    spoiled = Own(evaluation)
    spoil(spoiled, others.tokenizer)
    request = TrainModelRequest(task="text_classification", model_name="scratch:tiny", offline=True, device="cpu")
    response = TrainModelUseCase(datasets=lambda *_: (Own(train), spoiled)).execute(request)
    assert (response.success, response.exit_code) == (False, 2)
    assert said in response.errors[0]


def test_the_password_of_a_source_is_recorded_nowhere(records_file: Callable[..., Path], here: Path) -> None:
    _, train, evaluation = tiny.data(records_file("text_classification", 24), "text_classification")
    made = (Own(train), Own(evaluation))
    for own in made:
        own.source = "postgresql://bob:hunter2secret@db.host/x"
    said: list[str] = []
    request = TrainModelRequest(
        task="text_classification",
        model_name="scratch:tiny",
        offline=True,
        device="cpu",
        max_steps=1,
        output_dir="runs",
    )
    response = TrainModelUseCase(datasets=lambda *_: made, notice=said.append).execute(request)
    assert response.success, response.errors
    written = [path.read_bytes() for path in here.rglob("*") if path.is_file()]
    assert not any(b"hunter2secret" in held for held in [*written, *(line.encode() for line in said)])
    assert any(b"db.host" in held for held in written), "the source itself is recorded"


# -- resuming


def test_a_digest_counts_to_its_last_character(records_file: Callable[..., Path], tmp_path: Path) -> None:
    source, train, _ = tiny.data(records_file("text_classification", 24), "text_classification")
    first, second = Own(train), Own(train)
    first.digest, second.digest = "reviews of 2026-11", "reviews of 2026-12"
    AdvancedTrainer(tiny.model(source, train), first, output_dir=tmp_path / "out", **OPTIONS).train()
    with pytest.raises(ConfigurationError, match="training data changed"):
        AdvancedTrainer(tiny.model(source, train), second, output_dir=tmp_path / "out", resume=True, **OPTIONS)


def test_a_trainer_that_is_interrupted_goes_on_to_the_same_weights(
    records_file: Callable[..., Path], tmp_path: Path
) -> None:
    source, train, evaluation = tiny.data(records_file("text_classification", 24), "text_classification")

    def trainer(name: str, **more: Any) -> AdvancedTrainer:
        return AdvancedTrainer(
            tiny.model(source, train, dropout=0.1), train, evaluation, output_dir=tmp_path / name, **OPTIONS, **more
        )

    whole = trainer("whole")
    whole.train()
    asked = iter(range(10_000))
    stopped = trainer("cut", stop_requested=lambda: 15 if next(asked) >= 7 else None)
    with pytest.raises(Interrupted):
        stopped.train()
    assert 0 < stopped.state.step < whole.state.step
    resumed = trainer("cut", resume=True)
    assert resumed.state.step == stopped.state.step
    resumed.train()
    assert all(map(torch.equal, _weights(whole.model), _weights(resumed.model)))
    losses = [tiny.points(tmp_path / name / "journal", "train_loss") for name in ("whole", "cut")]
    assert losses[0] == losses[1]
    assert list(losses[1]) == list(range(1, whole.state.step + 1))


def test_a_checkpoint_of_somebody_elses_loop_is_one_line(records_file: Callable[..., Path], tmp_path: Path) -> None:
    source, train, _ = tiny.data(records_file("text_classification", 24), "text_classification")
    model = tiny.model(source, train)
    optimizer = torch.optim.AdamW(model.parameters())
    CheckpointManager(tmp_path / "out").save_checkpoint(model=model, optimizer=optimizer, epoch=0, step=1)
    with pytest.raises(ConfigurationError, match="is not a checkpoint of an AdvancedTrainer"):
        AdvancedTrainer(model, train, output_dir=tmp_path / "out", resume=True, **OPTIONS)


def test_nothing_to_resume_and_a_changed_option_are_one_line(records_file: Callable[..., Path], tmp_path: Path) -> None:
    source, train, evaluation = tiny.data(records_file("text_classification", 24), "text_classification")
    model, folder = tiny.model(source, train), tmp_path / "out"
    with pytest.raises(ConfigurationError, match=f"cannot resume: {folder} holds no complete checkpoint"):
        AdvancedTrainer(model, train, evaluation, output_dir=folder, resume=True, **OPTIONS)
    AdvancedTrainer(model, train, evaluation, output_dir=folder, **OPTIONS).train()
    changed = {**OPTIONS, "learning_rate": 1e-2}
    with pytest.raises(ConfigurationError, match="learning_rate"):
        AdvancedTrainer(model, train, evaluation, output_dir=folder, resume=True, **changed)
    trainer = AdvancedTrainer(model, train, evaluation, output_dir=folder, resume=True, exact=False, **changed)
    assert trainer.state.epoch == 2
