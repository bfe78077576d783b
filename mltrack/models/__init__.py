"""A model name -> model and tokenizer: scratch preset, hub name, local folder, GGUF file, or models:/ through a
resolver that the caller passes.

Synopsis:
    source = resolve_model("scratch:small", task)
    source.train_tokenizer(texts)                       # scratch only
    model = source.build(label_mapping=None, max_length=256, seed=42)
    save_pretrained(model, source.tokenizer, folder)
"""

from __future__ import annotations

from mltrack.models.presets import PRESETS
from mltrack.models.pretrained import ModelSource, save_pretrained
from mltrack.models.scan import read_once
from mltrack.models.sources import SOURCES, resolve_model
from mltrack.models.tokenizers import train_tokenizer

read_once()

__all__ = ["PRESETS", "SOURCES", "ModelSource", "resolve_model", "save_pretrained", "train_tokenizer"]
