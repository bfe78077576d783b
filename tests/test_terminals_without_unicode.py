"""What a terminal's encoding does not have is shown escaped by every command; what a font does not have is no line of
mltrack's.
"""

from __future__ import annotations

import codecs
import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import commands
import hf_folders
import pytest

from mltrack.cli import run
from mltrack.evaluation.figures import confusion_matrix_figure, learning_curves_figure, token_lengths_figure

SAFE, UNSAFE = "безопасно", "危险"
ESCAPED = UNSAFE.encode("ascii", "backslashreplace").decode()

Out = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Out:
    """on(encoding, *words) -> (exit code, bytes of stdout, stderr) of a command in this process."""

    def command(encoding: str, *words: object, errors: str = "strict") -> tuple[int, bytes, str]:
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors=errors))
        code = run([str(word) for word in words])
        sys.stdout.flush()
        return code, raw.getvalue(), capsys.readouterr().err

    return command


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("данные") / "записи.jsonl"
    rows = [{"code": f"# ключ\ndef f{i}(x):\n    return x + {i}\n", "label": (SAFE, UNSAFE)[i % 2]} for i in range(24)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = hf_folders.encoder_folder(tmp_path_factory.mktemp("model") / "модель")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": {"0": UNSAFE + "0", "1": UNSAFE}, "label2id": {UNSAFE + "0": 0, UNSAFE: 1}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


ENCODINGS = ("ascii", "cp1252")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_data_set_is_shown(on: Out, records: Path, encoding: str, errors: str) -> None:
    for words in (("data", "inspect", records), ("data", "check", records)):
        code, out, err = on(encoding, *words, errors=errors)
        assert code in (0, 1)
        assert err == ""
        assert ESCAPED in out.decode(encoding)
        assert records.name.encode(encoding, "backslashreplace") in out


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_answer_is_shown(on: Out, model: Path, encoding: str) -> None:
    code, out, err = on(encoding, "predict", "--model-uri", model, "--text", "x = 'ключ'")
    assert (code, err) == (0, "")
    assert out.decode(encoding).startswith(ESCAPED)


def test_what_the_encoding_has_stays_as_it_is(on: Out, records: Path, model: Path) -> None:
    _, out, _ = on("utf-8", "predict", "--model-uri", model, "--text", "x")
    assert out.decode().startswith(UNSAFE)
    _, out, _ = on("koi8-r", "data", "inspect", records)
    assert SAFE in out.decode("koi8-r")
    _, out, _ = on("ascii", "data", "inspect", records, errors="replace")
    assert ESCAPED.encode() not in out, "the user's own choice of errors counts"


def test_runs_and_a_missing_model_are_shown(on: Out, tmp_path: Path) -> None:
    code, out, err = on(
        "ascii", "runs", "--output-dir", tmp_path / "прогоны", "--tracking-uri", f"sqlite:///{tmp_path}/нет.db"
    )
    assert (code, err) == (0, "")
    assert "прогоны".encode("ascii", "backslashreplace") in out
    for words in (
        ("models", "show", "модель"),
        ("predict", "--model-uri", "модель", "--text", "x"),
        ("sync", "прогон"),
        ("train", "--task", "код"),
    ):
        code, out, err = on("ascii", *words, "--tracking-uri", f"sqlite:///{tmp_path}/нет.db")
        assert code in (1, 2)
        assert out == b""
        assert len(err.splitlines()) == 1


def test_a_path_that_is_not_utf8_is_printed_as_the_file_system_has_it(on: Out, tmp_path: Path) -> None:
    folder = f"{tmp_path}/" + codecs.decode(b"\xff\xfe", "utf-8", "surrogateescape")
    for encoding in ("utf-8", "ascii"):
        code, out, _ = on(encoding, "runs", "--output-dir", folder, "--tracking-uri", f"sqlite:///{tmp_path}/none.db")
        assert code == 0
        assert b"/\xff\xfe\n" in out


def test_half_a_character_that_is_no_byte_is_escaped(on: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    on("utf-8", "--help")
    print("\ud800x")
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().endswith(b"\\ud800x\n")  # type: ignore[attr-defined]


def test_a_text_that_the_locale_left_undecoded_is_read_as_utf8(on: Out, model: Path) -> None:
    answers = [
        on("ascii", "predict", "--model-uri", model, "--output", "json", "--text", text)[1]
        for text in ("x = 'ключ'", "x = 'ключ'".encode().decode("ascii", "surrogateescape"))
    ]
    assert answers[0] == answers[1]
    assert json.loads(answers[0])[0]["label"].startswith(UNSAFE)


NAMES = ["безопасно", "危险", "🙂", "a\x00b", "\ud800", "$x_{", r"\frac $1", "x\ny", "क्षि", "‮rtl"]


def test_pictures_of_names_without_glyphs_are_drawn_in_silence(tmp_path: Path) -> None:
    history = {name: [(1, 0.5), (2, 0.25)] for name in NAMES}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert confusion_matrix_figure([[1] * len(NAMES) for _ in NAMES], NAMES, tmp_path / "matrix.png") is not None
        for start in range(0, len(NAMES), 5):
            some = dict(list(history.items())[start : start + 5])
            assert learning_curves_figure(some, tmp_path / "curves.png").stat().st_size
        assert token_lengths_figure({name: [1, 2, 3] for name in NAMES[:5]}, 2, tmp_path / "lengths.png").stat().st_size


NO_UNICODE = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, NO_UNICODE], ids=["PYTHONIOENCODING=ascii", "LANG=C"]
)
def test_a_process_without_unicode_shows_what_it_cannot_encode(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "папка"
    folder.mkdir()
    finished = commands.mltrack("runs", "--tracking-uri", f"sqlite:///{tmp_path}/none.db", cwd=folder, **environment)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("no runs in ")


@pytest.mark.long
def test_every_command_of_a_training_ends_well(here: Path, records: Path, on: Out) -> None:
    data = here / "records.jsonl"
    data.write_bytes(records.read_bytes())
    sizes = ("--model-name", "scratch:tiny", "--max-steps", "2", "--batch-size", "4", "--max-length", "64")
    words = ("train", "--task", "text_classification", "--dataset-path", data, *sizes, "--validation-split", "0.25")
    finished = commands.mltrack(*words, cwd=here, **NO_UNICODE)
    assert finished.returncode == 0, finished.stderr
    assert "Glyph" not in finished.stderr + finished.stdout
    assert "warning" not in finished.stderr + finished.stdout
    (name,) = [path.name for path in (here / "mltrack-runs").iterdir() if path.is_dir() and not path.is_symlink()]
    model = "mltrack-text_classification"
    for words in (
        ("predict", "--model-uri", f"models:/{model}@champion", "--text", "ключ"),
        ("models", "show", model),
        ("models", "list"),
        ("runs",),
        ("data", "show", name),
        ("evaluate", "--model-uri", f"models:/{model}@champion", "--dataset-path", data),
        ("doctor",),
        ("cache", "list"),
    ):
        code, out, err = on("ascii", *words)
        assert "Error" not in err, (words, err)
        assert code in (0, 1), words
        assert out.isascii(), words
        assert out, words
