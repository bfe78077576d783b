"""What is wrong with data is said before anything is trained on it, with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import commands
import pytest
from planted_copies import function, recommented, renamed, with_other_literals

from mltrack import TrainModelRequest, TrainModelUseCase
from mltrack.cli import run
from mltrack.errors import ConfigurationError, DatasetError
from mltrack.journal import read_journal
from mltrack.records.check import THRESHOLDS, check_data
from mltrack.records.record import Record


def records(texts: list[str], labels: str, file: str = "train.jsonl", **extra: list[object]) -> list[Record]:
    rows = zip(texts, labels, range(1, len(texts) + 1), strict=True)
    return [
        Record(text, label, None, file, n, {name: values[n - 1] for name, values in extra.items()})
        for text, label, n in rows
    ]


def written(path: Path, made: list[Record]) -> Path:
    path.write_text(
        "".join(json.dumps({"code": r.text, "label": r.label, **r.extra}) + "\n" for r in made), encoding="utf-8"
    )
    return path


def clean(first: int, count: int, file: str) -> list[Record]:
    return records([function(n) for n in range(first, first + count)], "ab" * (count // 2), file)


def test_nothing_is_found_in_good_data() -> None:
    report = check_data(clean(0, 20, "train.jsonl"), clean(100, 10, "valid.jsonl"))
    assert report.findings == []
    assert (report.train.records, report.train.distinct, report.train.python, report.train.unparsable) == (
        20,
        20,
        20,
        0,
    )
    assert report.train.classes == {"a": 10, "b": 10}
    assert report.train.characters["min"] <= report.train.characters["p50"] <= report.train.characters["max"]
    assert set(report.shares()) == set(THRESHOLDS)


def test_overlap_is_counted_and_named() -> None:
    train = clean(0, 20, "train.jsonl")
    valid = records(
        [function(3), renamed(function(4)), with_other_literals(function(5)), function(200)], "bbab", "valid.jsonl"
    )
    report = check_data(train, valid)
    assert (report.exact_overlap, report.near_overlap) == (1, 2)
    lines = {finding.name: finding.line for finding in report.findings}
    assert lines["exact_overlap"].startswith("exact_overlap: 25.0% ")
    assert " 0.0%" in lines["exact_overlap"]
    assert lines["exact_overlap"].endswith(": valid.jsonl: record 1 ~ train.jsonl: record 4")
    assert (
        "valid.jsonl: record 2 ~ train.jsonl: record 5; valid.jsonl: record 3 ~ train.jsonl: record 6"
        in lines["near_overlap"]
    )
    assert report.shares()["near_overlap"] == 0.5


def test_groups_that_are_on_both_sides() -> None:
    train = records([function(n) for n in range(4)], "abab", g=[1, 1, 2, None])
    valid = records([function(n) for n in range(10, 14)], "abab", "valid.jsonl", g=[2, 2, 3, None])
    assert check_data(train, valid).group_overlap == 0
    report = check_data(train, valid, group="g")
    assert (report.group_overlap, [finding.name for finding in report.findings]) == (2, ["group_overlap"])
    with pytest.raises(DatasetError, match=r"group: .*'h'.* use g$"):
        check_data(train, group="h")


def test_the_same_code_with_two_labels() -> None:
    code = function(1)
    train = records([code, recommented(code), renamed(code), with_other_literals(code), function(2)], "abbab")
    report = check_data(train)
    assert report.train.label_conflicts == 3  # with other literals it is other code
    assert report.train.examples["label_conflicts"] == [
        "train.jsonl: record 1 is a",
        "train.jsonl: record 2 is b",
        "train.jsonl: record 3 is b",
    ]
    assert "label_conflicts" in [finding.name for finding in report.findings]


def test_the_same_code_with_another_label_in_validation() -> None:
    code, other = function(1), function(2)
    train, valid = (
        records([code, other], "ab"),
        records([recommented(code), with_other_literals(code), other], "bba", file="valid.jsonl"),
    )
    report = check_data(train, valid)
    assert (report.train.label_conflicts, report.valid.label_conflicts, report.conflicting_overlap) == (0, 0, 2)
    assert report.shares()["label_conflicts"] == pytest.approx(2 / 3)
    (finding,) = [finding for finding in report.findings if finding.name == "label_conflicts"]
    assert (
        "valid.jsonl: record 1 ~ train.jsonl: record 1; valid.jsonl: record 3 ~ train.jsonl: record 2" in finding.line
    )
    assert check_data(train, records([recommented(code)], "a", file="valid.jsonl")).conflicting_overlap == 0


def test_copies_inside_a_set() -> None:
    train = records([function(1), function(1), renamed(function(1)), function(2), function(3)], "aaabb")
    report = check_data(train).train
    assert (report.distinct, report.exact_duplicates, report.near_duplicates, report.largest_group) == (4, 1, 1, 3)


def test_imbalance() -> None:
    train = records([function(n) for n in range(12)], "a" * 11 + "b")
    (finding,) = check_data(train, thresholds={"imbalance": 10}).findings
    assert finding.line.startswith("imbalance: 'a' has 11.0 times the records of 'b' ")
    assert " 10)" in finding.line
    assert "class_weights=balanced" in finding.line


@pytest.mark.parametrize(
    ("code", "parses"),
    [
        ("    def f(self):\n        return 1", True),
        ("def f(:\n    pass", False),
        ("print 'two'\nfor a in b:\n    pass", False),
        ("x = '\\d'\n", True),  # a warning is no error
        ("def f():\n    return " + "(" * 500 + ")" * 500, False),
        ("int f() {\n    return 1;\n}", True),  # no Python, so not asked
    ],
)
def test_python_that_does_not_parse(code: str, parses: bool) -> None:
    assert (check_data(records([code], "a")).train.unparsable == 0) is parses


PYTHON_2 = "def f(x):\n    try:\n        print 'x', x\n    except ValueError, e:\n        raise TypeError, 'no'\n"
LANGUAGES = {
    "Ruby": "def greet(name)\n  puts \"Hello #{name}\"\n  if name == 'x'\n    return 1\n  end\nend\n",
    "Ruby with keywords": (
        "class Point < Struct.new(:x)\n  def initialize(name:, age: 0)\n    @name = name\n  end\nend\n"
    ),
    "SQL": "SELECT name, count(*) FROM users WHERE age > 3 GROUP BY name\n",
    "SQL, a procedure": (
        "CREATE FUNCTION f() RETURNS int AS $$\nBEGIN\n  IF x > 1 THEN\n    RETURN 1;\n  END IF;\nEND\n"
    ),
    "Lua": "local function f(x)\n  if x > 1 then\n    print(x)\n  else\n    return nil\n  end\nend\n",
    "Haskell": "module Main where\nimport Data.List\n\nfact :: Int -> Int\nfact 0 = 1\nfact n = n * fact (n - 1)\n",
    "Haskell, a function alone": "quicksort (p:xs) = quicksort lesser ++ [p]\n  where\n    lesser = filter (< p) xs\n",
    "shell": "for f in *.txt; do\n  echo $f\ndone\nif [ -z $x ]; then\n  exit 1\nfi\n",
    "shell, commands": "cd build && cmake ..\nmake -j4 | tee log.txt\n",
    "PHP": "<?php\nfunction f($x) {\n  return $x + 1;\n}\n",
    "PHP's other blocks": "<?php\nif ($x > 1):\n    echo $x;\nelse:\n    echo 2;\nendif;\n",
    "Perl": 'my $x = shift;\nforeach my $y (@list) {\n  print "$y\\n";\n}\n',
    "Rust": 'fn main() {\n    let x = 5;\n    match x { 1 => println!("one"), _ => () }\n}\n',
    "Kotlin": "fun add(a: Int, b: Int): Int = a + b\n\nval x = add(1, 2)\n",
    "Scala": "def add(a: Int, b: Int): Int =\n  a + b\n\nval x = add(1, 2)\n",
    "Go": "func add(a int, b int) int {\n\treturn a + b\n}\n",
    "JavaScript": "const f = (x) => x + 1\nexport default f\n",
    "Elixir": "defmodule M do\n  def f(x) do\n    x + 1\n  end\nend\n",
    "R": "f <- function(x) {\n  x + 1\n}\n",
    "Julia": "function f(x)\n  for i in 1:3\n    println(i)\n  end\nend\n",
    "Nim": "proc f(x: int): int =\n  if x > 1:\n    return 2\n  else:\n    return 1\n",
    "YAML": "services:\n  web:\n    image: nginx\n    ports:\n      - 80:80\n",
    "prose": "This function returns the sum of two numbers.\nIt is used for example:\n  in the tests, if you want to\n",
    "Nim, a loop": "for i in 0..3:\n  echo i\n",
    "Nim, modules": "from strutils import split\nfor x in items:\n  echo x\n",
    "Nim, a branch": "for x in items:\n  if x > 3:\n    echo x\n  else:\n    discard\n",
    "GDScript": "if not is_on_floor() && !jumping:\n\tvelocity.y += 1\n",
    "GDScript, annotated": "@onready var a = 1\nif a:\n\tpass\n",
    "Scala 3": "class A(x: Int):\n  def g(y: Int): Int =\n    y + 1\n",
    "assembly": "else:\n    mov eax, 1\n",
    "YAML, finally": "finally:\n    - name: b c\n",
    "make": "try:\n\tgcc -o a a.c\n",
    "Cython": "cdef class A:\n    cdef int x\n    def f(self):\n        return self.x\n",
    "Cython, a function": "def f(int x):\n    cdef int i\n    for i in range(x):\n        print(i)\n",
    "Ren'Py": 'label start:\n    e "Hello"\n    if points > 3:\n        jump good\n',
    "Boo": "def f(x as int):\n    return x\n",
    "Boo, a cast": "def f(x):\n    return x as int\n",
    "prose with blocks": (
        "if you want to try this:\n   read the manual first\nfor people in great need:\n   call somebody\n"
    ),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_other_languages_are_not_judged_by_the_parser_of_python(language: str) -> None:
    assert check_data(records([LANGUAGES[language]], "a")).train.unparsable == 0


@pytest.mark.parametrize(
    "code",
    [
        PYTHON_2,
        "print 'x'\nfor a in b:\n    pass\n",
        "def f(x)\n    return x\n",
        "def f(x):\n    return x +\n",
        "if x = 1:\n    pass\n",
        "class A(B):\n    def f(self) return 1\n",
        "from os import path\nx = = 1\n",
        "while not done:\n    x = {\n        'a': 1\n",
        "try:\n    f()\nexcept E as e\n    pass\n",
        "def f(x):\n    y = g(x\n    return y\n",
        "def f(x):\n    for a in x:\n        if a\n",
        'def f(x):\n    """Cut off in its docst',
        "import os\n\nclass A:\n    def f(self):\n        print >>out, 'x'\n        self.x = [1, 2\n        return self.x\n",
        "def f(x):\n    return [\n        g(a)\n        for a in x\n",
        PYTHON_2 * 40 + "x = 0777\n",
    ],
)
def test_broken_python_is_told_by_what_parses_of_it(code: str) -> None:
    assert check_data(records([code], "a")).train.unparsable == 1


