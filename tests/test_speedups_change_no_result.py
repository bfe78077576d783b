"""Each speed-up on and off, alone: the same losses, norms and weights up to rounding; and what decides the order or the
draws says so at a resume.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from mltrack.config import TrainingConfig, checked_options
from mltrack.config.speedups import NAMES
from mltrack.errors import ConfigurationError
from mltrack.training import fingerprint_of, uses_cls_only
from mltrack.training.speed.compiled import compiled_layers, repeated_layers

pytestmark = pytest.mark.device

COMPUTES_THE_SAME = ("target_logits", "fused_adamw")
OF_A_PROCESS = ("allocator",)
ON_A_GPU_ALONE = ("tf32", "any_shape_attention")
DRAWS_OTHERWISE = ("dropout_masks", "first_token")
TASKS = ("text_classification", "code_generation")


def trained(
    trainer: Any, name: str, task: str, **options: Any
) -> tuple[dict[int, float], dict[int, float], torch.Tensor, torch.Tensor]:
    """Losses, norms, weights, and by how much these were moved."""
    made = trainer(task, name=name, num_epochs=2, **options)
    before = flat(made.model)
    made.train()
    journal, weights = made.tracker.directory.journal, flat(made.model)
    return tiny.points(journal, "train_loss"), tiny.points(journal, "grad_norm"), weights, weights - before


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def assert_same(found: Any, expected: Any, precision: str = "off") -> None:
    """To rounding: of fp32, or of the eight bits that bf16 has. AdamW moves a weight with no gradient but rounding as
    far as any other.
    """
    loss, norm, moved = {"off": (1e-5, 1e-4, 1e-2), "bf16": (1e-2, 5e-2, 0.3)}[precision]
    assert found[0] == pytest.approx(expected[0], rel=loss)
    assert found[1] == pytest.approx(expected[1], rel=norm)
    assert (found[3] - expected[3]).norm() <= moved * expected[3].norm()
    if precision == "off":
        assert torch.allclose(found[2], expected[2], atol=2e-5)


@pytest.mark.parametrize("precision", ["off", "bf16"])
@pytest.mark.parametrize("task", TASKS)
def test_switched_off_one_by_one_the_run_is_the_same(trainer, task, precision):
    expected = trained(trainer, "all", task, use_mixed_precision=precision)
    for name in COMPUTES_THE_SAME:
        assert_same(
            trained(trainer, name, task, use_mixed_precision=precision, speedups={name: "off"}), expected, precision
        )
    without_dropout = trained(trainer, "no-dropout", task, use_mixed_precision=precision, dropout=0.0)
    for name in DRAWS_OTHERWISE:
        found = trained(trainer, f"no-{name}", task, use_mixed_precision=precision, dropout=0.0, speedups={name: "off"})
        assert_same(found, without_dropout, precision)


def test_every_speedup_is_looked_at():
    assert {*COMPUTES_THE_SAME, *DRAWS_OTHERWISE, *OF_A_PROCESS, *ON_A_GPU_ALONE, "buckets"} == set(NAMES)


@pytest.mark.parametrize("given", ["prefetch=off", {"prefetch": "off", "gc_freeze": "on"}, "late_loss=off,tf32=off"])
def test_switches_of_0_1_that_change_no_bit_are_left_out_wherever_they_stand(given):
    """In Python, and in the config.json of a run that is resumed."""
    expected = "tf32=off" if "tf32" in given else None
    with pytest.warns(UserWarning, match=r"speedups: .* always on"):
        assert TrainingConfig(speedups=given).speedups == expected
    with pytest.warns(UserWarning, match=r"speedups: .* always on"):
        assert checked_options({"speedups": given}, "config.json") == {"speedups": expected}


def test_a_process_that_is_not_sped_up_trains_to_the_same_weights(tmp_path: Path, records_file):
    """The command as a user types it, once as it is and once without; switches of 0.1 are accepted and named."""
    made = {}
    for word in ("on", "off"):
        options = {
            "task": "text_classification",
            "dataset_path": records_file("text_classification"),
            "model_name": "scratch:tiny",
            "epochs": 1,
            "batch_size": 4,
            "offline": "true",
            "output_dir": tmp_path / word,
            "speedups": f"allocator={word},threads={word},late_loss={word}",
        }
        words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        ended = subprocess.run(
            [sys.executable, "-m", "mltrack", "train", *words], capture_output=True, text=True, cwd=tmp_path
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
        assert ended.stderr.count("threads, late_loss") == 1
        (config,) = (tmp_path / word).glob("*/config.json")
        assert json.loads(config.read_text())["speedups"] == f"allocator={word}"
        (weights,) = (tmp_path / word).glob("*/model/model.safetensors")
        made[word] = load_file(weights)
    assert made["on"].keys() == made["off"].keys()
    assert all(torch.equal(tensor, made["off"][name]) for name, tensor in made["on"].items())


@pytest.mark.parametrize(
    "option",
    [
        {"speedups": "buckets=off"},
        {"speedups": "dropout_masks=off"},
        {"speedups": "fused_adamw=off"},
        {"speedups": "target_logits=off"},
        {"packing": True},
        {"compile": True},
        {"max_batch_tokens": 512},
        {"speedups": "first_token=off", "task": "text_classification"},
    ],
)
def test_what_decides_the_bits_is_compared_at_a_resume(trainer, option):
    made = trainer(option.get("task", "code_generation"), count=16)
    option = {name: value for name, value in option.items() if name != "task"}
    values = [
        fingerprint_of(
            config,
            made.train_dataset,
            made.model,
            made.device,
            "off",
            cls_only=uses_cls_only(made.model, config, replicated=False),
        )
        for config in (
            made.config,
            type(made.config)(**{**{f: getattr(made.config, f) for f in made.config.__dataclass_fields__}, **option}),
        )
    ]
    assert values[0] != values[1]


def test_a_resume_takes_the_kernels_that_it_is_told_and_not_those_of_the_checkpoint(trainer):
    """Which kernels there are is no state: the same weights, to rounding, and the change is named."""
    made = trainer(num_epochs=1, dropout=0.0)
    made.train()
    ended = {}
    for word in ("on", "off"):
        going_on = trainer(name=word, num_epochs=2, dropout=0.0, exact=False, speedups=f"fused_adamw={word}")
        changed = going_on.load_checkpoint(made.checkpoint_manager.load_latest_checkpoint())
        assert changed == ([] if word == "on" else ["optimizer changed from AdamW to AdamW, not fused"])
        going_on.train()
        assert {bool(group["fused"]) for group in going_on.optimizer.param_groups} == {word == "on"}
        ended[word] = torch.cat([parameter.detach().flatten() for parameter in going_on.model.parameters()])
    assert torch.allclose(ended["on"], ended["off"], atol=2e-5)


def test_without_buckets_the_order_is_a_plain_shuffle(trainer):
    made = trainer(count=64, speedups="buckets=off", num_epochs=1)
    order = [record for group in made.batches.groups(0, 0) for batch in group for record in batch.records]
    assert sorted(order) == list(range(len(made.train_dataset)))
    bucketed = [
        record
        for group in trainer(count=64, name="b").batches.groups(0, 0)
        for batch in group
        for record in batch.records
    ]
    assert order != bucketed


# -- prefetching


def test_the_next_group_is_made_while_this_one_is_computed(trainer):
    made = trainer(count=64)
    groups = made.batches.groups(0, 0)
    asked: list[int] = []
    own = made.train_dataset.collate
    made.train_dataset.collate = lambda examples: asked.append(len(asked)) or own(examples)
    next(groups)
    next(groups)
    assert len(asked) >= 2
    following = made.batches.groups(0, 0)
    next(following)
    following.close()  # waits for what is being made; nothing runs on afterwards


def test_an_error_of_the_thread_that_makes_batches_is_raised_in_the_loop(trainer):
    made = trainer(count=64)

    def broken(examples):
        raise RuntimeError("a bad batch")

    made.train_dataset.collate = broken
    with pytest.raises(RuntimeError, match="a bad batch"):
        made.train()


# -- attention, compilation


@pytest.mark.parametrize("task", TASKS)
def test_attention_by_name_gives_the_same_loss(trainer, task):
    from mltrack.training import use_attention

    losses = []
    for word in ("sdpa", "eager"):
        made = trainer(task, name=word, dropout=0.0)
        use_attention(made.model, word, torch.device("cpu"), "off")
        assert made.model.config._attn_implementation == word
        made.train()
        losses.append(tiny.points(made.tracker.directory.journal, "train_loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_attention_that_is_not_there_is_refused_in_one_line(trainer):
    from mltrack.training import use_attention

    with pytest.raises(
        ConfigurationError,
        match=r"attention=flash_attention_2 .*device=cpu; use auto, eager or sdpa",
    ):
        use_attention(trainer().model, "flash_attention_2", torch.device("cpu"), "off")


def test_auto_takes_plain_attention_only_for_dropout_in_bf16_on_a_cpu(trainer):
    from mltrack.training import use_attention

    for dropout, precision, expected in ((0.1, "bf16", "eager"), (0.0, "bf16", "sdpa"), (0.1, "off", "sdpa")):
        made = trainer(name=f"{dropout}{precision}", dropout=dropout)
        use_attention(made.model, "auto", torch.device("cpu"), precision)
        assert made.model.config._attn_implementation == expected


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_a_compiled_model_trains_to_the_same_losses(trainer, task):
    counted = torch._dynamo.utils.counters["stats"]
    expected = trained(trainer, "plain", task, dropout=0.0, count=24)
    before = counted["unique_graphs"]
    found = trained(trainer, "compiled", task, dropout=0.0, count=24, compile=True)
    assert counted["unique_graphs"] > before
    assert found[0] == pytest.approx(expected[0], rel=1e-3)
    assert torch.allclose(found[2], expected[2], atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(("task", "graphs"), [("text_classification", 8), ("code_generation", 4)])
def test_layers_share_a_compilation_whatever_the_batch_and_are_as_before_afterwards(trainer, task, graphs):
    """One in training and one in evaluation, of an encoder each with a mask and without, and as many again for a single
    row.
    """
    made = trainer(task)
    model, layers, device = made.model.train(), repeated_layers(made.model), made.device
    assert len(layers) == 2
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()

    def forward(rows: int, width: int, padded: bool) -> torch.Tensor:
        ids = torch.full((rows, width), 7, device=device)
        mask = (
            {"attention_mask": (torch.arange(width, device=device) < width - 3).long().expand(rows, -1)}
            if padded and task == "text_classification"
            else {}
        )
        cache = {"use_cache": False} if task == "code_generation" else {}
        return model(input_ids=ids, **mask, **cache).logits

    with compiled_layers(model):
        for rows, width in ((8, 24), (5, 40), (1, 32), (3, 64), (7, 8), (1, 8)):
            for padded in (False, True):
                model.train()
                forward(rows, width, padded).sum().backward()
                model.eval()
                with torch.inference_mode():
                    forward(rows, width + 8, padded)
        assert counted["unique_graphs"] == graphs
    assert all(layer._compiled_call_impl is None for layer in layers)
    forward(1, 5, False)
    assert counted["unique_graphs"] == graphs
    with compiled_layers(model, without=layers[1]):
        assert [layer._compiled_call_impl is None for layer in layers] == [False, True]


@pytest.mark.long
def test_another_model_of_the_process_is_compiled_too():
    """More compilations than torch allows one function by itself."""
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()
    for number in range(1, 11):
        config = LlamaConfig(
            vocab_size=50, hidden_size=16 * number, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
        )
        model = LlamaForCausalLM(config)
        with compiled_layers(model), torch.no_grad():
            model(input_ids=torch.ones(2, 8, dtype=torch.int64), use_cache=False)
    assert counted["unique_graphs"] == 10


class Experts(torch.nn.Module):
    """A layer with a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))


