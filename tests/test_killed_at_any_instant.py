"""SIGKILL at random instants of training, evaluation and saving loses nothing and changes nothing;
`benchmarks/kill_storm.py` does it 200 times.
"""

from __future__ import annotations

import signal
import sys

import commands
import pytest

sys.path.insert(0, str(commands.ROOT / "benchmarks"))
from killed_training import Storm, equal
from small_job import small_job

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("task", "precision", "kills"), [("text_classification", "off", 7), ("code_generation", "bf16", 3)]
)
def test_killed_and_resumed_until_it_is_done(tmp_path, warm, task, precision, kills):
    storm = Storm(small_job(tmp_path, task, use_mixed_precision=precision), tmp_path, warm, seed=kills)
    tally = storm.run(kills)
    assert tally.num_kills == kills
    assert (tally.torn, tally.unloadable) == (0, 0)
    assert (tally.points_lost, tally.points_doubled, tally.points_different) == (0, 0, 0)
    assert tally.points > 24, "the reference has a loss for each of its steps"
    assert tally.leftovers == []
    assert tally.problems == []
    assert tally.identical == tally.same_best == tally.runs >= 1


IN_MID_SAVE = """
import os, signal, sys
_left = [{left}]
def _hook(event, words):
    if event == "{event}" and any("{word}" in str(word) for word in words):
        _left[0] -= 1
        if _left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(_hook)
"""
"""Dies at the n-th time the system is asked for something about a file with that word in its name."""
MOMENTS = [
    ("os.mkdir", ".writing-", 3),
    ("os.rename", ".writing-step-00000002", 1),  # the first one is all there but for its name
    ("open", "metadata.json", 3),
    ("os.rename", ".writing-step-00000004", 1),
    ("os.rename", ".deleting-", 2),
    ("open", "run.json", 2),
]


@pytest.mark.parametrize(("event", "word", "left"), MOMENTS, ids=[f"{event}-{word}" for event, word, _ in MOMENTS])
def test_killed_at_the_worst_moments_of_a_save(tmp_path, warm, event, word, left):
    storm = Storm(small_job(tmp_path, epochs=2), tmp_path, warm, seed=0, offline=True)
    run_id = storm.new_run()
    killed, directory = storm.start(run_id, IN_MID_SAVE.format(event=event, word=word, left=left))
    assert killed.wait() == -signal.SIGKILL, killed.errors
    storm.inspect(directory)
    resumed, _ = storm.start(run_id)
    assert resumed.until(storm.has_begun, "the first step"), resumed.errors
    storm.look_for_leftovers(resumed.pid, directory)
    assert resumed.wait() == 0, resumed.errors
    storm.compare(directory)
    tally = storm.tally
    assert (tally.torn, tally.unloadable, tally.points_lost, tally.points_doubled, tally.points_different) == (0,) * 5
    assert (tally.leftovers, tally.problems) == ([], [])
    assert tally.identical == 1


BEHIND_THE_LAST_RENAME = """
import os, signal, sys
def _hook(event, words):
    if event == "os.rename" and ".writing-step-00000012" in str(words[0]) and not _seen:
        _seen.append(1)
        os.rename(words[0], words[1])
        os.kill(os.getpid(), signal.SIGKILL)
_seen = []
sys.addaudithook(_hook)
"""
"""The last checkpoint is complete, and the process dies before it has told anybody."""


def test_a_last_checkpoint_that_nobody_was_told_of_is_kept_and_published(tmp_path, warm):
    storm = Storm(small_job(tmp_path, epochs=2), tmp_path, warm, seed=0)
    run_id = storm.new_run()
    killed, directory = storm.start(run_id, BEHIND_THE_LAST_RENAME)
    assert killed.wait() == -signal.SIGKILL, killed.errors
    assert (directory / "checkpoints" / "step-00000012" / "metadata.json").exists()
    resumed, _ = storm.start(run_id)
    assert resumed.wait() == 0, resumed.errors
    storm.compare(directory)
    tally = storm.tally
    assert (tally.points_lost, tally.points_doubled, tally.points_different, tally.problems, tally.leftovers) == (
        0,
        0,
        0,
        [],
        [],
    )
    assert tally.identical == tally.same_best == 1


def test_the_comparison_sees_one_bit():
    import torch

    one = {"a": [torch.zeros(3), 1.0]}
    other = {"a": [torch.zeros(3).index_fill_(0, torch.tensor([1]), 1e-45), 1.0]}
    assert equal(one, {"a": [torch.zeros(3), 1.0]})
    assert not equal(one, other)
    assert not equal(one, {"a": [torch.zeros(3), 2.0]})
