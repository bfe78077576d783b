"""Loads the model folder that this file lies beside and tags the words of plain strings; needs torch and transformers
alone.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer


def _load_pyfunc(path: str, model_config: Any = None) -> Tagger:
    local = {"local_files_only": True}
    model = AutoModelForTokenClassification.from_pretrained(path, use_safetensors=True, **local)
    return Tagger(model.eval(), AutoTokenizer.from_pretrained(path, **local))


class Tagger:
    """Strings to a tag for each of their words."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer

    def predict(self, data: Any, params: Any = None) -> list[dict[str, list[str]]]:
        texts = data.iloc[:, 0].tolist() if hasattr(data, "iloc") else list(data)
        return [{"tags": self._tags(text)} for text in texts]

    def _tags(self, text: str) -> list[str]:
        words = [self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in text.split(" ")]
        start = self.tokenizer("x")["input_ids"][: -1 - len(self.tokenizer("x", add_special_tokens=False)["input_ids"])]
        ids, firsts = list(start), []
        for word in words:
            firsts.append(len(ids))
            ids += word
        ids.append(self.tokenizer("x")["input_ids"][-1])
        with torch.inference_mode():
            best = self.model(input_ids=torch.tensor([ids])).logits[0].argmax(dim=-1).tolist()
        return [self.model.config.id2label[best[first]] for first in firsts]
