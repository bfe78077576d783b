"""Loads the model folder that this file was shipped in and predicts from plain strings; needs torch, transformers,
numpy and pandas, not mltrack.

Invariant: an answer does not depend on the rest of the batch (padding is masked, on the left for generation), and a
completion is exactly what the model wrote: without the prompt, without special tokens, leading white space kept.
Temperature 0 takes the likeliest token, above it only the temperature counts: the folder's generation settings are not
read. Only the columns that a record may have are read as text, and NaN is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

BATCH_SIZE = 16
MAX_NEW_TOKENS = 128
_NOT_A_NUMBER = "the model computes NaN, as damaged weights do; use a model whose weights are finite"


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Classifier | Generator:
    """Called by mlflow.pyfunc.load_model; `model_config` may hold "device" and "batch_size"."""
    folder = Path(path)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("mltrack", {})
    options = dict(model_config or {})
    device = options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    kind = Generator if settings.get("task") == "code_generation" else Classifier
    auto: Any = AutoModelForCausalLM if kind is Generator else AutoModelForSequenceClassification
    if kind is Generator:
        local["generation_config"] = GenerationConfig()
    model, info = auto.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **local
    )
    for name, seen, shape in sorted(info["mismatched_keys"]):  # transformers would report it in several lines
        raise ValueError(f"{name} must have the shape {list(shape)}, as config.json says, not {list(seen)}")
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise ValueError(
            f"{len(missing)} weights are missing, such as {missing[0]}; {type(model).__name__} needs all its weights"
        )
    model = model.to(device).eval()
    return kind(model, tokenizer, settings, int(options.get("batch_size", BATCH_SIZE)))


class Classifier:
    """Strings to [{"label": str, "score": float, "scores": {class: probability}}], one per string."""

    def __init__(self, model: Any, tokenizer: Any, settings: Mapping[str, Any], batch_size: int = BATCH_SIZE):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.max_length = _max_length(settings, model)
        self.truncation = settings.get("truncation") or "head"
        self.special = _special_tokens_around(tokenizer)
        _need_padding(tokenizer, model)

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """`data`: a string, strings, an array, a Series or a DataFrame; no params."""
        texts = _texts(data, ("code", "text"))
        labels = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        answers = []
        for start in range(0, len(texts), self.batch_size):
            rows = [
                self._shortened(row)
                for row in self.tokenizer(texts[start : start + self.batch_size], verbose=False)["input_ids"]
            ]
            batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
            accepted = {
                name: tensor.to(self.model.device)
                for name, tensor in batch.items()
                if name in ("input_ids", "attention_mask")
            }
            with torch.inference_mode():
                rows = self.model(**accepted).logits.float().softmax(dim=-1).cpu().tolist()
            for row in rows:
                if not all(map(math.isfinite, row)):  # JSON has no NaN
                    raise ValueError(_NOT_A_NUMBER)
                best = max(range(len(row)), key=row.__getitem__)
                answers.append(
                    {"label": labels[best], "score": row[best], "scores": dict(zip(labels, row, strict=True))}
                )
        return answers

    def _shortened(self, row: list[int]) -> list[int]:
        """The part of a too long text that the training kept: its beginning, its end, or half of each, between the
        special tokens.
        """
        if len(row) <= self.max_length:
            return row
        before, behind = self.special
        room = self.max_length - before - behind
        from_end = {"tail": room, "both": room // 2}.get(self.truncation, 0)
        return row[: before + room - from_end] + row[len(row) - behind - from_end :]


class Generator:
    """Descriptions to completions, one string each."""

    def __init__(self, model: Any, tokenizer: Any, settings: Mapping[str, Any], batch_size: int = BATCH_SIZE):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.template = settings.get("prompt_template") or "{description}"
        self.max_length = _max_length(settings, model)
        self.starts = tokenizer.bos_token_id is not None and list(tokenizer("a")["input_ids"])[:1] == [
            tokenizer.bos_token_id
        ]
        _need_padding(tokenizer, model)

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """`params`: max_new_tokens (128), temperature (0: the likeliest token each time), stop (strings; the completion
        ends before the first of them).
        """
        given = dict(params or {})
        max_new_tokens = _number(given, "max_new_tokens", MAX_NEW_TOKENS, least=1)
        temperature = _number(given, "temperature", 0.0, least=0)
        stop = _stops(given.get("stop"))
        prompts = [self.template.replace("{description}", text) for text in _texts(data, ("description", "text"))]
        completions: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            completions += self._complete(prompts[start : start + self.batch_size], max_new_tokens, temperature, stop)
        return completions

    def _complete(self, prompts: list[str], max_new_tokens: int, temperature: float, stop: list[str]) -> list[str]:
        room = max(self.max_length // 2, self.max_length - max_new_tokens)
        ids = [self._ids(prompt, room) for prompt in prompts]
        longest = max(len(row) for row in ids)
        limit = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        if longest + max_new_tokens > limit:
            if len(prompts) > 1:  # each alone may use all positions behind its own prompt
                return [self._complete([prompt], max_new_tokens, temperature, stop)[0] for prompt in prompts]
            max_new_tokens = max(1, limit - longest)
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:  # transformers would take only the 50 likeliest tokens
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if stop:
            sampling.update(stop_strings=stop, tokenizer=self.tokenizer)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=input_ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                eos_token_id=self.tokenizer.eos_token_id,
                logits_processor=LogitsProcessorList([_Numbers()]),
                **sampling,
            )
        return [self._text(row, stop) for row in out[:, longest:].cpu().tolist()]

    def _ids(self, prompt: str, room: int) -> list[int]:
        """As in training: the start token if the tokenizer adds one, then the prompt, of which the end is kept if it is
        too long.
        """
        ids = list(self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
        start = [self.tokenizer.bos_token_id] if self.starts else []
        ids = [*start, *ids[max(0, len(start) + len(ids) - room) :]]
        return ids or [self.tokenizer.eos_token_id]

    def _text(self, ids: list[int], stop: list[str]) -> str:
        end = self.tokenizer.eos_token_id
        if end in ids:
            ids = ids[: ids.index(end)]
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cuts = [text.index(word) for word in stop if word in text]
        return text[: min(cuts)] if cuts else text


class _Numbers(LogitsProcessor):
    """Refuses NaN before a token is chosen, which would otherwise be a token like any other."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if scores.isnan().any():
            raise ValueError(_NOT_A_NUMBER)
        return scores


