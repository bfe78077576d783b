"""The records that a request names: those to train on and those to evaluate on.

Invariant: they are a pure function of the files' contents and of the request's `DATA_OPTIONS`; the model and its tokenizer have no say. So
`rebuild_command` gives the command that makes the same records again.

    found = requested_records(request)
    len(found.train), len(found.evaluation), found.lines
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltrack.config import OPTIONS, TrainModelRequest
from mltrack.config.options import DATA_OPTIONS
from mltrack.data.loader import DatasetLoader
from mltrack.data.readers import absolute
from mltrack.data.records import Record, as_task

WORKING_DIRECTORY = "mltrack.working_directory"
"""Tag of a run: what its relative paths are relative to."""
_ALWAYS_SAID = ("dataset_path", "task", "validation_split", "seed")
_PATHS = ("dataset_path", "validation_path")
DIGEST_DIGITS = 16
"""Of a digest in a command line."""
_OF_A_SPLIT = ("validation_split", "seed", "group")


@dataclass(frozen=True)
class RequestedRecords:
    """Both sides, and how they were read."""

    loader: DatasetLoader
    """Of the training records; it makes data sets of both sides with one label mapping."""
    eval_loader: DatasetLoader | None
    """Of `validation_path`."""
    train: Sequence[Record]
    evaluation: Sequence[Record]

    @property
    def loaders(self) -> dict[str, DatasetLoader]:
        """By what they read: training, evaluation."""
        return {"training": self.loader} | ({} if self.eval_loader is None else {"evaluation": self.eval_loader})

    @property
    def lines(self) -> list[str]:
        """What `on_bad_record=skip` left out, one line for each of the first records and one for the rest."""
        return [line for loader in self.loaders.values() for line in loader.bad_records.told(loader.data_path)]

    @property
    def counts(self) -> dict[str, int]:
        """records_read, and records_left_out of them."""
        loaders = self.loaders.values()
        return {"records_read": sum(loader.num_read for loader in loaders), "records_left_out": sum(loader.num_skipped for loader in loaders)}

    def keep_bad_records(self, folder: Path) -> list[Path]:
        """Write what was left out, with reasons, to `bad_records-<side>.jsonl` in the folder; the files that there are."""
        kept = [loader.bad_records.keep(folder / f"bad_records-{side}.jsonl") for side, loader in self.loaders.items()]
        return [path for path in kept if path is not None]


def requested_records(request: TrainModelRequest, *, tokenizer: Any = None, progress: Callable[[int, int], None] | None = None) -> RequestedRecords:
    """Read and, where there is no `validation_path`, split.

    Args:
        request: `max_length` and `truncation` go to the loader, for the data sets that it makes.
        tokenizer: for those data sets; the records do not need it.
        progress: called with (done, total) while the built-in source is scanned.

    Raises:
        DatasetError: whatever is wrong with the data.
    """
    options: dict[str, Any] = {name: getattr(request, name) for name in ("task", "columns", "labels", "on_bad_record", "seed", "group", "truncation")}
    options |= {"progress": progress} | ({} if request.max_length is None else {"max_length": request.max_length})
    loader = DatasetLoader(request.dataset_path, tokenizer, num_labels=request.num_labels, **options)
    if request.validation_path is None:
        train, evaluation = loader.split_records(request.validation_split)
        return RequestedRecords(loader, None, train, evaluation)
    mapping = loader.label_mapping if as_task(request.task).is_classification else None
    eval_loader = DatasetLoader(request.validation_path, tokenizer, label_mapping=mapping, **options)
    return RequestedRecords(loader, eval_loader, loader.records, eval_loader.records)


def rebuild_command(options: Mapping[str, Any], *, working_directory: str = "", digests: Sequence[str] = ()) -> str:
    """The command line that makes the same records again, and says so where they are others by now.

    Args:
        options: a request's options, or the params of its run; others than `DATA_OPTIONS` are ignored.
        working_directory: what relative paths are relative to.
        digests: of the training and the evaluation records.
    """
    words = ["mltrack", "data", "split"]
    split = options.get("validation_path") is None
    for name in DATA_OPTIONS:
        value = options.get(name)
        if value is None or (name in _OF_A_SPLIT and not split):
            continue
        if name in _PATHS:
            value = absolute(str(value), working_directory)
        if name in _ALWAYS_SAID or str(value) != str(OPTIONS[name].default):
            words += [OPTIONS[name].flag, str(value)]
    if digests:
        words += ["--digests", ",".join(digest[:DIGEST_DIGITS] for digest in digests)]
    return shlex.join(words)
