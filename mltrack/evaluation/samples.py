"""Completions of fixed prompts, so that two runs on one data set can be compared side by side.

Invariant: decoding is greedy, regardless of the model's generation settings, and a prompt has the same tokens as in
training; the choice of prompts depends only on the records, not on their order."""

from __future__ import annotations

import ast
import hashlib
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mltrack.data.dataset import cut_prompt
from mltrack.records.record import PROMPT_TEMPLATE, Record


@dataclass(frozen=True)
class Sample:
    """One completion."""

    description: str
    completion: str
    reference: str | None
    """The completion in the data set, if there is one."""
    valid: bool
    """See `is_valid_python`."""


def fixed_prompts(eval_records: Sequence[Record], count: int = 16, seed: int = 0) -> list[Record]:
    """Up to `count` records with different descriptions, chosen by a hash of their content."""

    def rank(record: Record) -> str:
        return hashlib.sha256(
            f"{seed}\0{record.description}\0{record.text}".encode("utf-8", "surrogatepass")
        ).hexdigest()

    chosen: dict[str, Record] = {}
    for record in sorted(eval_records, key=rank):
        if record.description and record.description not in chosen:
            chosen[record.description] = record
        if len(chosen) == count:
            break
    return list(chosen.values())


def generate_samples(
    model: Any,
    tokenizer: Any,
    descriptions: Sequence[str],
    *,
    max_new_tokens: int = 96,
    prompt_template: str = PROMPT_TEMPLATE,
    batch_size: int = 8,
    references: Sequence[str | None] | None = None,
    stop_requested: Callable[[], bool] | None = None,
) -> list[Sample]:
    """Greedy completions, each until its end token or `max_new_tokens`.

    Args:
        descriptions: one per sample.
        prompt_template: contains `{description}`.
        references: the data set's completions, for the table.
        stop_requested: called before each token; if True, only the samples of completed batches are returned.
    """
    model = getattr(model, "module", model)
    device, was_training = next(model.parameters()).device, model.training
    limit = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    room = max(1, limit - max_new_tokens)
    prompts = [_prompt(tokenizer, text, prompt_template) for text in descriptions]
    prompts = [ids if len(ids) <= room else cut_prompt(tokenizer, ids, room) for ids in prompts]
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # similar lengths need little padding
    samples: dict[int, Sample] = {}
    model.eval()
    try:
        for start in range(0, len(prompts), batch_size):
            batch = longest_first[start : start + batch_size]
            if stop_requested is not None and stop_requested():
                break
            completions = _complete(
                model, tokenizer, [prompts[i] for i in batch], max_new_tokens, device, stop_requested
            )
            if stop_requested is not None and stop_requested():
                break  # these may be cut off
            for i, completion in zip(batch, completions, strict=True):
                samples[i] = Sample(
                    descriptions[i], completion, references[i] if references else None, is_valid_python(completion)
                )
    finally:
        model.train(was_training)
    return [samples[i] for i in sorted(samples)]


def _prompt(tokenizer: Any, description: str, prompt_template: str) -> list[int]:
    """Like `mltrack.data.dataset.prompt_ids`, for any template: the begin token if the tokenizer adds one, then the
    text.

    Special tokens in the template are tokens; in the description they are text if the tokenizer reads them so.
    """
    before, around, behind = prompt_template.partition("{description}")
    special = [token for token in tokenizer.all_special_tokens if token in before + behind]
    if around and special:
        cuts = re.compile("|".join(map(re.escape, special)))
        opened = max((found.end() for found in cuts.finditer(before)), default=0)
        closed = next((found.start() for found in cuts.finditer(behind)), len(behind))
        plain = {"add_special_tokens": False}
        head, tail = (
            tokenizer(text, **plain, split_special_tokens=False).input_ids if text else []
            for text in (before[:opened], behind[closed:])
        )
        ids: list[int] = [*head, *tokenizer(before[opened:] + description + behind[:closed], **plain).input_ids, *tail]
    else:
        ids = tokenizer(prompt_template.format(description=description), add_special_tokens=False).input_ids
    added: list[int] = tokenizer("x").input_ids
    begin = tokenizer.bos_token_id
    return [begin, *ids] if begin is not None and added[:1] == [begin] and ids[:1] != [begin] else ids


def _complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    device: torch.device,
    stop_requested: Callable[[], bool] | None,
) -> list[str]:
    """A batch, padded on the left so that every prompt ends where its completion begins."""
    from transformers import GenerationConfig

    longest, padding = max(len(ids) for ids in prompts), tokenizer.pad_token_id
    rows = [[padding] * (longest - len(ids)) + list(ids) for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    plan = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=padding,
        bos_token_id=tokenizer.bos_token_id,
    )

    def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), stop_requested is not None and stop_requested(), device=ids.device)

    with torch.inference_mode(), _without_settings(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=plan,
            stopping_criteria=[stop],
        )
    return [
        tokenizer.decode(_until(ids, tokenizer.eos_token_id), skip_special_tokens=True)
        for ids in output[:, longest:].tolist()
    ]


@contextmanager
def _without_settings(model: Any) -> Iterator[None]:
    """Remove the model's own generation settings, which would fill in what a plan leaves open."""
    from transformers import GenerationConfig

    held = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = held


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def syntax_valid_share(samples: Sequence[Sample]) -> float:
    """Share of the samples that are valid Python; NaN if there are none."""
    return sum(sample.valid for sample in samples) / len(samples) if samples else float("nan")


def is_valid_python(completion: str) -> bool:
    """True if it parses, dedented if need be, and has a statement that is more than a bare name or constant."""
    for text in (completion, textwrap.dedent(completion)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a SyntaxWarning is valid Python
                return not all(
                    isinstance(line, ast.Expr) and isinstance(line.value, (ast.Name, ast.Constant))
                    for line in ast.parse(text).body
                )
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
    return False
