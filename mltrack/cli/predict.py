"""`mltrack predict` and `mltrack evaluate`."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mltrack.cli.parameters import reading_options
from mltrack.config import OPTIONS, Option
from mltrack.errors import ConfigurationError, DatasetError, printable

_NUMBERS = {
    "max_new_tokens": Option(name="max_new_tokens", kind="int", minimum=1, help=""),
    "temperature": Option(name="temperature", kind="float", minimum=0, help=""),
    "batch_size": Option(name="batch_size", kind="int", minimum=1, help=""),
}


def predict(
    model_uri: str,
    text: str | None,
    input_path: str | None,
    max_new_tokens: str | None,
    temperature: str | None,
    stop: list[str],
    output: str,
    tracking_uri: str | None,
) -> None:
    """Print one answer per text; with `json`, one JSON list."""
    OPTIONS["output"].check(output)
    texts = _texts(text, input_path)
    params: dict[str, Any] = {
        name: _NUMBERS[name].parse(word)
        for name, word in (("max_new_tokens", max_new_tokens), ("temperature", temperature))
        if word is not None
    }
    if stop:
        params["stop"] = [_typed(word) for word in stop]
    quiet()
    from mltrack import registry

    found = registry.predict(model_uri, texts, tracking_uri, params)
    if output == "json":
        print(json.dumps(found))
        return
    for answer in found:
        if isinstance(answer, dict) and {"label", "score"} <= answer.keys():
            print(f"{printable(answer['label'])}  {answer['score']:.4f}")
        elif not isinstance(answer, str):
            print(printable(json.dumps(answer)))
        else:  # a file or a pipe gets it unchanged
            print(printable(answer, but="\n\t") if sys.stdout.isatty() else answer)


def evaluate(
    model_uri: str,
    dataset_path: str,
    batch_size: str,
    output: str,
    tracking_uri: str | None,
    words: Mapping[str, str | None],
) -> None:
    """Print the metrics of a model on a data set; `words` are the reading options."""
    OPTIONS["output"].check(output)
    reading = reading_options(words)
    size = _NUMBERS["batch_size"].parse(batch_size)
    quiet()
    from mltrack import registry
    from mltrack.evaluation.folder import evaluate_folder

    folder = registry.model_folder(model_uri, tracking_uri)
    metrics = evaluate_folder(
        folder, dataset_path, task=registry.folder_task(folder), batch_size=size, reading=reading, notice=to_stderr
    )
    if output == "json":
        print(json.dumps(metrics))
        return
    for name, value in metrics.items():
        print(f"{printable(name)}  {value:.4f}")


def to_stderr(line: str) -> None:
    """Print a line that is not part of the result."""
    print(printable(line), file=sys.stderr)


def quiet() -> None:
    """Turn off progress bars and reports of transformers."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _texts(text: str | None, input_path: str | None) -> list[str]:
    if (text is None) == (input_path is None):
        raise ConfigurationError("predict needs either --text or --input-path, not both")
    if text is not None:
        return [_checked(_typed(text), "--text")]
    assert input_path is not None
    if input_path == "-":
        return [_decoded(sys.stdin.buffer.read(), "standard input").replace("\r\n", "\n").replace("\r", "\n")]
    path = Path(input_path)
    if not path.is_file():
        raise ConfigurationError(f"input_path must be a file, or - for standard input, not '{input_path}'")
    try:
        with path.open("rb") as file:
            if path.suffix in (".jsonl", ".json"):
                return [_text_of(value, number, str(path)) for number, value in _json_records(path, file)]
            lines = enumerate(file.read().removeprefix(codecs.BOM_UTF8).splitlines(), start=1)
            return [_decoded(line, str(path), number) for number, line in lines if line.strip()]
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror or error}", path=path) from None


def _json_records(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """(number, value) of each record; many .json files are JSON Lines."""
    from mltrack.records.readers import json_files

    head = file.read(1 << 16)
    file.seek(0)
    lines = path.suffix == ".jsonl" or json_files.holds_lines(head)
    for raw in (json_files.json_lines if lines else json_files.json_array)(str(path), file):
        if isinstance(raw.value, DatasetError):
            raise raw.value
        yield raw.number, raw.value


def _text_of(record: Any, number: int, name: str) -> str:
    if isinstance(record, str):
        return _checked(record, name, number)
    for field in ("description", "code", "text"):
        if isinstance(record, dict) and isinstance(record.get(field), str):
            return _checked(record[field], name, number, field)
    raise DatasetError("must be text, or an object with one of description, code, text", path=name, record=number)


def _typed(word: str) -> str:
    """An argument as UTF-8, if a locale without Unicode left its bytes undecoded."""
    try:
        return os.fsencode(word).decode()
    except UnicodeError:
        return word


def _decoded(data: bytes, name: str, number: int | None = None) -> str:
    from mltrack.records.readers.raw import not_utf8

    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(error, name, number) from None


def _checked(text: str, name: str, number: int | None = None, field: str | None = None) -> str:
    from mltrack.records.record import num_bytes

    num_bytes(text, name, number, field)
    return text
