"""A process is told from a later one with its number, also where the clock was set in between."""

from __future__ import annotations

import os

import psutil
import pytest

from mltrack.relay import WatchedProcess


@pytest.mark.parametrize(("off_s", "alive"), [(0.0, True), (1.0, True), (-1.0, True), (10.0, False), (-10.0, False)])
def test_the_start_may_be_off_by_the_second_in_which_the_boot_time_is_told(off_s: float, alive: bool) -> None:
    assert WatchedProcess(os.getpid(), psutil.Process().create_time() + off_s).is_alive() == alive
