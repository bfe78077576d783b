"""The errors that mltrack raises, each with the exit code that the command line ends in.

Invariant: a message is one line that says what is wrong, where, and what to do.
A class whose call sites share one sentence builds it from its data.

    MltrackError
      ConfigurationError      an option, a name, an environment            exit 2
      DatasetError            a file, a record, a field                    exit 2
      TrainingError           the run itself                               exit 1
        NonFiniteLossError    a NaN or infinity before the optimizer step
        CheckpointError       a checkpoint that cannot be written or read
      TrackingError           the tracking server or the registry          exit 1
      Interrupted             SIGINT, SIGTERM, SIGHUP or SIGUSR1           exit 130, 143, 129, 138
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from mltrack.addresses import redact


class MltrackError(Exception):
    """Base of all errors that a user can meet; no address in its message holds a password or a token."""

    exit_code = 1

    def __init__(self, message: str = ""):
        super().__init__(redact(message))


class ConfigurationError(MltrackError):
    """An option, a model name or an environment that cannot work."""

    exit_code = 2


class DatasetError(MltrackError):
    """A data file that cannot be used.

    Args:
        problem: what is wrong, and what to do.
        path: the file, if there is one.
        record: number of the record in its file; the first is 1.
        field: name of the field in that record.
    """

    exit_code = 2

    def __init__(self, problem: str, *, path: object = None, record: int | None = None, field: str | None = None):
        self.problem, self.path, self.record, self.field = problem, path, record, field
        where = ", ".join(
            part
            for part in (
                str(path) if path is not None else "",
                f"record {record}" if record is not None else "",
                f"field '{field}'" if field is not None else "",
            )
            if part
        )
        super().__init__(printable(f"{where}: {problem}" if where else problem))


def printable(text: str, but: str = "") -> str:
    """The text on one line with control characters escaped, except those in `but`: names of files, fields and classes
    are untrusted.
    """
    return (
        text
        if text.isprintable()
        else "".join(one if one.isprintable() or one in but else ascii(one)[1:-1] for one in text)
    )


class TrainingError(MltrackError):
    """The training itself failed."""


class NonFiniteLossError(TrainingError):
    """A loss or a gradient was NaN or infinite; it did not reach the weights.

    Args:
        quantity: "loss" or "gradient norm".
        value: NaN or an infinity.
        step: the optimizer step that was about to be taken; the first is 1.
        epoch: 0-based.
        records: those that it was computed from, as "file: record N" or dataset indices.
        micro_batch: which of the step's micro-batches it was, if known.
        skipped: number of steps that were skipped right before it.
    """

    def __init__(
        self,
        quantity: str,
        value: float,
        *,
        step: int,
        epoch: int,
        records: Sequence[str],
        micro_batch: str | None = None,
        skipped: int = 0,
    ):
        self.quantity, self.value, self.step, self.epoch, self.records, self.micro_batch = (
            quantity,
            value,
            step,
            epoch,
            tuple(records),
            micro_batch,
        )
        shown = ", ".join(self.records[:16]) + (", ..." if len(self.records) > 16 else "")
        where = f"epoch {epoch + 1}" + (f", {micro_batch}" if micro_batch else "")
        before = f", after {skipped} skipped steps in a row" if skipped else ""
        super().__init__(
            f"{quantity} is {value} at step {step} ({where}){before}; it did not reach the weights; its records:"
            f" {shown}; try a lower learning_rate, or precision=off"
        )


class CheckpointError(TrainingError):
    """A checkpoint that cannot be written, read or trusted."""


class TrackingError(MltrackError):
    """The tracking server, the artifact store or the registry refused or could not be reached."""


class Interrupted(MltrackError):
    """A signal ended the process; within the training loop a checkpoint is written first.

    Args:
        signal_number: the exit code is 128 plus this number.
    """

    def __init__(self, signal_number: int):
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")


def text_of(error: object) -> str:
    """The error's message; empty if its `__str__` fails in any way."""
    try:
        return str(error)
    except BaseException:
        return ""


def described(error: BaseException) -> str:
    """One line about any error; one that is not mltrack's also names its class."""
    text = " ".join(text_of(error).split())
    return text if isinstance(error, MltrackError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


@contextmanager
def alone(lines: list[str], what: str) -> Iterator[None]:
    """Turn any failure inside, an interruption included, into a line about `what`."""
    try:
        yield
    except BaseException as error:
        lines.append(f"{what}: {described(error)}")


def one_of(accepted: Iterable[str]) -> str:
    """The accepted words in a message: "one of a, b, c"; a single one by itself."""
    words = list(accepted)
    return f"one of {', '.join(words)}" if len(words) > 1 else "".join(words)


def did_you_mean(seen: str, accepted: Iterable[str]) -> str:
    """The end of a message that refuses a word: " (did you mean 'a'?)"; empty if no accepted word is close."""
    close = difflib.get_close_matches(str(seen), list(accepted), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
