"""The files of a data path, in a fixed order, each with its reader.

A path is a file, a folder, a glob, a Hugging Face data set's folder (`folder` or `folder:split`) and
`hf:name:split`. Invariant: every file of a folder or glob is read or named in the error; a folder that a glob matches
is read as if given by itself. `folder:train`, `folder:validation` and `folder:test` are the files with such names
(`mltrack.records.readers.folder_parts`), `folder:all` is every file. Hidden files and folders (`.name`, `_name`) are
skipped, unless the glob names them (`_*.jsonl`)."""

from __future__ import annotations

import fnmatch
import glob
import gzip
import io
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, cast

from mltrack.errors import DatasetError, did_you_mean, one_of
from mltrack.records.builtin.stdlib_source import STDLIB
from mltrack.records.readers.class_names import Names
from mltrack.records.readers.csv_files import csv_rows
from mltrack.records.readers.folder_parts import ALL, PARTS, Parts, parts_of
from mltrack.records.readers.hugging_face import HUB, hub_parts, hub_rows, is_saved, saved_rows
from mltrack.records.readers.json_files import holds_lines, json_array, json_lines
from mltrack.records.readers.parquet_files import parquet_names, parquet_rows
from mltrack.records.readers.raw import Raw, one_line

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
"""Accepted file extensions; each may be followed by one of `COMPRESSIONS`."""

COMPRESSIONS = (".gz", ".zst")

ACCEPTED = (
    "a "
    + ", ".join(SUFFIXES[:-1])
    + f" or {SUFFIXES[-1]} file (each also .gz or .zst), a folder or a glob of them, a Hugging Face data set's folder"
    " or hf:name:split"
)

SETTLED_S = 1.0
"""A file changed within this time could change again and look the same, since file systems have coarse clocks."""

_READERS: dict[str, Callable[[str, BinaryIO], Iterator[Raw]]] = {
    ".json": json_array,
    ".jsonl": json_lines,
    ".csv": csv_rows,
}
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Source:
    """One file, or one Hugging Face data set."""

    name: str
    """As the user wrote it, for messages and records."""
    path: Path | None
    """The file or folder; None for the hub."""
    format: str
    """One of `SUFFIXES`, "saved" or "hub"."""
    compression: str = ""
    """One of `COMPRESSIONS`, or nothing."""
    split: str | None = None
    """Of a saved DatasetDict."""

    def raw_records(self, names: Names | None = None) -> Generator[Raw, None, None]:
        """Its records in order; `names` are the class names for a Parquet file without any, None keeps the numbers.

        Raises:
            DatasetError: it cannot be read.
        """
        if self.path is None:
            yield from hub_rows(self.name)
        elif self.format == "saved":
            yield from saved_rows(self.name, self.path, self.split)
        else:
            yield from self._file_records(self.path, names)

    def class_names(self) -> tuple[Names, list[str]]:
        """(class names, columns) of a Parquet file's schema; empty for other files."""
        if self.format != ".parquet" or self.path is None:
            return {}, []
        try:
            with self._opened(self.path) as stream:
                return parquet_names(stream)
        except (OSError, EOFError, zlib.error):
            return {}, []

    def _file_records(self, path: Path, names: Names | None) -> Iterator[Raw]:
        try:
            reader = partial(parquet_rows, names=names) if self.format == ".parquet" else _READERS[self.format]
            if self.format == ".json":
                with self._opened(path) as stream:
                    reader = json_lines if holds_lines(stream.read(_HEAD_BYTES)) else json_array
            with self._opened(path) as stream:
                yield from reader(self.name, stream)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DatasetError(f"is not a whole gzip file ({one_line(error)})", path=self.name) from None
        except OSError as error:
            if self.compression == ".zst" and not error.errno:
                raise DatasetError(f"is not a whole zstd file ({one_line(error)})", path=self.name) from None
            raise DatasetError(f"cannot be read: {error.strerror or one_line(error)}", path=self.name) from None

    @contextmanager
    def _opened(self, path: Path) -> Iterator[BinaryIO]:
        with path.open("rb") as plain:
            stream = cast(BinaryIO, plain)
            if self.compression == ".gz":
                stream = cast(BinaryIO, gzip.GzipFile(fileobj=plain))
            elif self.compression == ".zst":
                import pyarrow as pa

                stream = cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(plain, "zstd"), 1 << 18))
            if self.compression and self.format == ".parquet":  # read from its end
                with tempfile.TemporaryFile() as unpacked:
                    shutil.copyfileobj(stream, unpacked)
                    unpacked.seek(0)
                    yield cast(BinaryIO, unpacked)
            else:
                yield stream


