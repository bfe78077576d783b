"""What the documentation says is what the code says: options, commands, defaults, links. `python tests/test_docs.py`
rewrites the table of options.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from mltrack.config import OPTIONS, TrainModelRequest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TABLE = ROOT / "docs" / "options.md"
"""The page with the table of options."""
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "projects").glob("*/README.md")),
]
BEGIN, END = "<!-- options -->", "<!-- /options -->"


def with_table(text: str) -> str:
    """The page with the table of options as the code has it."""
    from mltrack.cli.parameters import markdown_table

    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{markdown_table()}\n{END}{rest.split(END)[1]}"


def fenced(text: str) -> list[str]:
    """The fenced blocks of a page that are marked with no language."""
    blocks: list[str] = []
    language: str | None = None
    for line in text.splitlines(keepends=True):
        if line.startswith("```"):
            language = line[3:].strip() if language is None else None
            blocks += [""] if language == "" else []
        elif language == "":
            blocks[-1] += line
    return blocks


def options_of(words: list[str]) -> set[str]:
    """The options of the command that a line calls, in every spelling."""
    import typer

    from mltrack.cli.app import app

    command: Any = typer.main.get_command(app)
    if words[0] == "resume":  # it takes the options of train
        words = ["train"]
    for word in words:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
    return {spelling for parameter in command.params for spelling in parameter.opts}


def shell_lines(page: Path) -> list[str]:
    """The commands of a page's unmarked blocks, without comments."""
    lines = [
        line.split(" #")[0].strip() for block in fenced(page.read_text(encoding="utf-8")) for line in block.splitlines()
    ]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if re.match(r"(\w+=\S+ )?(mltrack|mlflow) ", part)]


COMMANDS = [(page, line) for page in PAGES for line in shell_lines(page)]


def test_the_table_of_options_is_the_codes() -> None:
    text = TABLE.read_text(encoding="utf-8")
    assert text == with_table(text), (
        f"the options of {TABLE} are not those of mltrack/config/options.py; `python tests/test_docs.py` rewrites them"
    )


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 20
    assert {page.parent.name for page, _ in COMMANDS} >= {
        "code_generation",
        "text_classification",
        "security_classification",
    }


@pytest.mark.parametrize(
    ("page", "line"), COMMANDS, ids=[f"{page.relative_to(ROOT)}: {line[:60]}" for page, line in COMMANDS]
)
def test_every_option_of_a_command_exists(page: Path, line: str) -> None:
    words = line.split()
    assert len(words) > 1, page
    for name in re.findall(r"-P (\w+)=", line):
        assert name in OPTIONS or name in ("model_uri", "text", "input_path", "output", "config"), name
    if "mltrack" in words:
        after = words[words.index("mltrack") + 1 :]
        assert {word for word in after if word.startswith("--")} <= options_of(after)


@pytest.mark.parametrize("line", [line for _, line in COMMANDS if line.startswith("mltrack train")])
def test_every_train_command_is_a_valid_request(line: str) -> None:
    import shlex

    words = shlex.split(line)[2:]
    given = {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    given.pop("config", None)
    assert TrainModelRequest.from_words(given).validate() == []


def test_the_commands_of_mltrack_are_all_named() -> None:
    from mltrack.cli.app import app

    text = TABLE.read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"mltrack {command.name}" in text
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            assert f"mltrack {group.typer_instance.info.name} {command.name}" in text


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], (
                target
            )


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_pages_are_plain_text(page: Path) -> None:
    assert page.read_text(encoding="utf-8").isascii()


def test_files_that_the_pages_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:tests|mltrack|docs|benchmarks|projects)/[\w./-]+\.(?:py|md|jsonl))`",
            page.read_text(encoding="utf-8"),
        ):
            assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}"


@pytest.mark.parametrize("name", ["run.png", "compare.png"])
def test_screenshots_are_small_and_wide_enough(name: str) -> None:
    data = (ROOT / "docs" / "images" / name).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) < 300_000
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 1000
    assert height >= 500


def test_under_each_make_command_stand_the_lines_that_it_runs() -> None:
    makefile, blocks = (ROOT / "Makefile").read_text(encoding="utf-8"), fenced(README.read_text(encoding="utf-8"))
    assert "-m venv $(VENV)" in makefile
    for after, expected in (
        (
            "make demo\n",
            [
                "-r requirements.lock",
                "--no-deps --no-build-isolation -e .",
                "mlflow run . --env-manager local -P task=code_generation",
            ],
        ),
        ("make test\n", ["python -m pytest"]),
    ):
        plain = blocks[blocks.index(after) + 1]
        for words in expected:
            assert words in plain, after
            assert words in makefile, f"Makefile: {words}"


@pytest.mark.parametrize("task", ["code_generation", "text_classification", "security_classification"])
def test_a_projects_table_of_defaults_is_the_codes(task: str) -> None:
    from mltrack.tasks import task_named

    text = (ROOT / "projects" / task / "README.md").read_text(encoding="utf-8")
    for name in ("epochs", "batch_size", "learning_rate", "max_length"):
        row = re.search(rf"^\| `{name}` \| (\S+) \| (\S+) \|", text, re.MULTILINE)
        assert row is not None, name
        assert [float(cell) for cell in row.groups()] == [
            float(task_named(task).defaults(model)[name]) for model in ("scratch:small", "some/model")
        ]


def test_the_record_that_the_journals_page_shows_is_one() -> None:
    from mltrack.journal.frame import decode

    shown = re.search(
        r"^[0-9a-f]{8} \w+ \{.*\}$", (ROOT / "docs" / "journal.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert shown is not None
    (frame,) = decode(shown[0].encode() + b"\n")
    assert frame.record["type"] == "resumed"


def test_the_journals_page_describes_every_record() -> None:
    from mltrack.journal import records

    page = (ROOT / "docs" / "journal.md").read_text(encoding="utf-8")
    for name in re.findall(r"^\| (\w+) \| ", records.__doc__ or "", re.MULTILINE)[1:]:
        assert f"| `{name}` |" in page, name


def test_guarantees_name_tests_that_exist() -> None:
    for path, name in re.findall(
        r"`(tests/\w+\.py)(?:::(\w+))?`", (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    ):
        assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8"), (path, name)


if __name__ == "__main__":
    TABLE.write_text(with_table(TABLE.read_text(encoding="utf-8")), encoding="utf-8")
