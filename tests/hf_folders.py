"""Tiny Hugging Face folders as a checkpoint has them: real weights, a byte-level BPE, and training state beside
them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mltrack import store
from mltrack.tasks import task_named

PROMPT = '"""{description}"""\n'
TEXTS = [
    "def add(a, b):\n    return a + b\n",
    '"""Reverse a string"""\ndef reverse(s):\n    return s[::-1]\n',
    "import os\nprint(os.getcwd())\n",
] * 4


def tokenizer(kind: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(TEXTS, trainer)
    template = "<s> $A </s>" if kind == "encoder" else "<s> $A"
    bpe.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )


def decoder_folder(path: Path, *, hidden_size: int = 32) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    words = tokenizer("decoder")
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        initializer_range=0.4,
    )
    config.mltrack = {"task": "code_generation", "prompt_template": PROMPT, "max_length": 64}
    return _save(LlamaForCausalLM(config), words, path)


def encoder_folder(path: Path) -> Path:
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(3)
    words = tokenizer("encoder")
    config = RobertaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=66,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        id2label={0: "safe", 1: "unsafe"},
        label2id={"safe": 0, "unsafe": 1},
        initializer_range=0.4,
    )
    config.mltrack = {"task": "text_classification", "max_length": 64}
    return _save(RobertaForSequenceClassification(config), words, path)


def _save(model: Any, words: Any, path: Path) -> Path:
    model.save_pretrained(path)
    words.save_pretrained(path)
    for name in ("optimizer.json", "state.json", "metadata.json"):
        (path / name).write_text(json.dumps({"not": "for the model"}))
    (path / "optimizer.safetensors").write_bytes(b"\0" * 4096)
    return path


def write_model_folder(source: str | Path, out: str | Path, *, task: str, **others: Any) -> Path:
    """`mltrack.store.write_model_folder` with the task's own serving."""
    return store.write_model_folder(source, out, task=task, serving=task_named(task).serving, **others)


def load_folder(folder: str | Path) -> Any:
    """`mltrack.store.load_folder` with the serving file of mltrack's tasks."""
    return store.load_folder(folder, task_named("code_generation").serving.file)
