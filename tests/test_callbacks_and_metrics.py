"""What a user adds to a training: callbacks, own metrics."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from sklearn.metrics import cohen_kappa_score

from mltrack import Callback, TrainModelRequest, TrainModelUseCase
from mltrack.errors import ConfigurationError


class Diary(Callback):
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def on_train_begin(self, trainer):
        self.told.append(("begin", trainer.state.step))

    def on_step(self, trainer, metrics):
        self.told.append(("step", trainer.state.step))
        assert {"train_loss", "learning_rate"} <= metrics.keys()

    def on_evaluation(self, trainer, metrics):
        self.told.append(("evaluation", trainer.state.step, metrics["eval_loss"]))

    def on_epoch(self, trainer, metrics):
        self.told.append(("epoch", trainer.state.epoch))
        assert {"train_loss", "eval_loss"} <= metrics.keys()

    def on_save(self, trainer):
        self.told.append(("save", trainer.state.step))

    def on_train_end(self, trainer):
        self.told.append(("end", trainer.state.step))


class StopsAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer, metrics):
        if trainer.state.step == self.step:
            trainer.stop()


def test_a_callback_is_told_of_each_thing_in_its_order(trainer):
    diary = Diary()
    made = trainer(num_epochs=2, callbacks=[diary, Callback()])
    made.train()
    steps = made.plan.steps_per_epoch
    kinds = [one[0] for one in diary.told]
    once = ["step"] * steps + ["evaluation", "epoch", "save"]
    assert kinds == ["begin", *once, *once, "end"]
    assert [one[1] for one in diary.told if one[0] == "step"] == list(range(1, 2 * steps + 1))
    assert [one[1] for one in diary.told if one[0] == "epoch"] == [0, 1]
    assert [one[2] for one in diary.told if one[0] == "evaluation"] == list(
        tiny.points(made.tracker.directory.journal, "eval_loss").values()
    )


def test_a_callback_ends_a_training_with_a_checkpoint(trainer):
    made = trainer(num_epochs=3, callbacks=[StopsAfter(2)])
    results = made.train()
    assert (results["steps_run"], results["stopped_early"]) == (2, True)
    assert made.checkpoint_manager.get_latest_checkpoint_info().step == 2


def test_what_a_callback_raises_ends_the_training(trainer):
    class Fails(Callback):
        def on_evaluation(self, trainer, metrics):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trainer(callbacks=[Fails()]).train()


def kappa(predictions, labels):
    return cohen_kappa_score(labels, predictions)


@pytest.mark.parametrize("task", ["text_classification", "code_generation"])
def test_an_own_metric_is_logged_and_may_decide_what_is_best(trainer, task):
    seen = []

    def right(predictions, labels):
        seen.append(len(labels))
        return sum(one == other for one, other in zip(predictions, labels, strict=True)) / len(labels)

    made = trainer(task, metrics={"share_right": right}, metric_name="eval_share_right", metric_mode="max")
    results = made.train()
    logged = tiny.points(made.tracker.directory.journal, "eval_share_right")
    known = {"text_classification": "eval_accuracy", "code_generation": "eval_token_accuracy"}[task]
    assert logged == pytest.approx(tiny.points(made.tracker.directory.journal, known))
    assert results["best_metric"] == max(logged.values())
    assert len(set(seen)) == 1


def test_they_reach_through_the_use_case(records_file, tmp_path):
    diary = Diary()
    use_case = TrainModelUseCase(callbacks=[diary], metrics={"kappa": kappa})
    request = TrainModelRequest(
        task="text_classification",
        dataset_path=str(records_file("text_classification", 40)),
        model_name="scratch:tiny",
        max_length=64,
        max_steps=4,
        metric_name="eval_kappa",
        metric_mode="max",
        offline=True,
        output_dir=str(tmp_path / "runs"),
    )
    response = use_case.execute(request)
    assert response.success, response.errors
    assert diary.told[-1] == ("end", 4)
    (best,) = [one for one in response.checkpoints if one["step"] == response.best_step]
    assert best["metrics"]["eval_kappa"] == response.best_metric
    exported = json.loads((tmp_path / "runs" / response.run_id / "metrics.json").read_text())
    assert "eval_kappa" in json.dumps(exported)


@pytest.mark.parametrize(
    ("metrics", "name", "said"),
    [
        ({"kappa": kappa}, "eval_kapa", "metric_name must be .* not 'eval_kapa'"),
        ({"accuracy": kappa}, "eval_loss", "metrics: text_classification .*'accuracy'"),
        (
            {"words": lambda predictions, labels: "many"},
            "eval_loss",
            "metrics: words must return a number, not str 'many'",
        ),
    ],
)
def test_what_is_wrong_is_one_line(trainer, metrics, name, said):
    with pytest.raises(ConfigurationError, match=said):
        trainer(metrics=metrics, metric_name=name, metric_mode="max").train()


class StopsAt(Callback):
    def __init__(self, method, step):
        self.step = step
        setattr(self, method, self.stop)

    def stop(self, trainer, *_):
        if trainer.state.step == self.step:
            trainer.stop()


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late, as on a GPU"])
@pytest.mark.parametrize(
    ("method", "step"), [("on_train_begin", 0), ("on_step", 3), ("on_evaluation", 2), ("on_save", 2), ("on_epoch", 4)]
)
def test_a_stop_ends_after_the_step_that_was_told_with_its_state(trainer, method, step, late):
    """What goes on from the checkpoint ends as a training that nobody stopped."""
    options = {"num_epochs": 2, "dropout": 0.0, "eval_every": 2, "save_every": 2}
    whole = trainer(name="whole", **options)
    whole.train()
    stopped = trainer(name="stopped", callbacks=[StopsAt(method, step)], **options)
    stopped.reads_late = late
    results = stopped.train()
    assert (results["steps_run"], results["stopped_early"]) == (step, True)
    assert list(tiny.points(stopped.tracker.directory.journal, "train_loss")) == list(range(1, step + 1))
    if not step:
        return
    assert stopped.checkpoint_manager.get_latest_checkpoint_info().step == step
    again = trainer(name="stopped", resume=True, **options)
    again.state.stopped_early = False
    again.train()
    assert again.state.step == whole.state.step
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_own_metric_is_not_taken_for_that_of_a_class(trainer):
    many = {f"f1_{number}": kappa for number in range(60)}
    made = trainer(metrics=many)
    made.train()
    assert len(tiny.points(made.tracker.directory.journal, "eval_f1_59")) == 1
    with pytest.raises(ConfigurationError, match=r"metrics: .*'seconds'"):
        trainer(metrics={"seconds": kappa})


def test_an_error_as_the_training_begins_closes_the_journal(trainer):
    class Fails(Callback):
        def on_train_begin(self, trainer):
            raise KeyError("mine")

    with pytest.raises(KeyError):
        trainer(callbacks=[Fails()]).train()
    trainer().train()
