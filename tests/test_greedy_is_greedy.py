"""Temperature 0 takes the likeliest token, whatever the base model's generation settings say; above 0 nothing but the
temperature counts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import hf_folders
import pytest
import torch
from hf_folders import load_folder

from mltrack.checkpoints.model_folder import ModelFolder
from mltrack.evaluation import generate_samples
from mltrack.models import resolve_model, save_pretrained

TOKENS = 14
DESCRIPTIONS = ["Reverse a string", "Add two numbers", "x"]
SETTINGS: dict[str, Any] = {
    "sampling and penalties": {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 20,
        "suppress_tokens": [10, 11],
    },
    "forced tokens": {"forced_bos_token_id": 40, "forced_eos_token_id": 41},
    "bad words": {"bad_words_ids": [[token] for token in range(40, 200)]},
    "suppressed at the beginning": {"begin_suppress_tokens": list(range(3, 200))},
    "a bias": {"sequence_bias": [[[50], 100.0]]},
    "a least length": {"min_length": 100, "min_new_tokens": 100},
    "a largest length": {"max_length": 3, "max_new_tokens": 2, "max_time": 1e-9},
    "a decay": {"exponential_decay_length_penalty": [1, 50.0]},
    "beams": {"num_beams": 4, "length_penalty": -2.0, "early_stopping": True, "num_return_sequences": 3},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "looking up the prompt": {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 2},
    "an assistant": {"is_assistant": True, "num_assistant_tokens": 5, "assistant_early_exit": 1},
    "other ends": {"eos_token_id": list(range(30, 200)), "pad_token_id": -1, "stop_strings": ["a", "e"]},
    "guidance": {"guidance_scale": 3.0, "renormalize_logits": True},
    "a watermark": {"watermarking_config": {"bias": 50.0}},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4, "dola_layers": "low"},
    "an answer in parts": {"return_dict_in_generate": True, "output_scores": True},
    "what cannot be saved": {"do_sample": False, "temperature": 0.7, "num_return_sequences": 3},
    "what cannot be loaded": {"early_stopping": "perhaps", "max_new_tokens": -1, "cache_implementation": "none such"},
    "methods": {"validate": 1, "to_dict": 2, "update": 3},
    "no object": [],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = hf_folders.decoder_folder(tmp_path_factory.mktemp("decoder") / "plain")
    (folder / "generation_config.json").unlink()
    return folder


def _with_settings(plain: Path, folder: Path, settings: Any) -> Path:
    shutil.copytree(plain, folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def model(plain: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(plain).eval()


@pytest.fixture(scope="module")
def expected(model: Any) -> list[str]:
    """By hand: the likeliest token, until the end token."""
    return [_by_hand(model, description, lambda logits: int(logits.argmax())) for description in DESCRIPTIONS]


def _by_hand(model: Any, description: str, choose: Any) -> str:
    words = hf_folders.tokenizer("decoder")
    ids = [
        words.bos_token_id,
        *words(hf_folders.PROMPT.format(description=description), add_special_tokens=False).input_ids,
    ]
    completion: list[int] = []
    with torch.inference_mode():
        while len(completion) < TOKENS and words.eos_token_id not in completion:
            completion.append(choose(model(input_ids=torch.tensor([ids + completion])).logits[0, -1].float()))
    return str(words.decode(completion, skip_special_tokens=True))


def _samples(model: Any, tokenizer: Any) -> list[str]:
    samples = generate_samples(model, tokenizer, DESCRIPTIONS, max_new_tokens=TOKENS, prompt_template=hf_folders.PROMPT)
    return [sample.completion for sample in samples]


@pytest.mark.parametrize("what", SETTINGS)
def test_a_model_that_is_trained_takes_the_likeliest_token(
    plain: Path, tmp_path: Path, expected: list[str], what: str
) -> None:
    source = resolve_model(str(_with_settings(plain, tmp_path / "base", SETTINGS[what])), "code_generation")
    trained = source.build(label_mapping=None, max_length=64, seed=1)
    assert _samples(trained, source.tokenizer) == expected
    save_pretrained(trained, source.tokenizer, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved.keys() - {"transformers_version"} == {"bos_token_id", "eos_token_id", "pad_token_id"}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_model_that_was_saved_with_settings_answers_with_the_likeliest_token(
    plain: Path, tmp_path: Path, expected: list[str], what: str
) -> None:
    loaded = load_folder(_with_settings(plain, tmp_path / "version", SETTINGS[what]))
    assert loaded.predict(DESCRIPTIONS, {"max_new_tokens": TOKENS}) == expected
    assert loaded.predict(DESCRIPTIONS, {"max_new_tokens": TOKENS, "temperature": 0}) == expected


def test_settings_in_the_models_own_configuration_do_not_count_either(
    plain: Path, tmp_path: Path, expected: list[str]
) -> None:
    folder = shutil.copytree(plain, tmp_path / "base")
    config = (
        json.loads((folder / "config.json").read_text())
        | SETTINGS["sampling and penalties"]
        | SETTINGS["forced tokens"]
    )
    (folder / "config.json").write_text(json.dumps(config))
    source = resolve_model(str(folder), "code_generation")
    assert _samples(source.build(label_mapping=None, max_length=64, seed=1), source.tokenizer) == expected
    assert load_folder(folder).predict(DESCRIPTIONS, {"max_new_tokens": TOKENS}) == expected


def test_samples_of_a_users_own_model_are_greedy_and_its_settings_stay(model: Any, expected: list[str]) -> None:
    from transformers import GenerationConfig

    own = GenerationConfig(**SETTINGS["sampling and penalties"], pad_token_id=1, eos_token_id=2)
    before, model.generation_config = model.generation_config, own
    try:
        assert _samples(model, hf_folders.tokenizer("decoder")) == expected
        assert model.generation_config is own
    finally:
        model.generation_config = before


def test_sampling_takes_the_temperature_and_nothing_else(plain: Path, tmp_path: Path, model: Any) -> None:
    def draw(logits: torch.Tensor) -> int:
        return int(torch.multinomial((logits / 3.0).softmax(dim=-1), num_samples=1))

    torch.manual_seed(5)
    expected = _by_hand(model, DESCRIPTIONS[0], draw)
    for name, settings in (
        ("none", {}),
        ("many", SETTINGS["sampling and penalties"] | {"top_k": 1, "min_p": 0.9, "typical_p": 0.1}),
    ):
        loaded = load_folder(_with_settings(plain, tmp_path / name, settings))
        torch.manual_seed(5)
        assert loaded.predict(DESCRIPTIONS[:1], {"max_new_tokens": TOKENS, "temperature": 3.0}) == [expected]


def test_settings_that_transformers_refuses_to_save_cost_no_checkpoint(model: Any, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    own = GenerationConfig(pad_token_id=1)
    own.num_return_sequences = 3
    before, model.generation_config = model.generation_config, own
    try:
        with pytest.warns(UserWarning, match=r"generation_config\.json is left out.*num_return_sequences"):
            files = ModelFolder(tmp_path).files(model, hf_folders.tokenizer("decoder"))
    finally:
        model.generation_config = before
    assert {"config.json", "tokenizer.json"} <= files.keys()
    assert "generation_config.json" not in files
