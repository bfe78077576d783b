"""A training whose disk has no room for another checkpoint stops, or goes on without, as the user chose; what was
complete stays complete.
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
import tiny

from mltrack import CheckpointManager

MOUNTED = 'mount -t tmpfs -o size=9m none "$0" && cd "$0" && "$@"; code=$?; cp -r mltrack-runs "$0-copy"; exit $code'
"""Room for three or four checkpoints of 1.9 MB, and for the journal; the file system is gone with the process, so what
it held is copied.
"""
MODEL = ("--model-name", "scratch:tiny", "--max-length", "64", "--batch-size", "8")


def learnable(folder: Path) -> tuple[Path, Path]:
    """Records on which each evaluation is better than the one before, and some to evaluate on."""
    bodies = ["eval(x)" if number % 2 else f"x + {number}" for number in range(50)]
    lines = [
        json.dumps({"code": f"def f{n}(x):\n    return {body}\n", "label": "unsafe" if n % 2 else "safe"}) + "\n"
        for n, body in enumerate(bodies)
    ]
    for name, part in (("train.jsonl", lines[:40]), ("other.jsonl", lines[40:])):
        (folder / name).write_text("".join(part), encoding="utf-8")
    return folder / "train.jsonl", folder / "other.jsonl"


@pytest.mark.parametrize(("choice", "code"), [("stop", 1), ("continue", 0)])
def test_no_room_for_another_checkpoint(tmp_path: Path, choice: str, code: int) -> None:
    disk, (records, other) = tmp_path / "disk", learnable(tmp_path)
    disk.mkdir()
    in_small_disk = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            [*in_small_disk, "mount -t tmpfs none $0", str(disk)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no mount namespace for this user")
    options = (
        "--max-steps",
        20,
        "--epochs",
        9,
        "--save-every",
        2,
        "--eval-every",
        2,
        "--max-checkpoints",
        50,
        "--offline",
        "true",
        "--output",
        "json",
    )
    train = (
        sys.executable,
        "-m",
        "mltrack",
        "train",
        "--task",
        "text_classification",
        "--dataset-path",
        records,
        "--validation-path",
        other,
        *MODEL,
        *options,
    )
    ended = commands.run(*in_small_disk, MOUNTED, disk, *train, "--on-disk-full", choice, cwd=tmp_path)
    assert ended.returncode == code, ended.stderr
    said = [line for line in ended.stderr.splitlines() if ": not written: " in line]
    assert re.search(
        r"step-000000\d\d: not written: [\d,]{9} bytes are needed, [\d,]+ are free there; earlier checkpoints are"
        r" intact",
        said[0],
    )
    assert "Traceback" not in ended.stderr
    response = tiny.last_json_line(ended.stdout)
    (run,) = (tmp_path / "disk-copy").iterdir()
    manager = CheckpointManager(run / "checkpoints", run_id=run.name, on_change=lambda *_: None, read_only=True)
    held = manager.list_checkpoints()
    assert len(held) >= 2
    assert [manager.load_checkpoint(one)["step"] for one in held] == [one.step for one in held]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [one.path.name for one in held]
    if choice == "stop":
        assert (response["status"], len(said)) == ("FAILED", 1)
        return
    assert (response["status"], response["steps_run"]) == ("FINISHED", 20)
    assert all(line.endswith("going on without this checkpoint, as on_disk_full=continue says") for line in said)
    best = manager.get_best_checkpoint_info()
    assert best is not None
    assert best.step < response["best_step"]
    assert (
        f"model: the weights are those of step {best.step}, the best available checkpoint; the best evaluation was"
        " at step" in ended.stderr
    )
