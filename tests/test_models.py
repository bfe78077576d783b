"""Model names: what each form gives, and the one line that each wrong one ends in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from mltrack.errors import CheckpointError, ConfigurationError
from mltrack.models import PRESETS, ModelSource, resolve_model, save_pretrained

TEXTS = [f"def f{i}(x):\n    return x + {i}\n" for i in range(50)]
LABELS = {"safe": 0, "unsafe": 1}


def scratch(task: str) -> ModelSource:
    source = resolve_model("scratch:tiny", task)
    assert source.tokenizer is None
    source.train_tokenizer(TEXTS)
    return source


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of each task."""
    made = {}
    for task, labels in (("text_classification", LABELS), ("code_generation", None)):
        source = scratch(task)
        made[task] = tmp_path_factory.mktemp(task)
        save_pretrained(source.build(label_mapping=labels, max_length=64, seed=1), source.tokenizer, made[task])
    return made


@pytest.mark.parametrize(("task", "labels"), [("text_classification", LABELS), ("code_generation", None)])
def test_a_seed_gives_the_weights_and_the_global_random_state_stays(task: str, labels: dict[str, int] | None):
    source = scratch(task)
    before = torch.random.get_rng_state()
    one, same, other = (source.build(label_mapping=labels, max_length=64, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("task", ["text_classification", "code_generation"])
def test_a_saved_folder_comes_back_as_it_was(folders: dict[str, Path], task: str):
    labels = LABELS if task == "text_classification" else None
    source = resolve_model(str(folders[task]), task)
    assert source.kind == "folder"
    loaded = source.build(label_mapping=labels, max_length=64, seed=99)
    original = scratch(task).build(label_mapping=labels, max_length=64, seed=1).state_dict()
    assert all(torch.equal(value, original[name]) for name, value in loaded.state_dict().items())
    assert loaded.training
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    saved = json.loads((folders[task] / "config.json").read_text())
    prompt = {} if labels else {"prompt_template": '"""{description}"""\n'}
    assert saved["mltrack"] == {"task": task, "max_length": 64, **prompt}
    assert saved["pad_token_id"] == source.tokenizer.pad_token_id
    if labels:
        assert saved["id2label"] == {"0": "safe", "1": "unsafe"}
        assert saved["label2id"] == LABELS
    assert (folders[task] / "model.safetensors").is_file()


def test_the_registry_is_asked_through_the_resolver(folders: dict[str, Path]):
    asked: list[str] = []

    def resolver(uri: str) -> str:
        asked.append(uri)
        return str(folders["code_generation"])

    source = resolve_model("models:/mine@champion", "code_generation", registry_resolver=resolver)
    assert (source.kind, asked) == ("registry", ["models:/mine@champion"])
    with pytest.raises(ConfigurationError, match=r"no registry .*models:/mine@champion"):
        resolve_model("models:/mine@champion", "code_generation")


def test_new_classes_get_a_new_seeded_head_on_the_old_body(folders: dict[str, Path]):
    source = resolve_model(str(folders["text_classification"]), "security_classification")
    labels = {"safe": 0, "low": 1, "medium": 2, "high": 3, "critical": 4}
    one, same, other = (source.build(label_mapping=labels, max_length=64, seed=seed) for seed in (1, 1, 2))
    assert one.config.num_labels == 5
    assert one.config.label2id == labels
    head = "classifier.out_proj.weight"
    assert torch.equal(one.state_dict()[head], same.state_dict()[head])
    assert not torch.equal(one.state_dict()[head], other.state_dict()[head])
    body = "roberta.embeddings.word_embeddings.weight"
    assert torch.equal(one.state_dict()[body], other.state_dict()[body])


@pytest.mark.parametrize("task", ["text_classification", "code_generation"])
def test_a_sequence_of_full_length_fits_and_a_longer_one_is_refused_with_both_numbers(task: str):
    source = scratch(task)
    labels = LABELS if task == "text_classification" else None
    model = source.build(label_mapping=labels, max_length=512, seed=1)
    assert torch.isfinite(model(input_ids=torch.full((1, 512), 9)).logits).all()
    with pytest.raises(ConfigurationError, match=r"max_length.*512.*scratch:tiny.*513"):
        source.build(label_mapping=labels, max_length=513, seed=1)


def test_positions_of_a_loaded_encoder_leave_out_the_padding_offset(folders: dict[str, Path]):
    assert resolve_model(str(folders["text_classification"]), "text_classification").max_positions == 512


def test_a_tokenizer_without_padding_pads_with_its_end_and_keeps_its_vocabulary(
    folders: dict[str, Path], tmp_path: Path
):
    folder = shutil.copytree(folders["code_generation"], tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    source = resolve_model(str(folder), "code_generation")
    assert source.tokenizer.pad_token_id == source.tokenizer.eos_token_id
    model = source.build(label_mapping=None, max_length=64, seed=1)
    assert model.config.pad_token_id == source.tokenizer.eos_token_id
    assert model.config.vocab_size == len(source.tokenizer)


def test_preset_sizes():
    source = resolve_model("scratch:small", "code_generation")
    source.train_tokenizer(TEXTS)
    model = source.build(label_mapping=None, max_length=64, seed=1)
    full = sum(p.numel() for p in model.parameters()) + (8192 - len(source.tokenizer)) * 256
    assert 3e6 < full < 10e6
    assert PRESETS["scratch:base"].hidden_size * PRESETS["scratch:base"].vocab_size == 768 * 50265


def _config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _config(folder, "{bad"), "config.json cannot be read as JSON"),
        (lambda folder: _config(folder, "{}"), "has no model_type"),
        (lambda folder: _config(folder, "[]"), "model_type, not a list"),
        (lambda folder: _config(folder, '{"model_type": "nonesuch"}'), "nonesuch"),
        (lambda folder: _config(folder, '{"model_type": "t5"}'), "t5, which AutoModelForCausalLM cannot load"),
        (
            lambda folder: _config(folder, '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}'),
            "--trust-remote-code true",
        ),
        (lambda folder: (folder / "config.json").unlink(), "no config.json in"),
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{bad"), "its tokenizer cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_before_anything_else(
    folders: dict[str, Path], tmp_path: Path, damage, message: str
):
    folder = shutil.copytree(folders["code_generation"], tmp_path / "model")
    damage(folder)
    with pytest.raises(ConfigurationError, match=message) as caught:
        resolve_model(str(folder), "code_generation")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights.write_bytes(weights.read_bytes()[:1000]), "its weights are damaged"),
        (lambda weights: weights.write_bytes(b""), "its weights are damaged"),
        (lambda weights: weights.rename(weights.with_name("model.pt")), "has its weights in model.pt"),
        (lambda weights: weights.unlink(), "no weights in"),
    ],
)
def test_weights_that_cannot_be_read_are_refused_in_one_line(
    folders: dict[str, Path], tmp_path: Path, damage, message: str
):
    folder = shutil.copytree(folders["code_generation"], tmp_path / "model")
    damage(folder / "model.safetensors")
    with pytest.raises((CheckpointError, ConfigurationError), match=message) as caught:
        resolve_model(str(folder), "code_generation").build(label_mapping=None, max_length=64, seed=1)
    assert "\n" not in str(caught.value)


