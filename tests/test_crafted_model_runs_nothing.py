"""A model folder or a checkpoint that was made to run code or to break its reader: refused in one line, and nothing has
run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mltrack import CheckpointManager
from mltrack.checkpoints.state import load_model, load_optimizer
from mltrack.errors import CheckpointError, ConfigurationError
from mltrack.models import resolve_model, save_pretrained

TEXTS = [f"def f{i}(x):\n    return x + {i}\n" for i in range(50)]


class _Trap:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = resolve_model("scratch:tiny", "code_generation")
    source.train_tokenizer(TEXTS)
    save_pretrained(source.build(label_mapping=None, max_length=64, seed=1), source.tokenizer, tmp_path / "model")
    return tmp_path / "model"


def _write(folder: Path, writer: str, trap: _Trap) -> None:
    file = folder / "pytorch_model.bin"
    if writer == "torch":
        torch.save({"model.embed_tokens.weight": trap}, file)
    elif writer == "torch, old format":
        torch.save({"model.embed_tokens.weight": trap}, file, _use_new_zipfile_serialization=False)
    else:
        file.write_bytes(pickle.dumps(trap))


@pytest.mark.parametrize("writer", ["torch", "torch, old format", "pickle"])
def test_a_bin_that_would_run_code_is_refused(folder: Path, tmp_path: Path, writer: str):
    (folder / "model.safetensors").unlink()
    _write(folder, writer, _Trap(tmp_path / "it-ran"))
    with pytest.raises(CheckpointError, match=r"its weights .* could run code; use safetensors") as caught:
        resolve_model(str(folder), "code_generation").build(label_mapping=None, max_length=64, seed=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "it-ran").exists()


def test_the_trap_does_work(tmp_path: Path):
    pickle.loads(pickle.dumps(_Trap(tmp_path / "it-ran")))
    assert (tmp_path / "it-ran").exists()


def test_a_crafted_bin_beside_safetensors_is_not_even_opened(folder: Path, tmp_path: Path):
    _write(folder, "torch", _Trap(tmp_path / "it-ran"))
    resolve_model(str(folder), "code_generation").build(label_mapping=None, max_length=64, seed=1)
    assert not (tmp_path / "it-ran").exists()


def test_a_bin_of_plain_tensors_is_read_with_a_warning_and_saved_as_safetensors(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with caplog.at_level(logging.WARNING):
        source = resolve_model(str(folder), "code_generation")
        model = source.build(label_mapping=None, max_length=64, seed=7)
    assert "has no safetensors" in caplog.text
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    save_pretrained(model, source.tokenizer, tmp_path / "saved")
    assert sorted(file.name for file in (tmp_path / "saved").glob("*model*")) == ["model.safetensors"]


@pytest.mark.parametrize("model_type", ["own", "llama"])
def test_python_code_beside_the_model_does_not_run(folder: Path, tmp_path: Path, model_type: str):
    (folder / "own.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'it-ran')!r}).touch()\nclass Config: pass\nclass Model: pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    if model_type == "own":
        with pytest.raises(ConfigurationError, match=r"brings Python code of its own; .*--trust-remote-code true"):
            resolve_model(str(folder), "code_generation")
    else:  # transformers has its own code for a llama, and that is what runs
        resolve_model(str(folder), "code_generation").build(label_mapping=None, max_length=64, seed=1)
    assert not (tmp_path / "it-ran").exists()


def test_a_folder_with_pickled_extras_alone_has_no_weights(folder: Path, tmp_path: Path):
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere")
    (folder / "training_args.bin").write_bytes(pickle.dumps(_Trap(tmp_path / "it-ran")))
    with pytest.raises(ConfigurationError, match="no weights in"):
        resolve_model(str(folder), "code_generation").build(label_mapping=None, max_length=64, seed=1)
    assert not (tmp_path / "it-ran").exists()


# -- checkpoints


def _checkpoint(folder: Path) -> CheckpointManager:
    """Two checkpoints of a trained layer; the second is what gets crafted."""
    manager = CheckpointManager(folder)
    model, optimizer = _layer()
    for step in (1, 2):
        manager.save_checkpoint(
            model=model,
            optimizer=optimizer,
            epoch=0,
            step=step,
            metric_value=1.0,
            extra_state={"numbers": torch.arange(3)},
        )
    return manager


def _layer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    return model, optimizer


def _sealed(path: Path, change: Callable[[Path, dict[str, Any]], None]) -> None:
    """Apply a change and make every recorded size and hash agree with it, as an attacker would."""
    content = json.loads((path / "metadata.json").read_text())
    change(path, content)
    for name in content["files"] if isinstance(content.get("files"), dict) else ():
        if os.path.isfile(path / name):
            data = (path / name).read_bytes()
            content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "metadata.json").write_text(json.dumps(content))


def _raw(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def _weights(content: bytes) -> Callable[[Path, dict[str, Any]], None]:
    return lambda path, _: (path / "model.safetensors").write_bytes(content) and None


def _json(name: str, text: str) -> Callable[[Path, dict[str, Any]], None]:
    return lambda path, _: (path / name).write_text(text) and None


def _recorded(**values: Any) -> Callable[[Path, dict[str, Any]], None]:
    return lambda _, content: content.update(values)


def _outside(name: str) -> Callable[[Path, dict[str, Any]], None]:
    def change(path: Path, content: dict[str, Any]) -> None:
        content["files"][name] = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}

    return change


_TENSOR = '{"weight":{"dtype":"%s","shape":%s,"data_offsets":[0,%d]}}'

CRAFTED: dict[str, tuple[Callable[[Path, dict[str, Any]], None], str]] = {
    "a path above": (_outside("../../secret"), "a path out of the checkpoint"),
    "an absolute path": (_outside("/etc/hostname"), "a path out of the checkpoint"),
    "a path of Windows": (_outside("..\\secret"), "a path out of the checkpoint"),
    "a drive of Windows": (_outside("C:secret"), "a path out of the checkpoint"),
    "a name that no file can have": (_outside("a" * 5000), "of 5,000 characters must have at most 255 bytes"),
    "a path that no file can have": (_outside("a/" * 2500), "of 5,000 characters must have at most 255 bytes"),
    "no weights recorded": (lambda _, content: content["files"].pop("model.safetensors") and None, "names no weights"),
    "header longer than the file": (_weights(_raw(b"{}", length=1 << 62)), "cannot be read as a safetensors file"),
    "header of a gigabyte": (_weights(_raw(b"{}", length=1 << 30)), "cannot be read as a safetensors file"),
    "header that is no JSON": (_weights(_raw(b"pickle!!")), "cannot be read as a safetensors file"),
    "header that is nested deeply": (_weights(_raw(b'{"a":' * 50_000)), "cannot be read as a safetensors file"),
    "shape beyond the data": (
        _weights(_raw((_TENSOR % ("F32", "[4000,3000]", 48)).encode(), b"\0" * 48)),
        "cannot be read as a safetensors file",
    ),
    "shape that overflows": (
        _weights(_raw((_TENSOR % ("F32", "[4294967296,4294967296]", 48)).encode(), b"\0" * 48)),
        "cannot be read as a safetensors file",
    ),
    "data beyond the file": (
        _weights(_raw((_TENSOR % ("F32", "[4,3]", 48)).encode(), b"\0" * 8)),
        "cannot be read as a safetensors file",
    ),
    "a type that is none": (
        _weights(_raw((_TENSOR % ("OBJECT", "[4,3]", 48)).encode(), b"\0" * 48)),
        "cannot be read as a safetensors file",
    ),
    "an empty file": (_weights(b""), "cannot be read as a safetensors file"),
    "state that is a list": (_json("state.json", "[]"), "state.json must be a JSON object, not a list"),
    "state that is nested deeply": (_json("state.json", "[" * 100_000), "state.json cannot be read as JSON"),
    "state of a tensor elsewhere": (
        _json("state.json", '{"extra_state": {"a": {"__tensor__": "../x"}}}'),
        "../x: this tensor is not there",
    ),
    "state of a tensor by a list": (
        _json("state.json", '{"extra_state": {"a": {"__tensor__": ["x"]}}}'),
        "['x']: this tensor is not there",
    ),
    "optimizer without state": (_json("optimizer.json", '{"param_groups": []}'), "not numbered by parameter"),
    "optimizer with a named state": (
        _json("optimizer.json", '{"state": {"__class__": {}}, "param_groups": []}'),
        "not numbered by parameter",
    ),
    "tied to nothing": (_recorded(aliases={"weight": "elsewhere"}), "tied to elsewhere, which is not there"),
    "tied to a list": (_recorded(aliases={"weight": ["a"]}), "aliases must be names"),
    "files that are a list": (_recorded(files=["model.safetensors"]), "files must be dict, not"),
    "sizes that are words": (
        _recorded(files={"elsewhere": {"bytes": "many", "sha256": "x"}}),
        "'elsewhere' must have bytes and sha256",
    ),
    "a step that is a word": (_recorded(step="../../2"), "step must be int, not '../../2'"),
    "metrics that are words": (_recorded(metrics={"eval_loss": "low"}), "metrics must be numbers"),
    "metadata that is a list": (
        lambda path, content: content.clear(),
        "metadata.json: epoch must be int, not 'None'",
    ),
}


@pytest.mark.parametrize("crafted", CRAFTED)
def test_a_crafted_checkpoint_is_set_aside_in_one_line(tmp_path: Path, crafted: str):
    change, problem = CRAFTED[crafted]
    (tmp_path / "secret").write_text("secret")
    manager = _checkpoint(tmp_path / "checkpoints")
    _sealed(tmp_path / "checkpoints" / "step-00000002", change)
    with pytest.warns(
        UserWarning, match="step-00000002: damaged .* set aside as damaged-step-00000002, the next one is taken"
    ) as caught:
        assert manager.load_latest_checkpoint()["step"] == 1
    (message,) = [str(one.message) for one in caught]
    assert problem in message
    assert "\n" not in message
    assert len(message) < 600
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "damaged-step-00000002",
        "step-00000001",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.safetensors",
        "state.safetensors",
        "state.json",
        "optimizer.json",
        "metadata.json",
    ],
)
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_under_a_safe_name_does_not_run(tmp_path: Path, name: str, writer: str):
    trap = _Trap(tmp_path / "it-ran")

    def change(path: Path, content: dict[str, Any]) -> None:
        if writer == "torch":
            torch.save({"weight": trap}, path / name)
        else:
            (path / name).write_bytes(pickle.dumps(trap))

    manager = _checkpoint(tmp_path / "checkpoints")
    if name == "metadata.json":
        change(tmp_path / "checkpoints" / "step-00000002", {})
    else:
        _sealed(tmp_path / "checkpoints" / "step-00000002", change)
    with pytest.warns(UserWarning, match="step-00000002: damaged") as caught:
        assert manager.load_latest_checkpoint()["step"] == 1
    assert "\n" not in str(caught[0].message)
    assert not (tmp_path / "it-ran").exists()


def test_one_checkpoint_asked_for_by_name_is_an_error_in_one_line(tmp_path: Path):
    manager = _checkpoint(tmp_path)
    info = manager.get_latest_checkpoint_info()
    _sealed(info.path, CRAFTED["shape beyond the data"][0])
    with pytest.raises(CheckpointError, match="cannot be read as a safetensors file") as caught:
        manager.load_checkpoint(manager.get_latest_checkpoint_info())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (
            {"weight": torch.zeros(3, 5), "bias": torch.zeros(3)},
            r"weights: weight must be \[3, 4\] of torch.float32, not \[3, 5\] of torch.float32",
        ),
        (
            {"weight": torch.zeros(3, 4).double(), "bias": torch.zeros(3)},
            r"weights: weight must be .* of torch.float32, not \[3, 4\] of torch.float64",
        ),
        ({"weight": torch.zeros(3, 4)}, "weights: bias is missing"),
        (
            {"weight": torch.zeros(3, 4), "bias": torch.zeros(3), "more": torch.zeros(1)},
            "weights: more is not in this model",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_the_model_stays(weights: dict[str, torch.Tensor], problem: str):
    model, _ = _layer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_model(model, weights)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_an_optimizer_that_does_not_fit_is_refused(tmp_path: Path):
    _, optimizer = _layer()
    held = optimizer.state_dict()
    wrong_shape = {**held, "state": {**held["state"], 0: {**held["state"][0], "exp_avg": torch.zeros(4, 4)}}}
    with pytest.raises(CheckpointError, match=r"optimizer: exp_avg of parameter 0 must .*\[3, 4\].* not \[4, 4\]"):
        load_optimizer(optimizer, wrong_shape)
    with pytest.raises(CheckpointError, match=r"optimizer: .*parameter 7; .* 0 to 1"):
        load_optimizer(optimizer, {**held, "state": {7: {}}})
    with pytest.raises(CheckpointError, match=r"optimizer: loaded state dict .*; use the state of the same AdamW"):
        load_optimizer(optimizer, {**held, "param_groups": []})
    load_optimizer(optimizer, held)
