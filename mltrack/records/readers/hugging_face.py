"""Hugging Face data sets: a folder of `save_to_disk`, or a name on the hub.

Invariant: an error of the library reaches the user as one line; the rows stay in the library's memory-mapped files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mltrack.errors import DatasetError, did_you_mean, one_of
from mltrack.records.readers.arrow_rows import batch_rows, rows_at_once
from mltrack.records.readers.class_names import named
from mltrack.records.readers.raw import Raw, one_line

HUB = "hf:"
"""Prefix of a name on the hub: `hf:name:split`, or `hf:name:configuration:split`."""


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of a Dataset or a DatasetDict wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def saved_rows(name: str, folder: Path, split: str | None) -> Iterator[Raw]:
    """The rows of a saved data set.

    Raises:
        DatasetError: it cannot be read, or has several splits and none was named.
    """
    datasets = _library(name)
    try:
        held = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DatasetError(f"is not a readable folder of save_to_disk ({one_line(error)})", path=name) from None
    if isinstance(held, datasets.DatasetDict):
        held = _chosen(name, held, split)
    elif split is not None:
        raise DatasetError(f"has no split {split!r}, since it is one data set; use {folder}", path=name)
    return _rows(name, held)


def hub_rows(name: str) -> Iterator[Raw]:
    """The rows of a data set on the hub, from the library's cache or downloaded into it.

    Raises:
        DatasetError: it cannot be loaded, or is not in the cache and there is no network.
    """
    repository, configuration, split = hub_parts(name)
    datasets = _library(name)
    try:
        held = datasets.load_dataset(repository, configuration, split=split)
    except Exception as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        problem = (
            "is not in the cache, and HF_HUB_OFFLINE forbids the network"
            if offline
            else "cannot be loaded as a data set and split of the Hugging Face hub"
        )
        raise DatasetError(f"{problem} ({type(error).__name__}: {one_line(error)})", path=name) from None
    return _rows(name, held)


def hub_parts(name: str) -> tuple[str, str | None, str]:
    """(repository, configuration or None, split) of `hf:name:split`.

    Raises:
        DatasetError: a part is missing.
    """
    parts = name.removeprefix(HUB).split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise DatasetError(
            "must be hf:name:split or hf:name:configuration:split, such as hf:code_x_glue_cc_defect_detection:train",
            path=name,
        )
    return parts[0], parts[1] if len(parts) == 3 else None, parts[-1]


def _chosen(name: str, held: Any, split: str | None) -> Any:
    splits = list(held)
    if split is None and len(splits) == 1:
        return held[splits[0]]
    if split in held:
        return held[split]
    folder = name if split is None else name.removesuffix(f":{split}")
    choices = [f"{folder}:{one}" for one in splits]
    raise DatasetError(
        (
            f"needs a split: {', '.join(choices)}"
            if split is None
            else f"has no split {split!r}; use {one_of(choices)}{did_you_mean(name, choices)}"
        ),
        path=name,
    )


def _rows(name: str, dataset: Any) -> Iterator[Raw]:
    """Rows as plain values; classes of a ClassLabel column by name.

    Raises:
        DatasetError: the files cannot be read.
    """
    classes = {
        column: feature.names for column, feature in dataset.features.items() if type(feature).__name__ == "ClassLabel"
    }
    number = 0
    try:
        held = dataset.with_format("arrow")  # as Arrow, so that images and sounds stay undecoded
        for table in held.iter(batch_size=rows_at_once(dataset.data.num_rows, dataset.data.nbytes)):
            for batch in table.to_batches():
                raws = batch_rows(name, batch, number)
                yield from (named(raw, classes) for raw in raws) if classes else raws
                number += batch.num_rows
    except Exception as error:
        raise DatasetError(f"is not a readable data set ({one_line(error)})", path=name) from None


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            f"needs the package datasets ({one_line(error)}); run pip install datasets", path=name
        ) from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets
