"""The training and evaluation records of a request.

Invariant: they are a pure function of the files' contents and of the request's `DATA_OPTIONS`, independent of the model
and its tokenizer. So `rebuild_command` gives the command that makes the same records again.

    found = requested_records(request)
    len(found.train), len(found.evaluation), found.lines
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mltrack.config import DATA_OPTIONS, OPTIONS, TrainModelRequest
from mltrack.config.task_options import own_options
from mltrack.data.loader import DatasetLoader
from mltrack.errors import ConfigurationError, DatasetError
from mltrack.records.builtin.stdlib_source import STDLIB
from mltrack.records.readers import Parts, absolute, find_parts, find_sources
from mltrack.records.record import Record

WORKING_DIRECTORY = "mltrack.working_directory"
"""Tag of a run: the folder of its relative paths."""
_ALWAYS_SAID = ("dataset_path", "task", "validation_split", "seed")
_PATHS = ("dataset_path", "validation_path")
DIGEST_DIGITS = 16
"""Digits of a digest in a command line."""
_OF_A_SPLIT = ("validation_split", "seed", "group")


@dataclass(frozen=True)
class EarlierLabels:
    """How a resumed run read its labels."""

    classes: Sequence[str]
    class_names: bool
    """Whether it used the class names of a Parquet file's schema."""


@dataclass(frozen=True)
class RequestedRecords:
    """Both sides, and how they were read."""

    loader: DatasetLoader
    """Loader of the training records; it makes data sets of both sides with one label mapping."""
    eval_loader: DatasetLoader | None
    """Loader of `validation_path`."""
    train: Sequence[Record]
    evaluation: Sequence[Record]
    parts: Sequence[str] = ()
    """A line for each folder that was divided into parts."""

    @property
    def loaders(self) -> dict[str, DatasetLoader]:
        """By side: training, evaluation."""
        return {"training": self.loader} | ({} if self.eval_loader is None else {"evaluation": self.eval_loader})

    @property
    def lines(self) -> list[str]:
        """The use of the files, and the skipped records: one line for each of the first and one for the rest."""
        return [*self.parts] + [
            line for loader in self.loaders.values() for line in loader.bad_records.told(loader.data_path)
        ]

    @property
    def counts(self) -> dict[str, int]:
        """records_read, and how many of them were skipped: records_left_out."""
        loaders = self.loaders.values()
        return {
            "records_read": sum(loader.num_read for loader in loaders),
            "records_left_out": sum(loader.num_skipped for loader in loaders),
        }

    def keep_bad_records(self, folder: Path) -> list[Path]:
        """Write the skipped records, with reasons, to `bad_records-<side>.jsonl` in the folder; returns the files."""
        kept = [loader.bad_records.keep(folder / f"bad_records-{side}.jsonl") for side, loader in self.loaders.items()]
        return [path for path in kept if path is not None]


def requested_records(
    request: TrainModelRequest,
    *,
    tokenizer: Any = None,
    progress: Callable[[int, int], None] | None = None,
    earlier: EarlierLabels | None = None,
) -> RequestedRecords:
    """Read the records and, without `validation_path`, split them.

    Args:
        request: its `max_length` and `truncation` are for the loader's data sets.
        tokenizer: for those data sets; the records do not need it.
        progress: called with (done, total) while the built-in source is scanned.
        earlier: the labels of the resumed run.

    Raises:
        DatasetError: invalid data.
    """
    request, parts = with_parts(request)
    options: dict[str, Any] = {
        name: getattr(request, name) for name in ("columns", "labels", "on_bad_record", "seed", "group", "truncation")
    }
    options |= {"task": request.chosen_task(), "progress": progress} | (
        {} if request.max_length is None else {"max_length": request.max_length}
    )
    if earlier is not None:
        options |= {"spelled_like": earlier.classes, "class_names": earlier.class_names}
    loader = DatasetLoader(request.dataset_path, tokenizer, num_labels=request.num_labels, **options)
    if request.validation_path is None:
        train, evaluation = loader.split_records(request.validation_split)
        return RequestedRecords(loader, None, train, evaluation, parts)
    mapping = loader.label_mapping if loader.task.has_classes else None
    eval_loader = DatasetLoader(request.validation_path, tokenizer, label_mapping=mapping, **options)
    return RequestedRecords(loader, eval_loader, loader.records, eval_loader.records, parts)


