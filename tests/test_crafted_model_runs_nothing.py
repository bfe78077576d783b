"""A model folder that was made to run code when it is loaded: refused in one line, and nothing has run."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

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
    with pytest.raises(CheckpointError, match=r"its weights are refused: .*accepted: safetensors") as caught:
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


def test_a_bin_of_plain_tensors_is_read_with_a_warning_and_saved_as_safetensors(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
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
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'it-ran')!r}).touch()\nclass Config: pass\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    if model_type == "own":
        with pytest.raises(ConfigurationError, match=r"brings Python code of its own; accepted: .*--trust-remote-code true"):
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
