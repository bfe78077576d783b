"""Finds the training, validation and test files of a folder by their names.

A part is named by a file (`train-00000-of-00002.parquet`, `my_test.jsonl`) or by a folder (`train/part1.jsonl`), in
upper or lower case. Invariant: if one file names its part, each file has one part, or the path is refused.

    parts = parts_of("data", ["train.jsonl", "test.jsonl"])
    parts.are_several, parts.train, parts.test         # True, ["train.jsonl"], ["test.jsonl"]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from mltrack.errors import DatasetError

ALL = "all"
"""`FOLDER:all` is every file of any part."""

PARTS = ("train", "validation", "test")

_PURPOSE = {"train": "training", "validation": "validation", "test": "test"}
_PART_OF = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(
        ("validation", "validate", "validating", "valid", "val", "dev", "devel", "development"), "validation"
    ),
    **dict.fromkeys(("eval", "evaluate", "evaluation"), "eval"),
    **dict.fromkeys(("test", "testing", "tst", "devtest", "holdout", "heldout"), "test"),
}
_WEAK = {"cv": "validation"}  # cross-validation, unless another word says the part: cv_train.jsonl
_FILLERS = {"of", "part", "shard", "chunk", "split", "set", "data", "dataset", "file", "my", "v"} | {
    *("json", "jsonl", "csv", "parquet", "gz", "zst")
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")
_TWO_WORDS = re.compile(r"(held|hold|dev)[\W_]*(out|test)(?![a-z])", re.IGNORECASE)
_AROUND = re.compile(r"^(?:my|data|set)+|(?:set|data|split|file|part|shard|s)+$")
_SHOWN = 3


@dataclass(frozen=True)
class Parts:
    """The names of the files of each part, in their order."""

    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]

    @property
    def are_several(self) -> bool:
        """Whether there are training files beside others."""
        return bool(self.train and (self.validation or self.test))

    def names(self) -> list[str]:
        """The parts that have files."""
        return [part for part in PARTS if getattr(self, part)]

    def line(self, path: str, used: Sequence[str] = ("train",)) -> str:
        """One line for the user: the parts that are used and left out."""
        said = [f"{_listed(getattr(self, part))} for {_PURPOSE[part]}" for part in used]
        left_out = [_listed(getattr(self, part)) for part in self.names() if part not in used]
        return (
            f"{path}: {' and '.join(said)}"
            + (f"; left out: {', '.join(left_out)}" if left_out else "")
            + f" ({path}:{ALL} is every file)"
        )


def parts_of(path: str, files: Sequence[str], *, named: bool = False) -> Parts:
    """The parts of the files in a folder or glob; a file whose name has no part is in none.

    Args:
        path: the folder or glob, for messages.
        files: relative to the folder, in their order.
        named: the user named the part, so files without a part are ignored.

    Raises:
        DatasetError: some files have a part, and that of the others is unknown.
    """
    words = {**_PART_OF, **_glued(files)}
    found = {file: _part_of_file(file, words) for file in files}
    has_train = any(part == "train" for part, _ in found.values())
    parts = {file: part if sure or has_train else "" for file, (part, sure) in found.items()}
    held_out = "test" if "validation" in parts.values() else "validation"
    parts = {file: held_out if part == "eval" else part for file, part in parts.items()}
    kinds = set(parts.values())
    if (len(kinds) > 1 or "?" in kinds) and not named:
        unclear = [file for file, part in parts.items() if part in ("", "?")]
        if unclear or "train" not in kinds:
            held = {part: [file for file, one in parts.items() if one == part] for part in PARTS}
            known = "; ".join(f"{_listed(held[part])} for {_PURPOSE[part]}" for part in PARTS if held[part])
            problem = f"the part of {_listed(unclear)} is not known" if unclear else "no training files"
            only = f"{path}:train for {_listed(held['train'])} alone, " if held["train"] else ""
            raise DatasetError(
                f"holds {known or 'no training files'}, and {problem}; name one file, or use {only}{path}:{ALL} for all"
                " of them",
                path=path,
            )
    return Parts(*([file for file, one in parts.items() if one == part] for part in PARTS))


def _words(name: str) -> list[str]:
    words = map(str.lower, _WORD.findall(_TWO_WORDS.sub(lambda two: f" {''.join(two.groups()).lower()} ", name)))
    bare = ((word, _AROUND.sub("", word)) for word in words if word not in _FILLERS)
    return [shorter if shorter in _PART_OF else word for word, shorter in bare]


def _glued(files: Sequence[str]) -> dict[str, str]:
    """Parts of words that count only together: of codetrain and codetest, but not of contest."""
    words = {word for file in files for name in PurePath(file).parts for word in _words(name)}
    found: dict[str, dict[str, str]] = {}
    for word in words.difference(_PART_OF):
        for tail, part in _PART_OF.items():
            if word.endswith(tail):
                found.setdefault(word.removesuffix(tail), {})[word] = part
            elif word.startswith(tail):
                found.setdefault("-" + word.removeprefix(tail), {})[word] = part
    return {
        word: part
        for parts in found.values()
        if len({*parts.values()}) > 1 and "train" in parts.values()
        for word, part in parts.items()
    }


def _part_of_file(file: str, words: Mapping[str, str]) -> tuple[str, bool]:
    """(part, whether it is a whole name): of a folder above the file, else of the file; "?" if whole names disagree, ""
    if there is none.
    """
    said = [_part_of_name(one, words) for one in PurePath(file).parts]
    for sure in (True, False):
        parts = {part for part, is_sure in said if part and is_sure is sure}
        if len(parts) == 1:
            return parts.pop(), sure
        if parts and sure:
            return "?", True
    return "", False


def _part_of_name(name: str, words: Mapping[str, str]) -> tuple[str, bool]:
    """(part, True) of `train`, `Train_02`, `testSet`; (part, False) if such a word is one of several; else
    ("", False).
    """
    seen = _words(name)
    parts = {words[word] for word in seen if word in words} or {_WEAK[word] for word in seen if word in _WEAK}
    return (parts.pop(), len(seen) == 1) if len(parts) == 1 else ("", False)


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - _SHOWN:,} more" if len(files) > _SHOWN else ""
    return ", ".join(files[:_SHOWN]) + more
