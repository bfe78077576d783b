"""Checkpoints: what is saved comes back equal, what stays is decided by recorded metrics, what is damaged is
set aside.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import hf_folders
import numpy as np
import pytest
import torch
from hf_folders import write_model_folder
from torch import nn

from mltrack import CheckpointManager, CheckpointMetadata
from mltrack.checkpoints import state
from mltrack.checkpoints.tensor_file import DTYPES
from mltrack.errors import CheckpointError, ConfigurationError


class Tied(nn.Module):
    """Embedding and output share their weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.norm(self.embed(x)))


def _trained(steps=3):
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(steps):
        model(torch.arange(10)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model, optimizer, scheduler


def _equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def test_everything_comes_back_equal(tmp_path):
    model, optimizer, scheduler = _trained()
    scaler = torch.amp.GradScaler("cpu")
    manager = CheckpointManager(tmp_path)
    extra = {"note": "first", "nested": {"list": [1, 2.5, None, True]}, "tensor": torch.arange(3)}
    manager.save_checkpoint(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=scaler,
        epoch=5,
        step=1000,
        metric_value=0.35,
        extra_state=extra,
    )
    held = manager.load_best_checkpoint()
    assert (held["epoch"], held["step"], held["metric_value"]) == (5, 1000, 0.35)
    assert _equal(held["extra_state"], extra)
    assert _equal(dict(held["model_state_dict"]), dict(model.state_dict()))
    other, other_optimizer, other_scheduler = _trained(0)
    other.load_state_dict(held["model_state_dict"])
    other_optimizer.load_state_dict(held["optimizer_state_dict"])
    other_scheduler.load_state_dict(held["scheduler_state_dict"])
    assert _equal(other_optimizer.state_dict(), optimizer.state_dict())
    assert other_scheduler.last_epoch == scheduler.last_epoch
    assert _equal(held["scaler_state_dict"], scaler.state_dict())
    assert other.out.weight is other.embed.weight


class WithExtraState(nn.Linear):
    """Saves a tensor that is neither parameter nor buffer."""

    extra = torch.arange(3.0)

    def get_extra_state(self):
        return self.extra


def _model(kind: str) -> nn.Module:
    linear = nn.Linear(4, 4)
    model = nn.Sequential(linear, nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False), linear)
    model[1].register_buffer("not_saved", torch.zeros(2), persistent=False)
    model[1].register_buffer("none", None)
    if kind == "a hook of a child":
        model[1].register_state_dict_post_hook(
            lambda module, held, prefix, metadata: held.__delitem__(f"{prefix}running_var")
        )
    elif kind == "extra state":
        model.append(WithExtraState(4, 4))
    elif kind == "a state_dict of the instance's own":
        own = model.state_dict
        model.state_dict = lambda **options: {
            name: tensor for name, tensor in own(**options).items() if "bias" not in name
        }  # as adapters do it
    elif kind == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(model[2])
    return model


@pytest.mark.parametrize(
    "kind", ["plain", "a hook of a child", "extra state", "a state_dict of the instance's own", "parametrized"]
)
def test_what_is_saved_of_a_model_is_its_state_dict(kind, tmp_path):
    model = _model(kind)
    wanted = model.state_dict()
    held = state.join_model(*state.split_model(model))
    assert {name: tensor.data_ptr() for name, tensor in held.items()} == {
        name: tensor.data_ptr() for name, tensor in wanted.items()
    }
    manager = CheckpointManager(tmp_path)
    manager.save_checkpoint(model=model, epoch=0, step=1)
    assert _equal(dict(manager.load_latest_checkpoint()["model_state_dict"]), dict(wanted))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of open files as Linux tells them")
def test_each_file_and_both_folders_are_synced_around_the_one_rename(tmp_path, monkeypatch):
    """Real calls, written down: a power cut after the rename finds all bytes of what it made visible."""
    happened, fsync, rename = [], os.fsync, Path.rename

    def synced(descriptor):
        happened.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def renamed(path, target):
        happened.append(("rename", path))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    model, optimizer, _ = _trained()
    info = CheckpointManager(tmp_path).save_checkpoint(model=model, optimizer=optimizer, epoch=0, step=1)
    (at,) = [place for place, (what, _) in enumerate(happened) if what == "rename"]
    temporary = happened[at][1]
    assert {path for _, path in happened[:at]} == {temporary, *(temporary / path.name for path in info.path.iterdir())}
    assert happened[at - 1] == ("sync", temporary)
    assert happened[at + 1 :] == [("sync", tmp_path)]