def find_sources(path: str | Path) -> list[Source]:
    """The files or data sets of a data path, sorted by name, without reading them.

    Raises:
        DatasetError: there is none, or one of an unknown kind.
    """
    name = _printable(path)
    if not name.strip():
        raise DatasetError(f"the path is empty; use {ACCEPTED}, or stdlib")
    if name.startswith(HUB):
        hub_parts(name)
        return [Source(name, None, "hub")]
    try:
        return _found(name, Path(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        problem = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise DatasetError(f"cannot be read: {problem}", path=name) from None


def find_parts(path: str | Path) -> Parts | None:
    """The training, validation and test files of a folder or a glob; None for other paths.

    Raises:
        DatasetError: as `find_sources` and `parts_of`.
    """
    name, place = _printable(path), Path(path)
    try:
        if name.startswith(HUB) or name == STDLIB or _named_part(place) is not None or not _is_several(place):
            return None
    except (OSError, ValueError):  # `find_sources` reports it
        return None
    return parts_of(name, [_below(source, place) for source in find_sources(path)])


def every_file(path: str) -> str:
    """The path with `:all` if it is a folder or glob with several parts; any other path unchanged."""
    try:
        parts = find_parts(path)
    except DatasetError:
        return f"{path}:{ALL}" if _is_several(Path(path)) else path
    return f"{path}:{ALL}" if parts is not None and parts.are_several else path


def _found(name: str, path: Path) -> list[Source]:
    if path.is_dir():
        return [Source(name, path, "saved")] if is_saved(path) else _of_part(name, path, ALL)
    if path.exists():
        return [_file(name, path)]
    folder, colon, split = str(path).rpartition(":")
    if colon and is_saved(Path(folder)):
        return [Source(name, Path(folder), "saved", split=split)]
    if part := _named_part(path):
        return _of_part(name, *part)
    if glob.has_magic(name):
        return _of_part(name, path, ALL)
    siblings = [_printable(entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DatasetError(f"no such file{did_you_mean(path.name, siblings)}; use {ACCEPTED}, or stdlib", path=name)


def _is_several(path: Path) -> bool:
    """Whether it is a folder of files, or a glob."""
    return not is_saved(path) if path.is_dir() else not path.exists() and glob.has_magic(str(path))


def _named_part(path: Path) -> tuple[Path, str] | None:
    """(folder or glob, part) of `folder:train`."""
    place, colon, part = str(path).rpartition(":")
    return (
        (Path(place), part)
        if colon and part in (*PARTS, ALL) and not path.exists() and _is_several(Path(place))
        else None
    )


def _of_part(name: str, path: Path, part: str) -> list[Source]:
    """The sources of a part of a folder or glob."""
    held = _held(path) if path.is_dir() else _chosen(path)
    if not held and not path.is_dir():
        raise DatasetError(f"no file matches; use {ACCEPTED}, or stdlib", path=name)
    sources = _several(name, held, path if path.is_dir() else None)
    if part == ALL:
        return sources
    place = _printable(path)
    parts = parts_of(place, [_below(source, path) for source in sources], named=True)
    wanted = set(getattr(parts, part))
    if not wanted:
        choices = one_of(f"{place}:{one}" for one in (*parts.names(), ALL))
        raise DatasetError(f"has no {part} files; use {choices}", path=name)
    return [source for source in sources if _below(source, path) in wanted]


def _below(source: Source, path: Path) -> str:
    """A source's path relative to the folder, or to the fixed beginning of the glob."""
    assert source.path is not None
    fixed = path if path.is_dir() else Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
    return _printable(source.path.relative_to(fixed))


def _held(folder: Path) -> list[Path]:
    """The files and saved data sets below a folder."""
    if is_saved(folder):
        return [folder]
    held = []
    for place, below, files in os.walk(folder, onerror=_refuse):
        held += [Path(place, file) for file in files if not _hidden(file)]
        saved = [one for one in below if is_saved(Path(place, one))]
        held += [Path(place, one) for one in saved if not _hidden(one)]
        below[:] = [one for one in below if one not in saved and not _hidden(one)]
    return held


def _chosen(pattern: Path) -> list[Path]:
    """The files that a glob matches and those of the folders it matches, each once, without the files inside saved data
    sets.
    """
    matched = [path for path in map(Path, glob.glob(str(pattern), recursive=True)) if _is_meant(path, pattern)]
    folders = {path for path in matched if path.is_dir()}
    saved = {path for path in folders if is_saved(path)}
    held = {path for path in matched if path not in folders}.union(*map(_held, folders))
    return [path for path in held if saved.isdisjoint(path.parents)]


def _is_meant(path: Path, pattern: Path) -> bool:
    """Whether no part of a path is hidden, except those that the pattern names: `_old/*`, `_*.jsonl`."""
    named = [part for part in pattern.parts if _hidden(part)]
    return all(any(fnmatch.fnmatchcase(part, one) for one in named) for part in path.parts if _hidden(part))


def _several(name: str, paths: list[Path], folder: Path | None) -> list[Source]:
    sources, refused = [], []
    for path in sorted(paths):
        if path.is_dir() and is_saved(path):
            sources.append(Source(_printable(path), path, "saved"))
        elif _format(path)[0] in SUFFIXES:
            sources.append(_file(_printable(path), path))
        else:
            refused.append(_printable(path.relative_to(folder) if folder is not None else path))
    if refused:
        shown = ", ".join(refused[:5]) + (f" and {len(refused) - 5} more" if len(refused) > 5 else "")
        readable = f"{ACCEPTED.removeprefix('a ').split(' (')[0]}s"
        glob_hint = f"; choose them with a glob, such as {Path(name) / '*.jsonl'}" if folder is not None else ""
        raise DatasetError(f"has {shown}, but only {readable} can be read{glob_hint}", path=name)
    if not sources:
        raise DatasetError(f"has no files; use {ACCEPTED}", path=name)
    return sources


def _file(name: str, path: Path) -> Source:
    suffix, compression = _format(path)
    if suffix not in SUFFIXES:
        problem = (
            f"has the extension '{''.join(path.suffixes[-2:]) if compression else path.suffix}'"
            if path.suffix
            else "has no extension"
        )
        raise DatasetError(f"{problem}; use {ACCEPTED}", path=name)
    if not path.is_file():
        raise DatasetError("is not a regular file", path=name)
    return Source(name, path, suffix, compression)


def _format(path: Path) -> tuple[str, str]:
    """(extension, extension of the compression or ""), in lower case."""
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    return (Path(path.stem) if compression else path).suffix.lower(), compression


def _hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _refuse(error: OSError) -> None:
    """Do not skip a folder that cannot be read."""
    raise error


def _printable(path: object) -> str:
    """A name as text that can be stored: bytes that are not UTF-8 become replacement characters."""
    return (
        os.fsencode(str(path)).decode("utf-8", "replace")
        if not isinstance(path, bytes)
        else path.decode("utf-8", "replace")
    )


def absolute(path: str, folder: str) -> str:
    """A data path relative to `folder` as an absolute one; hub data sets and the built-in source stay as they are."""
    return path if path.startswith(HUB) or path == STDLIB else os.path.join(folder, path)


def state_of(sources: list[Source]) -> str | None:
    """A text that changes with the files: paths, sizes and times; None if unknown (the hub, or a file just written)."""
    parts = []
    for source in sources:
        if source.path is None:
            return None
        try:
            files = sorted(source.path.rglob("*")) if source.path.is_dir() else [source.path]
            for file in files:
                seen = file.stat()
                if time.time() - seen.st_ctime < SETTLED_S:
                    return None
                parts.append((str(file.absolute()), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino))
        except OSError:
            return None
    return repr(parts)