def with_parts(request: TrainModelRequest) -> tuple[TrainModelRequest, list[str]]:
    """The request with a part in each path to a folder of training and other files, and a line for each such folder.

    The validation files are used if neither `validation_path` nor `validation_split` was given. Test files are never
    used.

    Raises:
        DatasetError: a path without data, or a folder whose files have unknown parts.
    """
    paths: dict[str, Any] = {}
    lines = []
    parts = find_parts(request.dataset_path)
    if parts is not None and parts.are_several:
        split = (
            "validation_split" in request.as_typed or request.validation_split != OPTIONS["validation_split"].default
        )
        own = f"{request.dataset_path}:validation"
        uses_own = request.validation_path == own or bool(
            parts.validation and request.validation_path is None and not split
        )
        used = ["train", "validation"] if uses_own else ["train"]
        paths = {"dataset_path": f"{request.dataset_path}:train"} | ({"validation_path": own} if uses_own else {})
        lines.append(parts.line(request.dataset_path, used))
    if request.validation_path is not None:
        parts = find_parts(request.validation_path)
        if parts is not None and parts.are_several:
            if not parts.validation:
                raise several_parts(request.validation_path, parts)
            paths["validation_path"] = f"{request.validation_path}:validation"
            lines.append(parts.line(request.validation_path, ["validation"]))
    return replace(request, **paths), lines


def checked_paths(request: TrainModelRequest) -> tuple[TrainModelRequest, list[str]]:
    """Same as `with_parts`, before any record is read.

    Raises:
        ConfigurationError: an invalid path, with the option's name.
    """
    for name in _PATHS:
        path = getattr(request, name)
        if path is not None and path != STDLIB:
            try:
                find_sources(path)
                find_parts(path)
            except DatasetError as error:
                raise ConfigurationError(f"{name}: {error}") from None
    return with_parts(request)


def one_part(path: str) -> str:
    """The path, if it has no training files beside others.

    Raises:
        DatasetError: it has; the records that judge a model must not be guessed.
    """
    parts = find_parts(path)
    if parts is not None and parts.are_several:
        raise several_parts(path, parts)
    return path


def several_parts(path: str, parts: Parts) -> DatasetError:
    """The error for a folder with several parts where one is needed."""
    return DatasetError(
        f"has several parts; name one: {', '.join(f'{path}:{part}' for part in (*parts.names(), 'all'))}", path=path
    )


def rebuild_command(options: Mapping[str, Any], *, working_directory: str = "", digests: Sequence[str] = ()) -> str:
    """The command line that makes the same records again, and fails if they have changed.

    Args:
        options: a request's options, or the params of its run; only `DATA_OPTIONS` and the options of an installed
            package's task are used.
        working_directory: the folder of relative paths.
        digests: of the training and the evaluation records.
    """
    words = ["mltrack", "data", "split"]
    split = options.get("validation_path") is None
    for name, option in DATA_OPTIONS.items():
        value = options.get(name)
        if value is None or (name in _OF_A_SPLIT and not split):
            continue
        if name in _PATHS:
            value = absolute(str(value), working_directory)
        if name in _ALWAYS_SAID or str(value) != str(option.default):
            words += [option.flag, str(value)]
    with suppress(ConfigurationError):  # the task's package is not installed here
        for name, option in own_options(str(options.get("task"))).items():
            value = options.get(name)
            if value is not None and str(value).lower() != str(option.default).lower():
                words += [option.flag, str(value).lower() if isinstance(value, bool) else str(value)]
    if digests:
        words += ["--digests", ",".join(digest[:DIGEST_DIGITS] for digest in digests)]
    return shlex.join(words)
