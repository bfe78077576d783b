"""A trainer that is killed at any instant of saving leaves its earlier checkpoints, each of them whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MOTHER = Path(__file__).with_name("killed_savers.py")


@pytest.mark.parametrize(("moments", "count"), [("events", 14), pytest.param("instants", 30, marks=pytest.mark.long)])
def test_killed_at_any_moment_the_newest_complete_checkpoint_is_whole(tmp_path, moments, count):
    """Real processes, forked after the imports, saving behind their training; `killed_savers.py` kills them and looks
    at what they left.
    """
    ended = subprocess.run(
        [sys.executable, str(MOTHER), str(tmp_path), moments], capture_output=True, text=True, check=False, timeout=200
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    deaths = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(deaths) == count
    for death in deaths:
        assert death["exit"] == -9, death
        assert death["warnings"] == [], death
        assert death["seen_complete"] <= death["latest"], death
        assert death["weights"] == [death["latest"]] == death["moments"], death
        assert all(name.startswith("step-") for name in death["names"]), death
        assert len(death["names"]) <= 3, "two best and the latest"
        assert death["saved_after"] == death["latest"] + 1, death
    left_in_the_middle = [death["left"] for death in deaths if death["left"]]
    assert left_in_the_middle, "no process was killed amid its writing"
    if moments == "events":
        assert {death["moment"] for death in deaths} >= {
            "model.safetensors",
            "optimizer.safetensors",
            "state.json",
            "metadata.json",
            "renamed",
            "deleting",
        }