def test_the_layers_of_a_model_are_found_and_nothing_else():
    def layers() -> torch.nn.ModuleList:
        return torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

    encoder, decoder = layers(), layers()
    heads = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(5))
    assert repeated_layers(torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder, "heads": heads})) == [
        *encoder,
        *decoder,
    ]
    mixed = torch.nn.ModuleList([torch.nn.Linear(8, 8), Experts(), torch.nn.Linear(8, 8), Experts()])
    assert repeated_layers(torch.nn.ModuleDict({"layers": mixed})) == [*mixed]
    blocks = torch.nn.ModuleList([encoder, decoder])
    assert repeated_layers(torch.nn.ModuleDict({"blocks": blocks})) == [*encoder, *decoder]
    assert repeated_layers(torch.nn.Linear(2, 2)) == []


def test_a_layer_that_was_compiled_before_is_as_it_was():
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))})
    model["layers"][0].compile()
    own = model["layers"][0]._compiled_call_impl
    with compiled_layers(model):
        assert model["layers"][0]._compiled_call_impl is not own
    assert [layer._compiled_call_impl for layer in model["layers"]] == [own, None]


def test_compiling_needs_a_compiler_and_says_so(trainer, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        ConfigurationError,
        match=r"compile=true needs a C\+\+ compiler.*compile=false",
    ):
        trainer(compile=True, device="cpu")