@pytest.mark.parametrize(
    ("extra", "code", "unparsable"),
    [
        ({"language": "Ruby"}, "def f(:\n    pass", 0),
        ({"lang": "python3"}, "puts 'x' if y", 1),
        ({"Language": "Python 2"}, PYTHON_2, 1),
        ({"path": "lib/a.rb"}, "def f(:\n    pass", 0),
        ({"file_name": "a.py"}, "SELECT a FROM b", 1),
        ({"path": "lib/Makefile"}, "def f(:\n    pass", 1),
        ({"language": None, "path": "a.py"}, "SELECT a FROM b", 1),
    ],
    ids=str,
)
def test_a_records_own_columns_say_its_language(extra: dict[str, object], code: str, unparsable: int) -> None:
    assert check_data([Record(code, "a", None, "a.jsonl", 1, extra)]).train.unparsable == unparsable


def test_unknown_threshold_and_no_records() -> None:
    with pytest.raises(ConfigurationError, match=r"threshold 'near'.*exact_overlap, near_overlap,"):
        check_data(clean(0, 2, "a"), thresholds={"near": 1})
    with pytest.raises(DatasetError, match="no training records"):
        check_data([])


def test_the_command(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", clean(0, 20, "t"))
    good = written(tmp_path / "good.jsonl", clean(100, 10, "v"))
    leaking = written(
        tmp_path / "leaking.jsonl", records([renamed(function(2)), *(function(n) for n in range(50, 59))], "ababababab")
    )
    done = commands.mltrack("data", "check", train, good, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("nothing is above its threshold\n")
    done = commands.mltrack("data", "check", train, leaking, "--output", "json", cwd=tmp_path)
    assert done.returncode == 1
    assert [(finding["name"], finding["value"]) for finding in json.loads(done.stdout)["findings"]] == [
        ("near_overlap", 0.1)
    ]
    assert (
        commands.mltrack("data", "check", train, leaking, "--thresholds", "near_overlap=0.2", cwd=tmp_path).returncode
        == 0
    )


def test_what_is_left_out_is_told_and_written(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", clean(0, 20, "t"))
    valid = written(tmp_path / "valid.jsonl", clean(100, 10, "v"))
    with train.open("a", encoding="utf-8") as stream:
        stream.write("not json\n" + '{"code": " ", "label": "a"}\n' * 29)
    done = commands.mltrack("data", "check", train, valid, "--on-bad-record", "skip", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert ["skipped", "30", "0"] in [line.split() for line in lines]
    (first,) = [line for line in lines if f"{train}, record 21: " in line]
    assert first.startswith("skipped: ")
    assert "column 1 (Expecting value)" in first
    assert [line for line in lines if "10 further records" in line and str(train) in line]
    assert lines[-2] == "nothing is above its threshold"
    assert re.search("skipped .*30 .*training.*bad_records-training.jsonl", lines[-1])
    bad = [
        json.loads(line) for line in (tmp_path / "bad_records-training.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert ([one["record"] for one in bad], bad[0]["raw"]) == (list(range(21, 51)), "not json\n")
    assert not (tmp_path / "bad_records-evaluation.jsonl").exists()
    done = commands.mltrack("data", "check", train, valid, "--on-bad-record", "skip", "--output", "json", cwd=tmp_path)
    assert json.loads(done.stdout)["left_out"] == {
        "training": {"records": 30, "file": "bad_records-training.jsonl"},
        "evaluation": {"records": 0, "file": None},
    }


def test_what_is_left_out_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = written(tmp_path / "train.jsonl", clean(0, 20, "t"))
    with train.open("a", encoding="utf-8") as stream:
        stream.write("not json\n")
    (tmp_path / "bad_records-training.jsonl").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(["data", "check", str(train), "--on-bad-record", "skip"]) == 2
    assert capsys.readouterr().err == "mltrack: bad_records-training.jsonl: cannot be written: Is a directory\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--thresholds", "overlap=1"), "mltrack: thresholds: .*'overlap' in 'overlap=1'.*exact_overlap,"),
        (("--thresholds", "near_overlap=x"), "mltrack: thresholds: near_overlap must be .*>= 0, not 'x'"),
        (("--group", "commit"), "group: .*'commit'"),
        (("--task", "code_generation"), "record 1, field 'description': .*missing"),
    ],
)
def test_bad_options_of_the_command(
    words: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = written(tmp_path / "train.jsonl", clean(0, 20, "t"))
    assert run(["data", "check", str(train), *words]) == 2
    said = capsys.readouterr().err
    assert re.search(line, said)
    assert said.count("\n") == 1


def test_training_warns_of_overlap_moves_nothing_and_logs_the_report(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", clean(0, 20, "t"))
    valid = written(
        tmp_path / "valid.jsonl", records([renamed(function(2)), *(function(n) for n in range(50, 59))], "ababababab")
    )
    said: list[str] = []
    request = TrainModelRequest(
        dataset_path=str(train),
        validation_path=str(valid),
        task="text_classification",
        model_name="scratch:tiny",
        max_length=64,
        max_steps=1,
        batch_size=4,
        device="cpu",
        offline=True,
        output_dir=str(tmp_path / "runs"),
    )
    response = TrainModelUseCase(notice=said.append).execute(request)
    assert response.success, response.errors
    assert any(
        line.startswith("near_overlap: 10.0% validation records with a near-duplicate in training") for line in said
    )
    assert "data: 20 training and 10 evaluation records" in "\n".join(said)
    assert response.metrics_file is not None
    folder = Path(response.metrics_file).parent
    report = json.loads((folder / "data_check.json").read_text(encoding="utf-8"))
    assert (report["near_overlap"], report["train"]["records"], report["valid"]["records"]) == (1, 20, 10)
    journal = list(read_journal(folder / "journal"))
    assert json.loads((folder / "data.json").read_text(encoding="utf-8"))["near_overlap"] == 0.1
    assert "data_check.json" in json.dumps([record for record in journal if record["type"] == "artifact"])
    assert "near_overlap" in json.dumps([record for record in journal if record["type"] == "tags"])


def test_the_syntax_of_many_records_is_kept_and_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start reads what the first one found; other records, and records that moved, are looked at anew."""
    monkeypatch.setenv("MLTRACK_CACHE_DIR", str(tmp_path))
    texts = [function(n) for n in range(1_100)]
    texts[700] = "def f(:\n    return 1\n"

    def found() -> tuple[int, int, list[str], int]:
        train = check_data(records(texts, "ab" * 550)).train
        return (
            train.python,
            train.unparsable,
            train.examples["unparsable"],
            len(list(tmp_path.glob("syntax-*.jsonl.gz"))),
        )

    first = found()
    assert first == (1_100, 1, ["train.jsonl: record 701: line 1: invalid syntax"], 1)
    (kept,) = tmp_path.glob("syntax-*.jsonl.gz")
    kept.touch()
    written_at = kept.stat().st_mtime_ns
    assert found() == first
    assert kept.stat().st_mtime_ns == written_at
    texts[3] = "class Half(\n    def f(self): pass\n"
    assert found()[1::2] == (2, 2)
    texts[700], texts[701] = texts[701], texts[700]
    assert found()[2][-1].startswith("train.jsonl: record 702: ")
