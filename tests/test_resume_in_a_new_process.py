"""A run that was stopped after any optimizer step and goes on in a new process ends as one that was never stopped; what
would change it is refused.
"""

from __future__ import annotations

import shutil
import signal
import sys
from dataclasses import replace

import commands
import forward_passes
import pytest
import tiny
import torch

from mltrack import AdvancedTrainer, TrainingConfig
from mltrack.errors import ConfigurationError
from mltrack.journal import read_journal
from mltrack.training import compare_fingerprints, fingerprint_of

sys.path.insert(0, str(commands.ROOT / "benchmarks"))
from killed_training import Storm
from small_job import small_job, write_records

pytestmark = pytest.mark.long

STEPS_PER_EPOCH = 6
"""12 micro-batches of 45 records, two a step; the last one has a single record."""


def make_storm(folder, warm, *, offline: bool = True, **options) -> Storm:
    return Storm(small_job(folder, epochs=2, **options), folder, warm, seed=0, offline=offline)


def stop_after(storm: Storm, run_id: str, step: int, *, resumed_at: int = 0) -> None:
    """Train until so many steps are whole."""
    process, directory = storm.start(
        run_id, forward_passes.signal_in("T", 2 * (step - resumed_at) + 1, [signal.SIGTERM])
    )
    assert process.wait() == 143, process.errors
    assert (directory / "checkpoints" / f"step-{step:08d}" / "metadata.json").exists()


def finish(storm: Storm, run_id: str) -> str:
    """Train to the end; returns what the process said."""
    process, directory = storm.start(run_id)
    assert process.wait() == 0, process.errors
    storm.compare(directory)
    return process.errors


def assert_as_never_stopped(storm: Storm, runs: int) -> None:
    tally = storm.tally
    assert tally.problems == []
    assert (tally.points_lost, tally.points_doubled, tally.points_different) == (0, 0, 0)
    assert tally.runs == runs
    assert tally.identical == tally.same_best == runs


