"""The command line: arguments to a request, a response to an exit code. Heavy imports wait until a command runs.

Exit codes: 0 done, 1 failed, 2 bad input or configuration, 128 + signal interrupted (130 SIGINT, 143 SIGTERM).
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from itertools import pairwise
from typing import NoReturn

from mltrack.addresses import RedactedStream, redact
from mltrack.errors import MltrackError, described, printable
from mltrack.shortage import shortage_of

_SHOWN = "mltrack.shown"
"""Name of stdout's error handler."""


def main() -> NoReturn:
    """Entry point of `mltrack`; ends the process."""
    sys.stderr = RedactedStream(sys.stderr)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line; returns its exit code. An error is one line on stderr, with `--debug true` the
    traceback too.
    """
    os.environ.setdefault(
        "PYDANTIC_DISABLE_PLUGINS", "__all__"
    )  # typer uses pydantic, which would search all installed packages for plugins
    import typer

    from mltrack.cli.app import app
    from mltrack.cli.parameters import without_empty

    codecs.register_error(_SHOWN, _shown)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors=_SHOWN)
    command = typer.main.get_command(app)
    try:
        outcome = command.main(args=without_empty(command, arguments), prog_name="mltrack", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except MltrackError as error:
        return _said(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _said("interrupted", 130)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if hasattr(error, "format_message"):  # a click error: an unknown option or command
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error.format_message())
                return 0
            line = " ".join(error.format_message().split())
            where = getattr(getattr(error, "ctx", None), "command_path", "mltrack")
            return _said(f"{line} See '{where} --help'", 2)
        if type(error).__name__ in ("Abort", "Exit"):
            return int(getattr(error, "exit_code", 1))
        if _debug(arguments):
            raise
        if (shortage := shortage_of(error)) is not None:
            return _said(str(shortage), shortage.exit_code)
        return _said(f"{described(error)} (--debug true shows where)", 1)


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replacement for what stdout cannot encode: the original byte of a path that is not UTF-8, else an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    if 0xDC80 <= code <= 0xDCFF:
        return bytes([code - 0xDC00]), error.start + 1
    return error.object[error.start].encode("ascii", "backslashreplace").decode(), error.start + 1


def _said(line: str, exit_code: int) -> int:
    print(printable(f"mltrack: {redact(line)}"), file=sys.stderr)
    return exit_code


def _debug(arguments: list[str]) -> bool:
    from mltrack.cli.command import as_values

    return any(
        word == "--debug" and value.lower() == "true" for word, value in pairwise(as_values(arguments, {"--debug"}))
    )