def test_tied_weights_are_written_once(tmp_path):
    model, _, _ = _trained()
    info = CheckpointManager(tmp_path).save_checkpoint(model=model, epoch=0, step=1, metric_value=1.0)
    assert info.aliases == {"out.weight": "embed.weight"}
    assert info.files["model.safetensors"]["bytes"] < 2 * 10 * 4 * 4 + 600


def test_the_weights_alone_come_without_a_look_into_the_optimizers_file(tmp_path):
    model, optimizer, _ = _trained()
    manager = CheckpointManager(tmp_path)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=0, step=1, metric_value=0.5)
    file = manager.get_best_checkpoint_info().path / "optimizer.safetensors"
    file.write_bytes(b"x" * file.stat().st_size)
    for held in (manager.load_best_checkpoint(weights_only=True), manager.load_latest_checkpoint(weights_only=True)):
        assert _equal(held["model_state_dict"], dict(model.state_dict()))
        assert (held["optimizer_state_dict"], held["metadata"].step) == (None, 1)
    with pytest.warns(UserWarning, match="optimizer.safetensors: its sha256 differs"):
        assert manager.load_best_checkpoint() is None


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_large_weights_are_in_several_files_that_transformers_and_mlflow_read(tmp_path, tied, background):
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    folder = hf_folders.decoder_folder(tmp_path / "source")
    config = LlamaForCausalLM.from_pretrained(folder).config
    config.tie_word_embeddings = tied
    model = LlamaForCausalLM(config)
    model.generation_config.max_new_tokens = 7
    manager = CheckpointManager(
        tmp_path / "held",
        background=background,
        max_shard_bytes=40_000,
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    manager.save_checkpoint(model=model, epoch=0, step=1, metric_value=1.0)
    info = manager.get_best_checkpoint_info()
    shards = sorted(info.path.glob("model-*.safetensors"))
    assert len(shards) >= 3
    assert [path.name for path in shards] == [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]
    assert all(path.stat().st_size < 42_000 for path in shards)
    index = json.loads((info.path / "model.safetensors.index.json").read_text())
    assert ("lm_head.weight" in index["weight_map"]) is not tied
    assert index["metadata"]["total_size"] == sum(parameter.nbytes for parameter in model.parameters())
    assert _equal(manager.load_best_checkpoint()["model_state_dict"], dict(model.state_dict()))
    write_model_folder(info.path, tmp_path / "published", task="code_generation", hf_config={}, requirements=[])
    for place in (info.path, tmp_path / "published"):
        loaded = AutoModelForCausalLM.from_pretrained(place)
        assert _equal(dict(loaded.state_dict()), dict(model.state_dict()))
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
        assert loaded.generation_config.max_new_tokens == 7
        assert AutoTokenizer.from_pretrained(place)("def f")["input_ids"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_the_unwrapped_model_is_saved(tmp_path, wrap):
    model, _, _ = _trained()
    CheckpointManager(tmp_path).save_checkpoint(model=wrap(model), epoch=0, step=1)
    assert set(CheckpointManager(tmp_path).load_latest_checkpoint()["model_state_dict"]) == set(model.state_dict())


def test_the_best_the_latest_and_milestones_stay(tmp_path):
    manager = CheckpointManager(tmp_path, max_checkpoints=2, metric_name="eval_loss", keep_every=40)
    model, _, _ = _trained()
    for step, value in (
        (10, 0.5),
        (20, 0.3),
        (30, 0.9),
        (40, 0.8),
        (50, 0.3),
        (60, math.nan),
        (70, None),
        (80, 0.7),
        (90, 0.6),
    ):
        manager.save_checkpoint(model=model, epoch=0, step=step, metric_value=value)
    assert [one.step for one in manager.list_checkpoints()] == [20, 40, 50, 80, 90]
    assert manager.get_best_checkpoint_info().step == 20
    assert manager.get_latest_checkpoint_info().step == 90
    assert isinstance(manager.get_best_checkpoint_info(), CheckpointMetadata)


def test_higher_is_better_where_the_name_says_so(tmp_path):
    manager = CheckpointManager(tmp_path, max_checkpoints=1, metric_name="eval_macro_f1")
    model, _, _ = _trained()
    for step, value in ((1, 0.2), (2, 0.8), (3, 0.5)):
        manager.save_checkpoint(model=model, epoch=0, step=step, metric_value=value)
    assert [one.step for one in manager.list_checkpoints()] == [2, 3]


def test_names_of_folders_decide_nothing(tmp_path):
    manager = CheckpointManager(tmp_path, max_checkpoints=5)
    model, _, _ = _trained()
    for step, value in ((1, 0.1), (2, 0.2)):
        manager.save_checkpoint(model=model, epoch=0, step=step, metric_value=value)
    (tmp_path / "step-00000001").rename(tmp_path / "zzz")
    (tmp_path / "step-00000009").mkdir()
    assert manager.get_latest_checkpoint_info().step == 2
    assert manager.get_best_checkpoint_info().path == tmp_path / "zzz"


def test_only_this_runs_checkpoints_are_deleted(tmp_path):
    model, _, _ = _trained()
    CheckpointManager(tmp_path, run_id="theirs", on_change=lambda *_: None).save_checkpoint(
        model=model, epoch=0, step=1, metric_value=9.0
    )
    mine = CheckpointManager(tmp_path, run_id="mine", max_checkpoints=1, on_change=lambda *_: None)
    for step in (2, 3, 4):
        mine.save_checkpoint(model=model, epoch=0, step=step, metric_value=1.0 / step)
    assert [one.step for one in mine.list_checkpoints()] == [4]
    theirs = CheckpointManager(tmp_path, run_id="theirs", on_change=lambda *_: None).list_checkpoints()
    assert [one.step for one in theirs] == [1]
    with pytest.raises(CheckpointError, match="belongs to run theirs"):
        mine.delete_checkpoint(theirs[0])


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_checkpoint_is_set_aside_and_the_next_is_taken(tmp_path, damage):
    manager = CheckpointManager(tmp_path)
    model, _, _ = _trained()
    manager.save_checkpoint(model=model, epoch=0, step=1, metric_value=0.5)
    info = manager.save_checkpoint(model=model, epoch=0, step=2, metric_value=0.4)
    file = info.path / "model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    elif damage == "cut":
        file.write_bytes(bytes(content[:-1]))
    else:
        file.unlink()
    with pytest.warns(
        UserWarning, match=r"step-00000002: damaged \(model.safetensors: .*set aside as damaged-step-00000002"
    ):
        assert manager.load_best_checkpoint()["step"] == 1
    assert (tmp_path / "damaged-step-00000002").is_dir()
    assert [one.step for one in manager.list_checkpoints()] == [1]


FULL_DISK = """
import resource, sys
from pathlib import Path
from torch import nn
from mltrack import CheckpointManager
from mltrack.errors import CheckpointError

small, large = nn.Linear(10, 10), nn.Linear(300, 300)
for limit in map(int, sys.argv[2:]):
    for background in (False, True):
        folder = Path(sys.argv[1]) / f"{limit}-{background}"
        manager = CheckpointManager(folder, background=background)
        manager.save_checkpoint(model=small, epoch=0, step=1, metric_value=0.5)
        manager.finish()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        try:
            manager.save_checkpoint(model=large, epoch=0, step=2, metric_value=0.4)
            manager.finish()
        except CheckpointError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["step-00000001"], names
        assert manager.load_best_checkpoint()["step"] == 1
        manager.save_checkpoint(model=small, epoch=0, step=3, metric_value=0.3)
        assert manager.load_best_checkpoint()["step"] == 3
        manager.close()
"""


def test_a_disk_that_fills_up_at_any_write_leaves_what_was_complete(tmp_path):
    """The file system refuses a file's byte number `limit`: in the first small file, at the weights' start, amid them,
    at their end.
    """
    limits = ("1", "64", "100000", "361200")
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), *limits], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert len(said) == 2 * len(limits)
    for line in said:
        assert re.search(
            r"step-00000002: not written: File too large; 36\d,\d{3} bytes are needed, [\d,]+ are free there; earlier"
            r" .* intact$",
            line,
        ), line


