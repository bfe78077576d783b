"""A run whose newest checkpoint was damaged on the disk goes on from the one before; the damaged one is said, set aside
as it is, and never kept as the best.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import commands
import pytest
import tiny

STEPS = 6
EVERY_TWO = ("--eval-every", "2", "--save-every", "2")


def trained(folder: Path, records: Path, *words: object) -> tuple[dict[str, Any], str]:
    """(response, what stderr says of damage)"""
    given = (
        "train",
        *words,
        "--task",
        "text_classification",
        "--dataset-path",
        records,
        *commands.TINY,
        "--offline",
        "true",
        "--output",
        "json",
    )
    ended = commands.mltrack(*given, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return tiny.last_json_line(ended.stdout), "".join(
        line + "\n" for line in ended.stderr.splitlines() if ": damaged (" in line or "load_latest" in line
    )


@pytest.mark.parametrize("damaged", ["optimizer.safetensors", pytest.param("metadata.json", marks=pytest.mark.long)])
def test_resumed_over_a_damaged_checkpoint(tmp_path: Path, records_file: Any, damaged: str) -> None:
    records = records_file("text_classification")
    first, _ = trained(tmp_path, records, *EVERY_TWO, "--max-steps", STEPS)
    assert (first["best_step"], first["steps_run"]) == (STEPS, STEPS), "the damaged one would be the best"
    run = tmp_path / "mltrack-runs" / Path(first["model_path"]).parent.name
    newest = run / "checkpoints" / f"step-{STEPS:08d}"
    content = bytearray((newest / damaged).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (newest / damaged).write_bytes(content)

    response, said = trained(
        tmp_path, records, "--resume", run.name, "--max-steps", STEPS - 1, "--eval-every", "2", "--save-every", "100"
    )
    assert said.startswith(f"mltrack: {newest}: damaged ({damaged if damaged != 'metadata.json' else ''}")
    assert said.endswith("; the next one is taken\n")
    assert said.count("\n") == 1
    aside = run / "checkpoints" / f"damaged-{newest.name}"
    name = damaged if damaged != "metadata.json" else "damaged-metadata.json"
    assert (aside / name).read_bytes() == content
    assert not newest.exists()
    assert response["best_step"] < STEPS
    assert [one["step"] for one in response["checkpoints"]] == [4, 5]
    held = json.loads((run / "checkpoints" / "step-00000005" / "metadata.json").read_text())
    assert held["step"] == STEPS - 1


@pytest.mark.long
def test_a_run_of_its_own_leaves_the_damaged_one_where_it_is(tmp_path: Path, records_file: Any) -> None:
    records = records_file("text_classification")
    first, _ = trained(tmp_path, records, *EVERY_TWO, "--max-steps", 4)
    run = tmp_path / "mltrack-runs" / Path(first["model_path"]).parent.name
    newest = run / "checkpoints" / "step-00000004"
    (newest / "state.json").write_text("{")
    response, said = trained(tmp_path, records, "--resume", run.name, "--new-run", "true", *EVERY_TWO, "--max-steps", 6)
    assert "state.json: 1 bytes instead of" in said
    assert (newest / "state.json").read_text() == "{"
    assert Path(response["model_path"]).parent != run
