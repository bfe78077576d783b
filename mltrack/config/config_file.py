"""`mltrack.yaml`: options of a training in a file.

Invariant: a value of the file means what the same word would mean on the command line; YAML's own types are not used
(`2e-5` is a number here and text in YAML 1.1, `no` is a word here).

    ConfigFile.read("mltrack.yaml").words          # {"learning_rate": FileWord("2e-5", line=7), ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltrack.addresses import redact
from mltrack.config.former_names import FORMER_NAMES
from mltrack.config.option import Option
from mltrack.config.options import OPTIONS
from mltrack.config.pairs import format_pairs
from mltrack.config.task_options import options_of
from mltrack.errors import ConfigurationError, did_you_mean, one_of, printable

MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class FileWord:
    """A value as the file has it."""

    word: str
    line: int
    """Counted from 1."""


@dataclass(frozen=True)
class ConfigFile:
    """A file of options."""

    path: str
    text: str
    """Without credentials."""
    words: Mapping[str, FileWord]
    """By option name; an option with an empty value is not set."""

    @classmethod
    def read(cls, path: str | Path) -> ConfigFile:
        """Read and check a file.

        Raises:
            ConfigurationError: with file and line; the file cannot be read or is no YAML mapping, a name is unknown or
                given twice, a value is not accepted.
        """
        text = _text(path)
        return cls(str(path), redact(text), _checked(path, _entries(path, text)))


def _checked(path: str | Path, entries: Sequence[tuple[str, FileWord]]) -> dict[str, FileWord]:
    task = next((word.word for name, word in entries if name == "task"), "")
    with _at(path, next((word.line for name, word in entries if name == "task"), 1)):
        options = options_of(OPTIONS["task"].parse(task))
    found: dict[str, FileWord] = {}
    for given, value in entries:
        name = FORMER_NAMES.get(given, given)
        with _at(path, value.line):
            if name not in options:
                raise ConfigurationError(
                    f"unknown option '{given}'{did_you_mean(given, options) or f'; use {one_of(options)}'}"
                )
            if name in found:
                raise ConfigurationError(f"{name} is given twice, first in line {found[name].line}")
            options[name].parse(value.word)
        found[name] = value
    return {name: value for name, value in found.items() if value.word}


def commented_config(options: Mapping[str, Option], chosen: Mapping[str, str], defaults: Mapping[str, Any]) -> str:
    """A file that explains every option: the chosen ones are set, the others stand behind a `#` with their defaults.

    Args:
        options: that the file lists, in order.
        chosen: {name: word}
        defaults: of the task.
    """
    lines = ["# Options of `mltrack train --config FILE`. The command line wins over this file."]
    group = ""
    for name, option in options.items():
        if option.group != group:
            group = option.group
            lines += ["", f"# -- {group} " + "-" * (70 - len(group))]
        default = defaults.get(name, option.default)
        shown = "" if default is None else f" {str(default).lower() if isinstance(default, bool) else default}"
        accepted = f" ({option.accepted})" if option.choices or option.kind in ("int", "float", "interval") else ""
        lines += ["", *_wrapped(option.help + accepted)]
        lines.append(f"{name}: {chosen[name]}" if name in chosen else f"#{name}:{shown}")
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 98, initial_indent="# ", subsequent_indent="# ")


class _at:
    """Inside, an error says where in the file it was."""

    def __init__(self, path: str | Path, line: int):
        self._where = f"{path}, line {line}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigurationError):
            raise ConfigurationError(f"{self._where}: {error}") from None


def _text(path: str | Path) -> str:
    try:
        content = Path(path).expanduser().read_bytes()
        if len(content) > MAX_BYTES:
            raise ConfigurationError(f"{path} has {len(content):,} bytes; a file of options has at most {MAX_BYTES:,}")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}; `mltrack init` writes such a file"
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None


def _entries(path: str | Path, text: str) -> list[tuple[str, FileWord]]:
    """(name as the file spells it but for `-`, word) in the order of the file."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = printable(str(getattr(error, "problem", None) or error).splitlines()[0])
        raise ConfigurationError(f"{path}{line}: not YAML ({problem})") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: not YAML (nested too deeply)") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigurationError(f"{path} must hold one `name: value` a line")
    found = []
    for key, value in root.value:
        line = key.start_mark.line + 1
        name = str(key.value).replace("-", "_")
        found.append((name, FileWord(_word(path, line, name, value), line)))
    return found


def _word(path: str | Path, line: int, name: str, node: Any) -> str:
    """A value as one word of the command line; a mapping becomes NAME=VALUE pairs."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        is_null = node.tag == "tag:yaml.org,2002:null"
        return "" if is_null else str(node.value)
    if isinstance(node, yaml.MappingNode) and _are_scalars(one for pair in node.value for one in pair):
        return format_pairs({str(key.value): str(value.value) for key, value in node.value})
    if isinstance(node, yaml.SequenceNode) and _are_scalars(node.value):
        return ",".join(str(one.value) for one in node.value)
    raise ConfigurationError(f"{path}, line {line}: {name} must be one value, or one level of names and values")


def _are_scalars(nodes: Any) -> bool:
    import yaml

    found: Sequence[Any] = list(nodes)
    return bool(found) and all(isinstance(one, yaml.ScalarNode) for one in found)
