"""A special token that stands in a text is text, with every kind of tokenizer and wherever a text is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hf_folders
import pytest
from test_encoding import Marked, words
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mltrack.data import CodeDataset, Record
from mltrack.data.encoding import Encoder, prompt_ids, tokenizer_digest
from mltrack.data.special_tokens import keep_as_tokens, was_read_as_text
from mltrack.evaluation.samples import _prompt
from mltrack.models import resolve_model, save_pretrained, train_tokenizer
from mltrack.tasks import TaskType
from mltrack.tasks.shipped.mltrack_pyfunc import Classifier, Generator

CODE = "html += '</s>'\nprint(html, '<s> a<s>b', '[SEP]', '<pad>')\n"


def unigram() -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa has it: the special tokens are pieces of the model, with the best score of all."""
    scored = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        *((letter, -3.0) for letter in sorted(set(CODE))),
    ]
    backend = Tokenizer(models.Unigram(scored, unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


KINDS = {
    "byte-level BPE": lambda: hf_folders.tokenizer("decoder"),
    "WordPiece": words,
    "Unigram": unigram,
    "a way of its own": lambda: words(Marked),
    "in Python": ByT5Tokenizer,
    "says that it splits nothing": lambda: words(split_special_tokens=False),
    "scratch": lambda: train_tokenizer([CODE] * 3, 300, "decoder"),
}


def special(tokenizer: Any, ids: Any) -> list[int]:
    return [int(token) for token in ids if int(token) in set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}]


@pytest.mark.parametrize("kind", KINDS)
def test_it_stays_text_in_training_in_prompts_and_where_the_tokenizer_is_saved_to(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    dataset = CodeDataset([Record(CODE, None, CODE, "a.jsonl", 1)], tokenizer, "code_generation", max_length=1000)
    start = [tokenizer.bos_token_id] if tokenizer("x").input_ids[0] == tokenizer.bos_token_id else []
    assert special(tokenizer, dataset[0]["input_ids"]) == [*start, tokenizer.eos_token_id], "those that mltrack adds"
    if kind not in ("WordPiece", "a way of its own", "says that it splits nothing"):  # which know no '<'
        assert "'</s>'" in tokenizer.decode(dataset[0]["input_ids"]).replace(" ", "")
    (prompt,) = prompt_ids(tokenizer, [CODE])
    assert special(tokenizer, prompt) == start
    assert special(tokenizer, _prompt(tokenizer, CODE, '"""{description}"""\n')) == start
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again(CODE, add_special_tokens=False).input_ids == tokenizer(CODE, add_special_tokens=False).input_ids
    assert special(again, again(CODE, add_special_tokens=False).input_ids) == []


def test_a_loaded_model_its_saved_folder_and_the_served_file_read_alike(tmp_path: Path) -> None:
    record = [Record(CODE, "a", CODE, "a.jsonl", 1)]
    for task, make, mapping in (
        ("code_generation", hf_folders.decoder_folder, None),
        ("text_classification", hf_folders.encoder_folder, {"a": 0, "b": 1}),
    ):
        source = resolve_model(str(make(tmp_path / task)), task)
        trained = CodeDataset(record, source.tokenizer, task, max_length=64, label_mapping=mapping)
        model = source.build(label_mapping=mapping, max_length=64, seed=1).eval()
        save_pretrained(model, source.tokenizer, tmp_path / f"saved-{task}")
        saved = resolve_model(str(tmp_path / f"saved-{task}"), task, as_trained=True).tokenizer
        assert (
            CodeDataset(record, saved, task, max_length=64, label_mapping=mapping)[0]["input_ids"].tolist()
            == trained[0]["input_ids"].tolist()
        )
        settings = {"max_length": 64, "prompt_template": hf_folders.PROMPT}
        if mapping is None:
            (prompt,) = prompt_ids(source.tokenizer, [CODE])
            assert (
                Generator(model, saved, settings)._ids(hf_folders.PROMPT.replace("{description}", CODE), 1000) == prompt
            )
        else:
            seen: list[list[int]] = []
            model.register_forward_pre_hook(
                lambda _, args, kwargs, seen=seen: seen.extend(kwargs["input_ids"].tolist()), with_kwargs=True
            )
            Classifier(model, saved, settings).predict([CODE])
            assert seen == [trained[0]["input_ids"].tolist()]


def test_a_model_that_was_trained_otherwise_keeps_its_encoding_and_its_cache(tmp_path: Path) -> None:
    folder = str(hf_folders.decoder_folder(tmp_path / "old"))
    as_text, as_trained = (
        resolve_model(folder, "code_generation").tokenizer,
        resolve_model(folder, "code_generation", as_trained=True).tokenizer,
    )
    (old,) = Encoder(as_trained, TaskType.CODE_GENERATION, 200).rows([Record(CODE, None, CODE, "a.jsonl", 1)])
    dataset = CodeDataset([Record(CODE, None, CODE, "a.jsonl", 1)], as_trained, "code_generation", max_length=200)
    assert dataset[0]["input_ids"].tolist() == old.ids.tolist()
    assert special(as_trained, old.ids).count(as_trained.eos_token_id) == 3
    assert tokenizer_digest(as_trained) == tokenizer_digest(hf_folders.tokenizer("decoder")), (
        "a resume finds the tokenizer that it had"
    )
    facts = [Encoder(one, TaskType.CODE_GENERATION, 200).facts() for one in (as_text, as_trained)]
    assert facts[0] != facts[1], "token ids of both are never taken for each other's"
    slow = ByT5Tokenizer()
    before = tokenizer_digest(slow)
    keep_as_tokens(slow)
    assert tokenizer_digest(slow) == before


def test_a_run_says_by_its_checkpoints_how_its_texts_were_read(tmp_path: Path) -> None:
    assert was_read_as_text(tmp_path)
    for step, config in (
        (1, {"split_special_tokens": True}),
        (2, {"eos_token": "</s>"}),
        (10, {"split_special_tokens": True}),
    ):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        assert was_read_as_text(tmp_path) is (step != 2)
    (folder / "tokenizer_config.json").write_text("{")
    assert not was_read_as_text(tmp_path), "the one before a damaged one says it"


def test_special_tokens_of_a_template_are_tokens_and_those_of_the_description_are_text() -> None:
    tokenizer = hf_folders.tokenizer("decoder")
    CodeDataset([Record("x", None, "y", "a.jsonl", 1)], tokenizer, "code_generation")
    ids = _prompt(tokenizer, "close </s> it", "<s>ask: {description}</s>\n")
    assert special(tokenizer, ids) == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert tokenizer.decode(ids) == "<s>ask: close </s> it</s>\n"