STOPS_EARLY = {"early_stopping_patience": 2, "early_stopping_min_delta": 10}
OF_EACH_KIND = [1, 4, 6, 7, 11]
"""The first step, which no checkpoint follows; one with an evaluation; an epoch's end; one of odd number; the last one
but one.
"""
CASES = [
    pytest.param("off", True, {}, None, id="fp32"),
    pytest.param("off", False, {}, OF_EACH_KIND, id="fp32-mlflow"),
    pytest.param("off", False, {}, None, id="fp32-mlflow-all", marks=pytest.mark.exhaustive),
    pytest.param("bf16", True, STOPS_EARLY, None, id="bf16-early-stopping"),
    pytest.param("fp16", True, {}, OF_EACH_KIND, id="fp16"),
    pytest.param("fp16", True, {}, None, id="fp16-all", marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize(("precision", "offline", "options", "some"), CASES)
def test_stopped_after_every_step(tmp_path, warm, precision, offline, options, some):
    """Dropout, warmup, accumulated steps with a ragged tail, evaluations in mid-epoch; step 6 is exactly an epoch's
    end. What MLflow and the gradient scaler add is no matter of the step, but of its kind.
    """
    storm = make_storm(tmp_path, warm, offline=offline, use_mixed_precision=precision, **options)
    steps = storm.reference.state["step"]
    assert steps == (8 if "early_stopping_patience" in options else 2 * STEPS_PER_EPOCH)
    assert storm.reference.state["extra_state"]["training"]["stopped_early"] == ("early_stopping_patience" in options)
    stops = some or list(range(1, steps))
    for step in stops:
        run_id = storm.new_run()
        stop_after(storm, run_id, step)
        finish(storm, run_id)
    assert_as_never_stopped(storm, len(stops))


@pytest.fixture(scope="module")
def storm(tmp_path_factory, warm) -> Storm:
    return make_storm(tmp_path_factory.mktemp("storm"), warm)


def test_stopped_three_times_and_killed_in_between(storm):
    before = storm.tally.runs
    run_id = storm.new_run()
    stop_after(storm, run_id, 3)
    stop_after(storm, run_id, 4, resumed_at=3)
    killed, _ = storm.start(run_id, forward_passes.signal_in("T", 7, [signal.SIGKILL]))
    assert killed.wait() == -signal.SIGKILL, "in its fourth step, behind a checkpoint that may or may not be whole"
    finish(storm, run_id)
    assert_as_never_stopped(storm, before + 1)


def test_resumed_twice_in_a_row_nothing_is_left_and_nothing_changes(storm):
    run_id = storm.new_run()
    before = storm.tally.runs
    finish(storm, run_id)
    said = finish(storm, run_id)
    assert "step 12 of 12 is reached already" in said
    assert "use larger epochs or max_steps" in said
    assert_as_never_stopped(storm, before + 2)


@pytest.fixture(scope="module")
def stopped_early(tmp_path_factory, warm) -> Storm:
    return make_storm(tmp_path_factory.mktemp("early"), warm, early_stopping_patience=2, early_stopping_min_delta=10)


def test_a_run_that_had_stopped_early_stays_stopped_and_says_so(stopped_early):
    run_id = stopped_early.new_run()
    finish(stopped_early, run_id)
    said = finish(stopped_early, run_id)
    assert "it had stopped early and stays stopped" in said
    assert_as_never_stopped(stopped_early, 2)


def steps_of(directory) -> list[int]:
    return [
        record["step"] for record in read_journal(directory / "journal") if "train_loss" in record.get("values", ())
    ]


def test_patience_may_grow(stopped_early):
    storm = stopped_early
    run_id = storm.new_run()
    first, directory = storm.start(run_id)
    assert first.wait() == 0, first.errors
    assert steps_of(directory) == list(range(1, 9))
    again = resumed(storm, run_id, early_stopping_patience=50)
    assert again.exit_code == 0, again.errors
    assert steps_of(directory) == list(range(1, 13))


def test_epochs_may_grow(storm):
    run_id = storm.new_run()
    first, directory = storm.start(run_id)
    assert first.wait() == 0, first.errors
    again = resumed(storm, run_id, epochs=3)
    assert again.exit_code == 0, again.errors
    assert steps_of(directory) == list(range(1, 19))
    assert not [
        record for record in read_journal(directory / "journal") if "mltrack.inexact_resume" in record.get("values", ())
    ]


def resumed(storm: Storm, run_id: str, *, prelude: str = "", **changed):
    words = storm.job.words(offline="true", **changed)
    return storm.warm.run(
        *words, cwd=storm.folder, prelude=prelude, MLFLOW_RUN_ID=run_id, MLFLOW_TRACKING_URI=storm.uri
    )


CHANGES = {
    "batch_size changed from 4 to 8": {"batch_size": 8},
    "gradient_accumulation_steps changed from 2 to 1": {"gradient_accumulation_steps": 1},
    "learning_rate changed from 0.001 to 0.002": {"learning_rate": 0.002},
    "weight_decay changed from 0.01 to 0.5": {"weight_decay": 0.5},
    "warmup_steps changed from 5 to 3": {"warmup_steps": 3},
    "seed changed from 7 to 8": {"seed": 8},
    "precision changed from off to bf16": {"use_mixed_precision": "bf16"},
    "max_length changed from 64 to 32": {"max_length": 32},
    "threads changed from 1 to 2": {"prelude": "import torch; torch.set_num_threads(2)"},
    "training data changed": {"dataset_path": "other.jsonl"},
    "tokenizer changed": {"model_name": "other"},
    "model changed": {"model_name": "scratch:small"},
}


def test_what_decides_the_result_is_compared(storm):
    """One line with the remedy each time; with strict_resume=false the training goes on and a tag says what differs."""
    write_records(storm.folder / "other.jsonl", "text_classification", 60)
    other = shutil.copytree(storm.job.model, storm.folder / "other")
    definition = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(
        definition.replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}', 1)
    )
    assert (other / "tokenizer.json").read_text() != definition
    run_id = storm.new_run()
    stop_after(storm, run_id, 5)
    directory = storm.directory(run_id)
    journal = (directory / "journal").read_bytes()
    for clause, changed in CHANGES.items():
        refused = resumed(storm, run_id, **changed)
        assert refused.exit_code == 2, (clause, refused.errors)
        (line,) = (line for line in refused.errors.splitlines() if line.startswith("mltrack: cannot resume:"))
        assert clause in line
        assert line.endswith("or --strict-resume false")
        assert "Traceback" not in refused.errors
        assert (directory / "journal").read_bytes() == journal, clause
    inexact = resumed(storm, run_id, exact="false", batch_size=4, learning_rate=0.002)
    assert inexact.exit_code == 0, inexact.errors
    (tag,) = (
        record["values"]["mltrack.inexact_resume"]
        for record in read_journal(directory / "journal")
        if "mltrack.inexact_resume" in record.get("values", ())
    )
    assert tag == "learning_rate changed from 0.001 to 0.002"


@pytest.mark.parametrize(
    "name",
    [
        "world size",
        "optimizer",
        "attention implementation",
        "sampler",
        "device",
        "torch",
        "instructions",
        "padding",
        "packing",
    ],
)
def test_what_no_option_changes_is_compared_too(tmp_path, records_file, name):
    """With another release, machine or number of processes they change; here the checkpoint says that they were
    otherwise.
    """
    source, train, evaluation = tiny.data(records_file("text_classification", 24), "text_classification")
    trainer = AdvancedTrainer(
        tiny.model(source, train), train, evaluation, output_dir=tmp_path / "out", num_epochs=1, device="cpu"
    )
    trainer.train()
    checkpoint = trainer.checkpoint_manager.load_latest_checkpoint()
    assert checkpoint is not None
    held = checkpoint["extra_state"]["decisive"]
    trainer.load_checkpoint(checkpoint)
    now, held[name] = held[name], "something else"
    with pytest.raises(ConfigurationError) as refused:
        trainer.load_checkpoint(checkpoint)
    clause = f"{name} changed from something else to {now}"
    assert clause in str(refused.value)
    assert "--strict-resume false" in str(refused.value)
    trainer.config = replace(trainer.config, strict_resume=False)
    assert trainer.load_checkpoint(checkpoint) == [clause]


def test_threads_are_compared_on_a_cpu_alone_and_warmup_wherever_it_was_recorded(tmp_path, records_file):
    source, train, _ = tiny.data(records_file("text_classification", 24), "text_classification")
    model, config = tiny.model(source, train), TrainingConfig(warmup_ratio=0.1)
    on_cpu, on_gpu = (fingerprint_of(config, train, model, torch.device(kind), "off") for kind in ("cpu", "meta"))
    assert on_cpu["threads"] == torch.get_num_threads()
    then = {**on_gpu, "threads": on_cpu["threads"] + 1}  # as mltrack 0.1 recorded it of a GPU too
    del then["warmup_ratio"], then["warmup_steps"]
    assert compare_fingerprints(then, on_gpu, strict=True) == []
    changed = {
        "warmup_ratio changed from 0.1 to 0.2": {"warmup_ratio": 0.2},
        "warmup_steps changed from None to 7": {"warmup_steps": 7},
    }
    for clause, options in changed.items():
        now = fingerprint_of(replace(config, **options), train, model, torch.device("cpu"), "off")
        assert compare_fingerprints(on_cpu, now, strict=False) == [clause]


def test_another_attention_implementation_is_seen(tmp_path, records_file):
    source, train, evaluation = tiny.data(records_file("text_classification", 24), "text_classification")
    first = AdvancedTrainer(
        tiny.model(source, train), train, evaluation, output_dir=tmp_path / "out", num_epochs=1, device="cpu"
    )
    first.train()
    checkpoint = first.checkpoint_manager.load_latest_checkpoint()
    model = tiny.model(source, train)
    model.set_attn_implementation("eager")
    second = AdvancedTrainer(model, train, evaluation, output_dir=tmp_path / "other", num_epochs=1, device="cpu")
    with pytest.raises(ConfigurationError, match="attention implementation changed from sdpa to eager"):
        second.load_checkpoint(checkpoint)