def test_a_file_system_without_room_is_refused_before_the_first_byte(tmp_path):
    """A real file system of 300 kB, where an unprivileged mount namespace is to be had."""
    mount = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=300k none "$0" && exec "$@"',
        str(tmp_path),
    ]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace for this user")
    ended = subprocess.run(
        [*mount, sys.executable, "-c", FULL_DISK, str(tmp_path), "0"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    needed, free = (
        int(number.replace(",", ""))
        for number in re.search(r"not written: ([\d,]+) bytes are needed, ([\d,]+) are free", ended.stdout).groups()
    )
    assert free < 300 * 1024 < 360_000 < needed < 370_000


def test_a_checkpoint_whose_metadata_cannot_be_read_is_set_aside_too(tmp_path):
    manager = CheckpointManager(tmp_path)
    model, _, _ = _trained()
    for step in (1, 2):
        info = manager.save_checkpoint(model=model, epoch=0, step=step, metric_value=1.0)
    (info.path / "metadata.json").write_text("{")
    reader = CheckpointManager(tmp_path, read_only=True)
    with pytest.warns(UserWarning, match=r"step-00000002: damaged \(.*\); the next one is taken"):
        assert reader.load_latest_checkpoint()["step"] == 1
    with pytest.warns(UserWarning, match=r"step-00000002: damaged \(.*\); set aside as damaged-step-00000002"):
        assert manager.load_latest_checkpoint()["step"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert manager.load_latest_checkpoint()["step"] == 1


def test_the_configuration_and_the_tokenizer_are_those_of_the_save(tmp_path):
    folder = hf_folders.encoder_folder(tmp_path / "source")
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    model, words = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    manager = CheckpointManager(tmp_path / "held", max_checkpoints=3, tokenizer=words, background=True)
    manager.save_checkpoint(model=model, epoch=0, step=1, metric_value=1.0)
    model.config.mltrack["max_length"] = 77
    manager.save_checkpoint(model=model, epoch=0, step=2, metric_value=1.0)
    words.add_tokens(["<new>"])
    manager.save_checkpoint(model=model, epoch=0, step=3, metric_value=1.0)
    places = [one.path for one in manager.list_checkpoints()]
    assert [AutoConfig.from_pretrained(place).mltrack["max_length"] for place in places] == [64, 77, 77]
    assert [len(AutoTokenizer.from_pretrained(place)) - len(words) for place in places] == [-1, -1, 0]


def test_values_are_told_apart_whatever_their_keys(tmp_path):
    model, _, _ = _trained()
    manager = CheckpointManager(tmp_path)
    extra = {
        "a.b": torch.tensor([1.0]),
        "a": {"b": torch.tensor([2.0])},
        "one": (1, torch.tensor(3)),
        "empty": torch.zeros(0, 3),
    }
    manager.save_checkpoint(model=model, epoch=0, step=1, extra_state=extra)
    assert _equal(manager.load_latest_checkpoint()["extra_state"], extra)
    for clash in ({1: "a", "1": "b"}, {"__tensor__": "a"}):
        with pytest.raises(CheckpointError, match=r"extra_state\.clash: its keys must differ as text"):
            manager.save_checkpoint(model=model, epoch=0, step=2, extra_state={"clash": clash})


@pytest.mark.parametrize("background", [False, True])
def test_each_type_of_tensor_and_views_come_back(tmp_path, background):
    model = nn.Module()
    for dtype in DTYPES:
        values = torch.arange(12).reshape(3, 4).to(dtype).t()
        model.register_buffer(f"of_{DTYPES[dtype]}", values)
    model.register_buffer("part", torch.arange(100.0)[::7])
    model.register_buffer("number", torch.tensor(3.5))
    manager = CheckpointManager(tmp_path, background=background)
    manager.save_checkpoint(model=model, epoch=0, step=1)
    held = manager.load_latest_checkpoint()["model_state_dict"]
    for name, tensor in model.state_dict().items():
        assert (held[name].dtype, held[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(
            held[name].contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8)
        ), name


def test_leftovers_of_a_killed_writer_are_gone_at_the_next_start(tmp_path):
    (tmp_path / ".writing-step-00000007-123").mkdir()
    CheckpointManager(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_is_named_by_its_key(tmp_path):
    model, _, _ = _trained()
    with pytest.raises(CheckpointError, match=r"extra_state\.deep\.1 must be .*, not object"):
        CheckpointManager(tmp_path).save_checkpoint(model=model, epoch=0, step=1, extra_state={"deep": [1, object()]})


def test_a_newer_format_is_refused(tmp_path):
    model, _, _ = _trained()
    manager = CheckpointManager(tmp_path)
    info = manager.save_checkpoint(model=model, epoch=0, step=1)
    path = info.path / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(CheckpointError, match="checkpoint format 99 is newer than 1"):
        manager.list_checkpoints()


def test_random_sequences_continue_where_they_were():
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    np.random.normal()  # leaves a cached gaussian behind
    held = state.capture_rng()
    tensors = {}
    content = json.loads(json.dumps(state.flatten(held, "rng", tensors)))
    expected = (random.random(), random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(3))
    state.restore_rng(state.unflatten(content, tensors))
    again = (random.random(), random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(3))
    assert again[:4] == expected[:4]
    assert torch.equal(again[4], expected[4])


def test_bad_options_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="mode must be min or max, not 'low'"):
        CheckpointManager(tmp_path, mode="low")
    with pytest.raises(ConfigurationError, match=r"max_checkpoints.* >= 1, not 0"):
        CheckpointManager(tmp_path, max_checkpoints=0)
    with pytest.raises(ConfigurationError, match="when_busy must be wait or skip, not 'drop'"):
        CheckpointManager(tmp_path, when_busy="drop")
    with pytest.raises(ConfigurationError, match=r"max_shard_bytes.* >= 1, not 0"):
        CheckpointManager(tmp_path, max_shard_bytes=0)