def test_an_encoder_is_no_code_generator(folders: dict[str, Path], tmp_path: Path):
    from transformers import RobertaConfig, RobertaForCausalLM

    tokenizer = resolve_model(str(folders["code_generation"]), "code_generation").tokenizer
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        is_decoder=True,
    )
    save_pretrained(RobertaForCausalLM(config), tokenizer, tmp_path)
    resolve_model(str(tmp_path), "code_generation").build(label_mapping=None, max_length=64, seed=1)
    _config(tmp_path, (tmp_path / "config.json").read_text().replace('"is_decoder": true', '"is_decoder": false'))
    with pytest.raises(ConfigurationError, match="sees the tokens that it should predict"):
        resolve_model(str(tmp_path), "code_generation").build(label_mapping=None, max_length=64, seed=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scratch:smal", r"'scratch:smal'.*scratch:tiny, .*did you mean 'scratch:small'\?"),
        ("/nowhere/at/all", "no folder '/nowhere/at/all'"),
        ("./missing", "no folder './missing'"),
        ("no such name", "no folder 'no such name'"),
        (__file__, "is a file; use a folder"),
    ],
)
def test_a_name_that_means_nothing_says_what_would(name: str, message: str):
    with pytest.raises(ConfigurationError, match=message):
        resolve_model(name, "code_generation")


def test_a_hub_name_without_network_is_one_line_within_seconds(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    for offline, message in ((True, "HF_HUB_OFFLINE is set"), (False, "the hub cannot be reached")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        )
        start = time.monotonic()
        with pytest.raises(ConfigurationError, match=message) as caught:
            resolve_model("someone/some-model-that-is-not-cached", "code_generation")
        assert time.monotonic() - start < 10
        assert "\n" not in str(caught.value)


# -- importing transformers

READ = """
import hashlib, sys
import transformers
from transformers.utils import import_utils

reads = lambda: import_utils.create_import_structure_from_path.cache_info().misses
first = reads()
{imported}
from transformers.models.auto import modeling_auto

models = sys.modules["transformers.models"]
known = [
    sorted(models._class_to_module.items()),
    sorted((name, sorted(names)) for name, names in models._import_structure.items()),
    sorted((name, sorted(needed)) for name, needed in models._object_missing_backend.items()),
]
print(first, reads() - first, hashlib.sha256(repr(known).encode()).hexdigest())
"""


def test_the_files_of_transformers_are_read_once_and_say_what_they_say_to_transformers():
    found = {}
    for imported in ("", "import mltrack.models"):
        done = subprocess.run(
            [sys.executable, "-c", READ.format(imported=imported)], capture_output=True, text=True, check=True
        )
        found[imported] = done.stdout.split()
    (first, again, expected), (_, by_mltrack, known) = found.values()
    assert int(first) > 100
    assert int(again) > 100, "transformers reads once itself now: mltrack/models/scan.py can go"
    assert int(by_mltrack) < 5, "one for each model that is imported"
    assert known == expected


def test_a_transformers_that_is_built_otherwise_is_left_alone(monkeypatch):
    from mltrack.models.scan import read_once

    class Elsewhere:
        """A function without a cache, or with one that has nothing."""

        def __call__(self, *_, **__):
            raise TypeError("other arguments")

    from transformers.utils import import_utils

    models = sys.modules.pop("transformers.models")
    try:
        for other in (Elsewhere(), lru_cache(lambda *_, **__: {frozenset(): {"models.bert": {"Bert"}}}), None):
            monkeypatch.setattr(import_utils, "define_import_structure", other)
            read_once()
            assert import_utils.define_import_structure is other
            assert "transformers.models" not in sys.modules
    finally:
        sys.modules["transformers.models"] = models