def _texts(data: Any, accepted: tuple[str, ...]) -> list[str]:
    """The strings in what MLflow passes on; `accepted` are the names of the column that holds them."""
    if isinstance(data, str):
        data = [data]
    elif isinstance(data, Mapping):
        data = pd.DataFrame([data] if all(isinstance(value, str) for value in data.values()) else dict(data))
    elif isinstance(data, pd.Series):
        data = data.to_frame()
    elif isinstance(data, np.ndarray):
        data = pd.DataFrame(data) if data.ndim > 1 else data.reshape(-1).tolist()
    texts = _column(data, accepted) if isinstance(data, pd.DataFrame) else list(data)
    if texts and all(isinstance(text, Mapping) for text in texts):
        texts = _column(pd.DataFrame(texts), accepted)
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise ValueError(f"text {number} must be a string, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"text {number} holds half a surrogate pair; it must be Unicode text") from None
    return texts


def _column(table: pd.DataFrame, accepted: tuple[str, ...]) -> list[Any]:
    """The one column that has an accepted name, in any position, or the only column if it has no name.

    MLflow passes on only a table's first column, under its name.
    """
    names = list(table.columns)
    places = [place for place, name in enumerate(names) if isinstance(name, str) and name in accepted]
    if not places and len(names) == 1 and isinstance(names[0], (int, np.integer)) and names[0] == 0:
        places = [0]
    if len(places) != 1:
        wanted = " or ".join(accepted)
        raise ValueError(
            f"the table must have one column named {wanted}, not {str(names)[:200]}; MLflow passes on only the first"
            " column, so put it first, or give strings alone"
        )
    return [
        text.item() if isinstance(text, np.ndarray) and text.size == 1 else text for text in table.iloc[:, places[0]]
    ]  # as served records hold them


def _number(given: Mapping[str, Any], name: str, default: float, *, least: int) -> Any:
    """One of `params`, of its default's type."""
    value, kind = given.get(name), type(default)
    if value is None:
        return default
    try:
        number = kind(value)
        fits = not isinstance(value, (bool, str)) and number == value and least <= number < float("inf")
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"{name} must be a {'whole ' if kind is int else ''}number >= {least}, not {repr(value)[:40]}")
    return number


def _stops(value: Any) -> list[str]:
    if value is None:
        return []
    words = [value] if isinstance(value, str) else np.asarray(value).reshape(-1).tolist()
    return [str(word) for word in words if str(word)]


def _max_length(settings: Mapping[str, Any], model: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # its positions start after the padding index
    return min(int(settings.get("max_length") or 512), positions)


def _special_tokens_around(tokenizer: Any) -> tuple[int, int]:
    """How many special tokens the tokenizer puts before and behind a text."""
    plain = list(tokenizer("x", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("x")["input_ids"])
    start = next((at for at in range(len(whole)) if plain and whole[at : at + len(plain)] == plain), min(1, len(whole)))
    return start, max(0, len(whole) - start - len(plain))


def _need_padding(tokenizer: Any, model: Any) -> None:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
