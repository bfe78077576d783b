"""What a person sees in a terminal: the table of runs, one run, the summary, curves; ids cut to their beginnings."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import commands
import pytest
from conftest import write_records
from ready_store import ready_store
from tracked_runs import until

from mltrack.cli import run
from mltrack.cli.chart import can_draw_blocks, chart, sparkline
from mltrack.cli.run_table import age, shortened
from mltrack.cli.summary import shown_sample
from mltrack.errors import ConfigurationError
from mltrack.journal import RunDirectory, RunInfo, find_run_directory, records


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """(folder, response, what was printed) of a training in a terminal of its own."""
    folder = tmp_path_factory.mktemp("terminal")
    ready_store(folder)
    words = commands.training(write_records(folder / "records.jsonl", count=48), "--max-steps", 6, "--eval-every", 2)
    finished = commands.mltrack(*words, "--seed", "3", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    (row,) = json.loads(commands.mltrack("runs", "--output", "json", cwd=folder).stdout)
    return folder, row, finished.stdout


def test_the_table_of_runs(trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, row, _ = trained
    monkeypatch.chdir(folder)
    assert run(["runs"]) == 0
    head, line = capsys.readouterr().out.splitlines()[:2]
    assert head.split() == ["run", "task", "model", "state", "steps", "best", "age", "delivery"]
    assert line.split()[:4] == [row["run"][:8], "text_classification", "scratch:tiny", "FINISHED"]
    assert re.search(r"eval_loss 0\.\d{4}", line)
    assert row["model"] == "scratch:tiny"
    assert row["best"] in line


def test_watching_without_a_terminal_shows_the_table_once(trained, capsys, monkeypatch) -> None:
    folder, row, _ = trained
    monkeypatch.chdir(folder)
    assert run(["runs", "--watch"]) == 0
    assert capsys.readouterr().out.count(row["run"][:8]) == 1


@pytest.mark.long
def test_watching_in_a_terminal_goes_on_until_ctrl_c(trained) -> None:
    folder, row, _ = trained
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "mltrack", "runs", "--watch"]
    process = subprocess.Popen(words, cwd=folder, env=commands.environment(TERM="xterm"), stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while shown.count(row["run"][:8].encode()) < 2:
        shown += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    os.close(ours)


def test_one_run_by_the_beginning_of_its_id(trained, capsys, monkeypatch) -> None:
    folder, row, _ = trained
    monkeypatch.chdir(folder)
    assert run(["runs", "show", row["run"][:6]]) == 0
    shown = capsys.readouterr().out
    for part in (
        f"run         {row['run']} in ",
        f"best        {row['best']} at step ",
        "data        ",
        "options     ",
        "seed=3",
        "checkpoint  step ",
        "train_loss, steps 1 to ",
        "eval_loss, steps 2 to ",
    ):
        assert part in shown, part
    assert run(["runs", "show", row["run"][:6], "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["model"] == "scratch:tiny"
    assert run(["runs", "show", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_run_of_ones_own_loop_is_shown_as_far_as_it_is_known(tmp_path, capsys) -> None:
    from mltrack.journal import JournalWriter

    directory = RunDirectory(tmp_path / "runs" / "abcdef")
    writer = JournalWriter(directory.journal)
    writer.append(records.metrics(1, {"train_loss": 0.5}, {}, epoch=0))
    writer.append(records.end("FINISHED", 0))
    writer.close()
    directory.write_run(RunInfo(local_id="abcdef", created_ms=1))
    assert run(["runs", "show", "abcd", "--output-dir", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "FINISHED, 1 steps" in shown
    assert "train_loss, steps 1 to 1, last 0.5000" in shown


def test_an_id_may_be_cut_as_long_as_it_is_one_runs(tmp_path: Path) -> None:
    for name in ("aaaa1", "aaaa2", "bbbb1"):
        RunDirectory(tmp_path / name).path.mkdir()
        RunDirectory(tmp_path / name).write_run(RunInfo(local_id=name, run_id=f"{name}-in-mlflow"))
    found = find_run_directory(tmp_path, "bbbb")
    assert found is not None
    assert found.path.name == "bbbb1"
    assert find_run_directory(tmp_path, "bbb") is None, "too short to be meant"
    with pytest.raises(ConfigurationError, match=r"2 runs begin with 'aaaa'.*aaaa2-in-mlflow, aaaa1-in-mlflow"):
        find_run_directory(tmp_path, "aaaa")
    exact = find_run_directory(tmp_path, "aaaa1")
    assert exact is not None
    assert exact.path.name == "aaaa1"


def test_ids_are_cut_where_they_differ() -> None:
    assert shortened(["0123456789", "0123456780", "abcdefghij"]) == ["0123456789", "0123456780", "abcdefgh"]
    assert shortened(["0123456789"]) == ["01234567"]


@pytest.mark.parametrize(("seconds", "expected"), [(5, "5 s"), (200, "3 min"), (7300, "2 h"), (4 * 86400 + 9, "4 d")])
def test_the_age_of_a_run(seconds: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert age(int((1e9 - seconds) * 1000)) == expected
    assert age(0) == ""


def test_curves() -> None:
    assert sparkline([0, 1, 2, 3], 4) == "▁▃▆█"
    assert sparkline([3, 1], 10, blocks=False) == "#."
    assert sparkline([], 10) == ""
    assert sparkline([math.nan, math.inf], 10) == ""
    assert len(sparkline(range(1000), 30)) == 30
    high, low = chart([1.0, 1.0, 5.0, 5.0], 4, 2)
    assert high.startswith("        5 ")
    assert low.startswith("        1 ")
    assert high.rstrip()[-1] == "█"
    assert chart([], 10, 2) == []
    assert can_draw_blocks("utf-8")
    assert not can_draw_blocks("ascii")
    assert not can_draw_blocks(None)


def test_a_sample_is_short_and_says_once_what_it_repeats() -> None:
    assert shown_sample("def" * 40) == ["def [x40]"]
    assert shown_sample("a = 1\n" * 5 + "b = 2") == ["a = 1  [x5]", "b = 2"]
    lines = shown_sample("\n".join(f"line {chr(97 + n)}" for n in range(20)))
    assert len(lines) == 8
    assert lines[-1] == "[13 more lines]"
    assert max(map(len, shown_sample("".join(map(str, range(500)))))) <= 110


@pytest.mark.parametrize(
    ("columns", "extra", "present", "absent"),
    [
        (110, {}, ["best eval_loss", "MLflow has", "▁"], []),
        pytest.param(50, {}, ["loss 0."], ["MLflow has"], marks=pytest.mark.long),
        pytest.param(110, {"NO_COLOR": "1"}, ["MLflow has"], ["\x1b[3", "\x1b[9"], marks=pytest.mark.long),
        pytest.param(110, {"PYTHONIOENCODING": "ascii"}, ["MLflow has", ".."], ["▁", "━"], marks=pytest.mark.long),
    ],
    ids=["wide", "narrow", "no color", "ascii"],
)
def test_the_live_view(
    tmp_path: Path, columns: int, extra: dict[str, str], present: list[str], absent: list[str]
) -> None:
    file = write_records(tmp_path / "records.jsonl", count=48)
    words = commands.training(file, "--epochs", 12, "--eval-every", 5, "--register", "never")
    ready_store(tmp_path)
    code, text = commands.on_terminal(*words, cwd=tmp_path, columns=columns, TERM="xterm-256color", **extra)
    assert code == 0, text[-2000:]
    assert re.search(r"step \d+/72  epoch \d+", text), text[-2000:]
    assert [part for part in present if part not in text] == []
    assert [part for part in absent if part in text] == []


def test_output_piped_into_head_ends_well(trained) -> None:
    folder, _, _ = trained
    words = f"{sys.executable} -m mltrack config show | head -1; exit ${{PIPESTATUS[0]}}"
    finished = subprocess.run(["bash", "-c", words], cwd=folder, env=commands.environment(), capture_output=True)
    assert finished.returncode == 0
    assert finished.stderr == b""


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ui_serves_the_run_until_it_is_ended(trained, number: signal.Signals) -> None:
    folder, row, _ = trained
    process = subprocess.Popen(
        [sys.executable, "-m", "mltrack", "ui", "--no-open"],
        cwd=folder,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.endswith(f"/runs/{row['run']}")
        base = address.partition("/#/")[0]
        with urllib.request.urlopen(f"{base}/ajax-api/2.0/mlflow/runs/get?run_id={row['run']}", timeout=30) as answer:
            assert json.load(answer)["run"]["info"]["status"] == "FINISHED"
    finally:
        process.send_signal(number)
    assert process.wait(timeout=60) == 0
    until(lambda: not is_served(base), "the end of MLflow's server")


def is_served(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{address}/health", timeout=5).status)
    except OSError:
        return False


def test_resume_takes_options_without_a_run(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["--max-steps", "60"], ["--max-steps=60"], ["latest", "--max-steps", "60"], []):
        assert run(["resume", *words]) == 2
        assert "resume=latest: no run in" in capsys.readouterr().err


def test_ui_without_a_database_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run(["ui"]) == 2
    assert "mlflow.db" in capsys.readouterr().err


def test_the_summary_is_one_screen_with_a_verdict_and_three_commands_that_work(trained) -> None:
    folder, row, printed = trained
    lines = printed.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 200
    assert any(
        re.match(r" +(better than every baseline|no better than [\w ]+): eval_macro_f1 0\.\d{4} \(", line)
        for line in lines
    )
    said = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line and not line.startswith(" ")}
    assert said["look"].endswith("mltrack ui")
    assert said["continue"].endswith(f"mltrack resume {row['run']} --max-steps 12")
    assert "--tracking-uri" not in said["load"], "the store of this folder is the default"
    for name in ("load", "continue"):
        finished = subprocess.run(said[name], shell=True, cwd=folder, env=commands.environment(), capture_output=True)
        assert finished.returncode == 0, finished.stderr
