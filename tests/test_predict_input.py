"""What `mltrack predict` reads and prints: a text that is none is named by file and record; what a terminal would obey
is shown instead.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from hf_folders import decoder_folder, encoder_folder

from mltrack.cli import run

BAD: dict[str, tuple[str, bytes, str]] = {
    "bytes that are no UTF-8": (
        "in.txt",
        b"x\n\xff\xfe\n",
        r", record 2: .*UTF-8.*0xff at offset 0.*",
    ),
    "JSON Lines that are no UTF-8": (
        "in.jsonl",
        b'{"code": "x"}\n{"code": "\xff"}\n',
        r", record 2: .*UTF-8.*0xff.*",
    ),
    "JSON that is no UTF-8": ("in.json", b'["x", "\xff"]', r", record 2: .*UTF-8.*0xff.*"),
    "JSON Lines nested deeply": (
        "in.jsonl",
        b'"x"\n' + b"[" * 100_000,
        r", record 2: bad JSON \(nested too deeply\).*",
    ),
    "JSON nested deeply": (
        "in.json",
        b"[" * 100_000,
        r", record 1: bad JSON \(nested too deeply\).*JSON array.*",
    ),
    "half a surrogate pair in JSON Lines": (
        "in.jsonl",
        b'{"code": "x"}\n{"code": "a\\ud800"}\n',
        r", record 2, field 'code': .*\\ud800.* offset 1.*",
    ),
    "half a surrogate pair in JSON": (
        "in.json",
        b'["x", "\\udc00"]',
        r", record 2: .*\\udc00.* offset 0.*",
    ),
    "no JSON": ("in.jsonl", b"{", r", record 1: bad JSON at column 2 .*"),
    "an object, not an array": (
        "in.json",
        b'{\n"code": "x"\n}',
        r": starts with an object; .*JSON array.*\.jsonl.*",
    ),
    "a record without a text": (
        "in.jsonl",
        b'{"id": 7}\n',
        r", record 1: must be .*description, code, text",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_text_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    name, content, said = BAD[what]
    file = tmp_path / name
    file.write_bytes(content)
    assert run(["predict", "--model-uri", "nowhere", "--input-path", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"mltrack: {re.escape(str(file))}{said}", line), line


def test_a_text_of_the_command_line_and_of_standard_input_too(tmp_path: Path) -> None:
    for words, given, said in (
        (("--text", b"a\xff"), b"", "--text: "),
        (("--input-path", "-"), b"\xff", "standard input: is not UTF-8"),
    ):
        command = [sys.executable, "-m", "mltrack", "predict", "--model-uri", "nowhere", *words]
        ended = subprocess.run(
            command, cwd=tmp_path, env=commands.environment(), input=given, capture_output=True, check=False
        )
        assert (ended.returncode, ended.stderr.decode().startswith(f"mltrack: {said}")) == (2, True), ended.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.txt", b"\xef\xbb\xbfeval(x)\r\n\ny = 1\n"),
        ("in.jsonl", b'{"id": 7, "code": "eval(x)"}\n\n"y = 1"\n'),
        ("in.json", b'["eval(x)", {"text": "y = 1"}]'),
        ("lines.json", b'{"code": "eval(x)"}\n{"code": "y = 1"}\n'),
    ],
)
def test_each_text_has_its_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    answers = []
    for words in (("--input-path", str(tmp_path / name)), ("--text", "eval(x)"), ("--text", "y = 1")):
        assert run(["predict", "--model-uri", str(encoder), *words, "--output", "json"]) == 0
        answers.append([answer["scores"] for answer in json.loads(capsys.readouterr().out)])
    assert [one["safe"] for one in answers[0]] == pytest.approx(
        [one["safe"] for one in answers[1] + answers[2]], abs=1e-6
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "model")


def test_a_class_is_one_line_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: Path
) -> None:
    folder = shutil.copytree(encoder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "\x1b[31mA\n", "1": "\x1b[31mB\n"}
    config["label2id"] = {name: int(number) for number, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    assert run(["predict", "--model-uri", str(folder), "--text", "x"]) == 0
    assert re.fullmatch(r"\\x1b\[31m[AB]\\n  0\.\d{4}\n", capsys.readouterr().out)


def test_a_completion_does_not_command_the_terminal(tmp_path: Path) -> None:
    """At this temperature the model writes any byte, until it happens to end."""
    folder = decoder_folder(tmp_path / "model")
    (tmp_path / "in.txt").write_text("x\n" * 16)
    words = [
        "predict",
        "--model-uri",
        str(folder),
        "--input-path",
        "in.txt",
        "--max-new-tokens",
        "60",
        "--temperature",
        "1000",
    ]
    code, text = commands.on_terminal(*words, cwd=tmp_path)
    assert code == 0
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text.replace("\r\n", "\n")), text
    assert "\\x" in text
