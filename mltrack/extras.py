"""What only some uses need: the extras of pyproject.toml, and the line that names the one that is missing."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {"gguf": ("gguf", "accelerate"), "postgres": ("psycopg2",), "s3": ("boto3", "botocore")}
"""{extra: the packages that it brings, as they are imported}."""


def missing(extra: str) -> str | None:
    """Which packages of an extra are not installed, and the command that installs them; None where all are there."""
    absent = [package for package in EXTRAS[extra] if find_spec(package) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed: {_command(extra)}"


def remedy(package: str | None) -> str | None:
    """The command that installs what could not be imported; None where no extra brings it."""
    top = (package or "").partition(".")[0]
    if top == "psycopg":  # what SQLAlchemy takes since 2.1 where an address names no driver
        return f"write postgresql+psycopg2:// and {_command('postgres')}"
    return next((_command(extra) for extra, packages in EXTRAS.items() if top in packages), None)


def _command(extra: str) -> str:
    return f"pip install 'mltrack[{extra}]'"
