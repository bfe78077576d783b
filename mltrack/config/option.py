"""One option of `mltrack train`, and how it is declared as a dataclass field.

Invariant: `Option.parse(text)` and `Option.check(value)` accept the same values, and refuse others in the same words.

    batch_size: int = option(8, minimum=1, fixes_result=True, help="Examples per micro-batch.")
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mltrack.config.pairs import format_pairs, parse_pairs
from mltrack.errors import ConfigurationError, did_you_mean, one_of

MAX_WHOLE_NUMBER = 2**63 - 1
"""The largest whole number of torch, numpy and the databases behind MLflow."""
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
TRUTHS = (*_TRUE, *_FALSE)
"""Words that a boolean takes."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option."""

    name: str = ""
    """As written in Python and after `-P`. The command line accepts `-` for `_`."""
    formerly: str = ""
    """The name in 0.1, which is still accepted: as an argument and an attribute, on the command line, in a saved
    configuration. MLflow's param keeps it, so that old and new runs share a column.
    """
    kind: str
    """int, float, bool, text, path, pairs (see `mltrack.config.pairs`), or interval (`epoch`, or a number of steps)."""
    help: str
    """Short sentences for `--help` and the table of options."""
    group: str = ""
    """The heading under which it is shown."""
    default: Any = None
    """The value unless the user or the task sets another. None: not set."""
    by_task: bool = False
    """The default is the task's."""
    trainer_default: Any = None
    """For an option by task: the default of `TrainingConfig`, which knows no task."""
    choices: tuple[str, ...] = ()
    """Accepted words, or names of pairs. Empty: any."""
    more_choices: Callable[[], Sequence[str]] | None = None
    """Further accepted words that take time to find."""
    values: tuple[str, ...] = ()
    """Accepted values of pairs. Empty: any."""
    ignored: tuple[str, ...] = ()
    """Names of pairs that an earlier version accepted. They are left out with a warning."""
    minimum: float | None = None
    """Smallest accepted number."""
    maximum: float | None = None
    """Largest accepted number."""
    above: float | None = None
    """Accepted numbers are larger than this."""
    below: float | None = None
    """Accepted numbers are smaller than this."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other spellings of a choice, such as true for auto."""
    is_param: bool = True
    """It is an MLflow param. Options that say where a run is kept, not what it computes, are not."""
    inherited: bool = True
    """A resumed run takes it from the run that it continues, unless given."""
    fixes_data: bool = False
    """It decides which records are trained on and which are evaluated on."""
    fixes_result: bool = False
    """Its value must not change when a training is resumed."""

    @property
    def flag(self) -> str:
        """The spelling of the command line, such as `--learning-rate`."""
        return "--" + self.name.replace("_", "-")

    @property
    def param(self) -> str:
        """The key of its MLflow param."""
        return self.formerly or self.name

    @property
    def accepted(self) -> str:
        """The accepted values in words, for messages and tables."""
        if self.kind in ("int", "float"):
            noun = "a whole number" if self.kind == "int" else "a number"
            bounds = {">": self.above, ">=": self.minimum, "<": self.below, "<=": self.maximum}
            return noun + " and".join(f" {sign} {n:g}" for sign, n in bounds.items() if n is not None)
        if self.kind == "bool":
            return "true or false"
        if self.kind == "interval":
            return "epoch, or a whole number of optimizer steps > 0"
        if self.kind == "pairs":
            value = "|".join(self.values) or "VALUE"
            return f"NAME={value},NAME={value} or a JSON object" + (
                f"; NAME is {'|'.join(self.choices)}" if self.choices else ""
            )
        if self.choices:
            return "|".join(self.choices)
        return "a path" if self.kind == "path" else "text"

    def parse(self, text: str) -> Any:
        """The value of a word of the command line; an empty word means that the option is not set.

        Raises:
            ConfigurationError: the word is not an accepted value; the message says what is.
        """
        if not text:
            return self.default
        word = text.strip()
        if self.kind in ("int", "float", "interval"):
            if self.kind == "interval" and word == "epoch":
                return word
            try:
                number = float(word) if self.kind == "float" else int(word)
            except ValueError:
                raise self._refused(text) from None
            if not math.isfinite(number) if self.kind == "float" else abs(number) > MAX_WHOLE_NUMBER:
                raise self._refused(text)  # as it was typed: 1e400 is read as infinity
            return self.check(number)
        if self.kind == "bool":
            if word.lower() in _TRUE:
                return True
            if word.lower() in _FALSE:
                return False
            raise self._refused(text)
        return self.check(text)

    def check(self, value: Any) -> Any:
        """The value in the option's own type; Python callers' values are checked here.

        Raises:
            ConfigurationError: the value is not accepted.
        """
        if value is None:
            if self.default is None or self.by_task:
                return None
            raise self._refused(value)
        checker: Callable[[Any], Any] = getattr(self, f"_check_{self.kind}")
        return checker(value)

    def _check_int(self, value: Any) -> int:
        if not _is_number(value) or not float(value).is_integer() or abs(value) > MAX_WHOLE_NUMBER:
            raise self._refused(value)
        return int(self._in_range(int(value)))

    def _check_float(self, value: Any) -> float:
        if not _is_number(value):
            raise self._refused(value)
        return float(self._in_range(float(value)))

    def _check_bool(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._refused(value)
        return value

    def _check_interval(self, value: Any) -> int | str:
        if value == "epoch":
            return "epoch"
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_WHOLE_NUMBER:
            raise self._refused(value)
        return value

    def _check_path(self, value: Any) -> str:
        if not isinstance(value, (str, Path)) or not str(value):
            raise self._refused(value)
        return str(value)

    def _check_pairs(self, value: Any) -> str | None:
        if not isinstance(value, (str, Mapping)):
            raise self._refused(value)
        try:
            pairs = parse_pairs(
                format_pairs({str(name): str(meant) for name, meant in value.items()})
                if isinstance(value, Mapping)
                else value
            )
        except ValueError as error:
            raise ConfigurationError(f"{self.name} must be {self.accepted}, not {_shown(value)} ({error})") from None
        if outdated := [name for name in pairs if name in self.ignored]:
            warnings.warn(f"{self.name}: {', '.join(outdated)} always on; the switch is left out", stacklevel=2)
            value = pairs = {name: meant for name, meant in pairs.items() if name not in outdated}
            if not pairs:
                return None
        unknown = next((name for name in pairs if self.choices and name not in self.choices), None)
        if unknown is not None and not (self.more_choices is not None and set(pairs) <= set(self.more_choices())):
            raise ConfigurationError(
                f"{self.name}: unknown name {unknown!r} in {str(value)!r}; "
                f"use {one_of(self.choices)}{did_you_mean(unknown, self.choices)}"
            )
        strange = next((name for name, meant in pairs.items() if self.values and meant not in self.values), None)
        if strange is not None:
            raise ConfigurationError(
                f"{self.name}: {strange} must be {one_of(self.values)}, not {pairs[strange]!r}"
                f"{did_you_mean(pairs[strange], self.values)}"
            )
        return value if isinstance(value, str) else format_pairs(pairs)

    def _check_text(self, value: Any) -> str:
        if isinstance(value, bool):
            value = str(value).lower()
        if not isinstance(value, str) or not value:
            raise self._refused(value)
        if not self.choices:
            return str(value)
        word = self.aliases.get(value.lower(), value.lower())
        if word in self.choices or (self.more_choices is not None and word in self.more_choices()):
            return word
        raise self._refused(value)

    def _in_range(self, value: float) -> float:
        too_low = (self.minimum is not None and value < self.minimum) or (
            self.above is not None and value <= self.above
        )
        too_high = (self.maximum is not None and value > self.maximum) or (
            self.below is not None and value >= self.below
        )
        if too_low or too_high:
            raise self._refused(value)
        return value

    def _refused(self, value: Any) -> ConfigurationError:
        seen = _shown(value)
        choices = self.choices if self.more_choices is None else self.more_choices()
        accepted = one_of(choices) if choices else self.accepted
        return ConfigurationError(
            f"{self.name} must be {accepted}, not {seen}{did_you_mean(seen.strip(chr(39)), choices)}"
        )


def _is_number(value: Any) -> bool:
    """True for a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number above 1.8e308
        return False


def _shown(value: Any) -> str:
    """The value in a message; a long one is cut, with its length."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a whole number of more than 4,300 digits"
    return text if len(text) <= 200 else f"{text[:80]}... ({len(text)} characters)"


_KINDS = {bool: "bool", int: "int", float: "float", str: "text"}


def option(default: Any = None, *, kind: str | None = None, repr: bool = True, **settings: Any) -> Any:
    """A dataclass field that is an option; `settings` are the fields of `Option`.

    Args:
        default: None if the option is not set or the task decides.
        kind: default: that of the default's type.
        repr: False for a value that may hold a secret.
    """
    made = Option(kind=kind or _KINDS[type(default)], default=default, **settings)
    return field(default=default, repr=repr, metadata={Option.__name__: made})


def declared(kind: type, group: str) -> list[Option]:
    """The options that a dataclass itself declares, under this heading unless they name another."""
    made = {f.name: f.metadata[Option.__name__] for f in fields(kind) if f.name in kind.__annotations__}
    return [replace(one, name=name, group=one.group or group) for name, one in made.items()]
