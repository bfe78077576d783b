"""Encodes records as token ids: prompts, completions, special tokens and truncation.

Invariant: prompt and completion are tokenized apart, so their boundary does not depend on the code; special tokens are
never cut; the cut depends only on the record, the tokenizer, `max_length` and `truncation`.

`truncation` is the part of a long text to keep: `head` its beginning, `tail` its end, `both` half of each; `drop`
leaves the record out. A completion can only lose its tail, and the end token with it: the model would learn one that
begins in the middle, or has a hole.

All threads of a fast tokenizer, which hold no interpreter lock, tokenize one part of the records while the previous
part is cut and stored."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mltrack.config import OPTIONS
from mltrack.data.ahead import ahead
from mltrack.data.special_tokens import KEPT
from mltrack.errors import ConfigurationError, DatasetError
from mltrack.records.record import PROMPT_TEMPLATE, Record
from mltrack.tasks.contract import Task
from mltrack.tasks.names import task_named

MOST_RECORDS_AT_ONCE = 1000  # enough for the tokenizer's threads
MOST_CHARACTERS_AT_ONCE = 2_000_000  # a token takes a hundred bytes during tokenization, and two parts are in work
_NOT_OF_THE_TEXT = {"name_or_path", "model_max_length", "padding_side", "truncation_side", "verbose", KEPT}

Progress = Callable[[int, int], None]
"""Called with (records done, all records)."""


class EncodedRows(NamedTuple):
    """Some records as concatenated token ids."""

    ids: np.ndarray
    """uint32 [all tokens]."""
    lengths: np.ndarray
    """Tokens of each record, int32 [records]."""
    num_prompt: np.ndarray
    """Leading tokens of each record that are not targets, int32 [records]."""
    full_lengths: np.ndarray
    """Tokens that each record had before `max_length`, int32 [records]."""
    marks: np.ndarray | None = None
    """The word number of each token, from 1; 0 for none: uint32 [all tokens]. None if the task does not use words."""


class Encoder:
    """Makes token ids from records, with all threads of the tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        task: decides the tokens of a record and what is cut.
        max_length: tokens of the longest row.
        truncation: see the module; a record that `drop` leaves out is encoded as by `head`, and known by its
            `full_lengths`.

    Raises:
        ConfigurationError: a tokenizer or a truncation that the task cannot use.
    """

    def __init__(self, tokenizer: Any, task: str | Task, max_length: int, truncation: str = "head"):
        OPTIONS["truncation"].check(truncation)
        task = task_named(task)
        task.check_truncation(truncation)
        self._tokenizer, self._max_length, self._truncation = tokenizer, max_length, truncation
        self._encoding = task.encoding(tokenizer, max_length, truncation)

    def facts(self) -> dict[str, Any]:
        """Everything except the records that decides the ids, as JSON values."""
        return {
            "tokenizer": tokenizer_digest(self._tokenizer),
            "tokenizer_class": type(self._tokenizer).__name__,
            "special_tokens": [
                self._tokenizer.bos_token_id,
                self._tokenizer.eos_token_id,
                bool(getattr(self._tokenizer, "split_special_tokens", False)),
            ],
            "tokenizers": version("tokenizers"),
            **self._encoding.facts(),
            **({"marks_words": True} if self.marks_words else {}),
            "max_length": self._max_length,
            "truncation": "head" if self._truncation == "drop" else self._truncation,
        }

    @property
    def marks_words(self) -> bool:
        """Whether its rows have word numbers."""
        return self._encoding.marks_words

    def largest_id(self) -> int:
        """The largest id that a row can have."""
        return max(self._tokenizer.get_vocab().values(), default=0)

    def rows(self, records: Sequence[Record], progress: Progress | None = None) -> Iterator[EncodedRows]:
        """The records' rows in order, in bounded parts.

        Raises:
            DatasetError: the tokenizer makes no token of a record.
        """
        done = 0
        with closing(ahead((part, self._encoding.tokens(part)) for part in _parts(records))) as made:
            for part, tokens in made:
                ids, counts, marks = array("I"), array("i"), array("I")
                for row, num_prompt, full_lengths, *marked in map(self._encoding.row, *tokens):
                    ids.extend(row)
                    counts.extend((len(row), num_prompt, full_lengths))
                    for one in marked:
                        marks.extend(one)
                lengths, num_prompts, full_lengths = np.array(counts, dtype=np.int32).reshape(-1, 3).T
                if not lengths.all():
                    at = part[int(np.argmin(lengths))]
                    raise DatasetError(
                        "the tokenizer makes no token of it; use text in the tokenizer's alphabet",
                        path=at.file,
                        record=at.number,
                        field="code",
                    )
                of_words = np.frombuffer(marks, dtype=np.uint32) if self._encoding.marks_words else None
                yield EncodedRows(np.frombuffer(ids, dtype=np.uint32), lengths, num_prompts, full_lengths, of_words)
                done += len(part)
                if progress is not None:
                    progress(done, len(records))


class TextEncoding:
    """The tokenizer's own special tokens around the text."""

    marks_words = False

    def __init__(self, tokenizer: Any, max_length: int, truncation: str):
        self._tokenizer = tokenizer
        self._before, self._behind = special_tokens_around(tokenizer)
        self._room = max(0, max_length - len(self._before) - len(self._behind))
        self._from_end = {"tail": self._room, "both": self._room // 2}.get(truncation, 0)

    def facts(self) -> dict[str, Any]:
        """See `mltrack.tasks.contract.Encoding`."""
        return {"task": "classification"}

    def tokens(self, records: Sequence[Record]) -> tuple[list[list[int]], ...]:
        """The texts' ids."""
        return (plain_ids(self._tokenizer, [record.text for record in records]),)

    def row(self, text: list[int]) -> tuple[list[int], int, int]:
        """The beginning, the end or half of each, between the special tokens."""
        room, before, behind = self._room, self._before, self._behind
        kept = text if len(text) <= room else text[: room - self._from_end] + text[len(text) - self._from_end :]
        return [*before, *kept, *behind], 0, len(before) + len(text) + len(behind)


class PairEncoding:
    """The prompt (the start token if the tokenizer adds one, then the description in `PROMPT_TEMPLATE`), the code, the
    end token.

    If that is too long, the prompt keeps its end: at least half of `max_length`, more if the code leaves room.
    """

    marks_words = False

    def __init__(self, tokenizer: Any, max_length: int, truncation: str):
        self._tokenizer, self._max_length = tokenizer, max_length
        self._start, self._end = start_ids(tokenizer), end_token_id(tokenizer)

    def facts(self) -> dict[str, Any]:
        """See `mltrack.tasks.contract.Encoding`."""
        return {"task": f"generation {PROMPT_TEMPLATE}"}

    def tokens(self, records: Sequence[Record]) -> tuple[list[list[int]], ...]:
        """The ids of the prompts and of the codes."""
        prompts = [PROMPT_TEMPLATE.format(description=record.description or "") for record in records]
        both = plain_ids(self._tokenizer, prompts + [record.text for record in records])
        return both[: len(records)], both[len(records) :]

    def row(self, prompt: list[int], code: list[int]) -> tuple[list[int], int, int]:
        """The end of the prompt and the beginning of the code."""
        prompt, completion = [*self._start, *prompt], [*code, self._end]
        room = max(self._max_length // 2, self._max_length - len(completion))
        kept = prompt if len(prompt) <= room else _end_of_prompt(prompt, room, len(self._start))
        return [*kept, *completion][: self._max_length], len(kept), len(prompt) + len(completion)


def kept_of_long_texts(settings: Mapping[str, Any]) -> str:
    """The truncation for the inputs of a saved model: that of its training, but head instead of drop, since every input
    needs an answer.

    Args:
        settings: the key "mltrack" of the model's config.json.
    """
    truncation = str(settings.get("truncation") or "head")
    return "head" if truncation == "drop" else truncation


def prompt_ids(tokenizer: Any, descriptions: Sequence[str]) -> list[list[int]]:
    """Token ids of the prompts for these descriptions, as in training; generation starts from them."""
    start = start_ids(tokenizer)
    return [
        [*start, *row]
        for row in plain_ids(tokenizer, [PROMPT_TEMPLATE.format(description=text) for text in descriptions])
    ]


def cut_prompt(tokenizer: Any, prompt: list[int], room: int) -> list[int]:
    """The end of a prompt that is longer than `room` tokens, after the start token if the tokenizer adds one."""
    return _end_of_prompt(prompt, room, len(start_ids(tokenizer)))


def _end_of_prompt(prompt: list[int], room: int, num_start: int) -> list[int]:
    return prompt[:num_start] + prompt[len(prompt) - room + num_start :]


def end_token_id(tokenizer: Any) -> int:
    """The id that ends a completion.

    Raises:
        ConfigurationError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            f"the tokenizer {type(tokenizer).__name__} has no end token, so a completion could not end; use one"
            " with an eos_token"
        )
    return int(tokenizer.eos_token_id)


def pad_token_id(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's own, else its end token, else 0 (the attention mask hides it anyway)."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    plain = list(tokenizer("x", add_special_tokens=False, verbose=False)["input_ids"])
    whole = list(tokenizer("x", verbose=False)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return whole[:1], whole[1:]


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 (hex) of what a tokenizer does to a text: the definition of a fast one, else class, vocabulary, files and
    settings.

    Truncation and padding are not part of it, since calls of the tokenizer change these settings.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        definition = json.dumps(_written_in_python(tokenizer), sort_keys=True)
    else:
        definition = backend.to_str()
        definition = definition[
            max(0, definition.find('"added_tokens"')) :
        ]  # "truncation" and "padding" come before it
    return hashlib.sha256(definition.encode("utf-8", "surrogatepass")).hexdigest()


def _written_in_python(tokenizer: Any) -> list[Any]:
    """The visible settings of a tokenizer without a backend, without the paths of its files."""
    settings = {
        name: value
        for name, value in vars(tokenizer).items()
        if isinstance(value, (bool, int, float, str)) and name not in _NOT_OF_THE_TEXT
    }
    files = [
        getattr(tokenizer, name, None) or tokenizer.init_kwargs.get(name)
        for name in sorted(tokenizer.vocab_files_names)
    ]
    contents = [
        hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for file in files
        if isinstance(file, str) and Path(file).is_file()
    ]
    paths = {file for file in files if isinstance(file, str)}
    return [
        type(tokenizer).__name__,
        sorted(tokenizer.get_vocab().items()),
        contents,
        {name: value for name, value in settings.items() if value not in paths},
    ]


def start_ids(tokenizer: Any) -> list[int]:
    """The start token if the tokenizer puts it before a text, else nothing."""
    if tokenizer.bos_token_id is None:
        return []
    row = tokenizer("x", verbose=False)["input_ids"]
    return [tokenizer.bos_token_id] if len(row) > 0 and row[0] == tokenizer.bos_token_id else []


def plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of `tokenizer(texts, add_special_tokens=False)`, without unused masks and offsets."""
    from transformers import PreTrainedTokenizerFast

    kind, plain = type(tokenizer), PreTrainedTokenizerFast
    if (
        getattr(kind, "_encode_plus", None) is not plain._encode_plus or kind.__call__ is not plain.__call__
    ):  # it has its own implementation
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return rows
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _parts(records: Sequence[Record]) -> Iterator[list[Record]]:
    """The records in parts of bounded count and characters."""
    part: list[Record] = []
    characters = 0
    for record in records:
        part.append(record)
        characters += len(record.text) + len(record.description or "")
        if len(part) == MOST_RECORDS_AT_ONCE or characters >= MOST_CHARACTERS_AT_ONCE:
            yield part
            part, characters = [], 0
    if part:
        yield part
