"""Which of a folder's files are its training, validation and test part, by their names.

A part is named by a file (`train-00000-of-00002.parquet`, `my_test.jsonl`) or by a folder (`train/part1.jsonl`), in
capital or small letters. Invariant: where there are validation or test files, each file is of one part, or the path is
refused.

    parts = parts_of("data", ["train.jsonl", "test.jsonl"])
    parts.are_several, parts.train, parts.test         # True, ["train.jsonl"], ["test.jsonl"]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from mltrack.errors import DatasetError

ALL = "all"
"""`FOLDER:all` is every file, whatever its part."""

PARTS = ("train", "validation", "test")

_PURPOSE = {"train": "training", "validation": "validation", "test": "test"}
_PART_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devel", "development"), "validation"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
    **dict.fromkeys(("test", "testing", "holdout", "heldout"), "test"),
}
_FILLERS = {"of", "part", "shard", "chunk", "split", "set", "data", "dataset", "file", "v"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+")
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
        """The parts that there are."""
        return [part for part in PARTS if getattr(self, part)]

    def line(self, path: str, used: Sequence[str] = ("train",)) -> str:
        """Which parts are used and which are left out, for the user."""
        said = [f"{_listed(getattr(self, part))} for {_PURPOSE[part]}" for part in used]
        left_out = [_listed(getattr(self, part)) for part in self.names() if part not in used]
        return (
            f"{path}: {' and '.join(said)}"
            + (f"; left out: {', '.join(left_out)}" if left_out else "")
            + f" ({path}:{ALL} is every file)"
        )


def parts_of(path: str, files: Sequence[str]) -> Parts:
    """The parts of the files that a folder or glob holds; a file whose name tells none is in none.

    Args:
        path: the folder or glob, for messages.
        files: relative to the folder, in their order.

    Raises:
        DatasetError: there are validation or test files, and what the others are for is not known.
    """
    found = {file: _part_of_file(file) for file in files}
    has_train = any(part == "train" for part, _ in found.values())
    parts = {file: part if sure or has_train else "" for file, (part, sure) in found.items()}
    held_out = "test" if "validation" in parts.values() else "validation"
    parts = {file: held_out if part == "eval" else part for file, part in parts.items()}
    kinds = set(parts.values())
    if len(kinds) > 1 and not kinds <= {"train", ""}:
        unclear = [file for file, part in parts.items() if part in ("", "?")]
        if unclear or "train" not in kinds:
            seen = "; ".join(
                f"{_listed(held)} for {_PURPOSE[part]}"
                for part in PARTS
                if (held := [file for file, one in parts.items() if one == part])
            )
            problem = f"the part of {_listed(unclear)} is not known" if unclear else "no training files"
            raise DatasetError(
                f"holds {seen or 'no training files'}, and {problem}; name one file, or use {path}:{ALL} for all of"
                " them",
                path=path,
            )
    return Parts(*([file for file, one in parts.items() if one == part] for part in PARTS))


def _part_of_file(file: str) -> tuple[str, bool]:
    """(part, whether a whole name says so): of a folder above the file, else of the file; "?" where whole names
    disagree, "" where none tells.
    """
    *folders, name = PurePath(file).parts
    said = [_part_of_name(one) for one in (*folders, name.split(".")[0] or name)]
    for sure in (True, False):
        parts = {part for part, is_sure in said if part and is_sure is sure}
        if len(parts) == 1:
            return parts.pop(), sure
        if parts and sure:
            return "?", True
    return "", False


def _part_of_name(name: str) -> tuple[str, bool]:
    """(part, True) of `train`, `Train_02`, `testSet`; (part, False) of a name that begins or ends with such a word;
    else ("", False).
    """
    words = [word for word in map(str.lower, _WORD.findall(name)) if word not in _FILLERS]
    words = [shorter if (shorter := re.sub(r"(set|data)$", "", word)) in _PART_OF else word for word in words]
    if len(words) == 1:
        return _PART_OF.get(words[0], ""), words[0] in _PART_OF
    ends = {_PART_OF[word] for word in words[:1] + words[-1:] if word in _PART_OF}
    return (ends.pop(), False) if len(ends) == 1 else ("", False)


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - _SHOWN:,} more" if len(files) > _SHOWN else ""
    return ", ".join(files[:_SHOWN]) + more
