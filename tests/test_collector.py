"""The collector does not visit what was there before the training, and does so again afterwards."""

from __future__ import annotations

import gc

import pytest

from mltrack.collector import collect_rarely, frozen


class Knot:
    """Refers to itself: only the collector can free it."""

    def __init__(self) -> None:
        self.self = self


def alive() -> int:
    return sum(type(one) is Knot for one in gc.get_objects())


def test_what_was_there_is_frozen_and_what_comes_is_collected():
    held = Knot()
    with frozen():
        assert gc.get_freeze_count() > 10_000
        assert alive() == 0, "frozen objects are in no generation"
        for _ in range(10):
            Knot()
        gc.collect()
        assert alive() == 0
    assert gc.get_freeze_count() == 0
    assert alive() == 1
    assert held.self is held


def test_what_somebody_else_has_frozen_stays_frozen():
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with frozen():
            pass
        assert gc.get_freeze_count() > count / 2, "a frozen object may be freed, but none is visited again"
    finally:
        gc.unfreeze()


@pytest.fixture
def thresholds():
    """Those of the interpreter, which come back afterwards."""
    held = gc.get_threshold()
    yield held
    gc.set_threshold(*held)


def test_collections_are_rare_until_the_training_begins(thresholds):
    collect_rarely()
    before = gc.get_stats()[0]["collections"]
    kept = [[] for _ in range(50_000)]
    assert gc.get_stats()[0]["collections"] - before <= 1, "seventy with the thresholds that were"
    with frozen():
        assert gc.get_threshold() == thresholds
    assert gc.get_threshold() == thresholds
    assert len(kept) == 50_000


def test_thresholds_of_somebody_else_stay(thresholds):
    gc.set_threshold(5_000, 20, 20)
    collect_rarely()
    with frozen():
        assert gc.get_threshold() == (5_000, 20, 20)
