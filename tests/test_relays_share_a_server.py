"""A relay asks the less, the longer the server takes to answer and the older its run is; what ends or decides something
is sent at once.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy, faulty_proxy
from ready_store import ready_store
from tracked_runs import assert_complete, sent, until

from mltrack.journal import RunInfo, records
from mltrack.relay.pace import LONGEST_INTERVAL_S, OLD_S, SHORTEST_INTERVAL_S, Pace
from mltrack.tracking import TrainingMetricsTracker


def test_a_young_run_on_a_quick_server_is_seen_at_once_and_an_old_one_every_fifteen_seconds():
    pace = Pace()
    pace.answered(0.01)
    assert [pace.interval_s(age_s) for age_s in (0, 60, 120)] == [SHORTEST_INTERVAL_S] * 3
    intervals = [pace.interval_s(age_s) for age_s in range(0, 10_000, 100)]
    assert intervals == sorted(intervals)
    assert pace.interval_s(OLD_S / 2) == LONGEST_INTERVAL_S / 2
    assert {pace.interval_s(age_s) for age_s in (OLD_S, 1e9)} == {LONGEST_INTERVAL_S}


def test_the_interval_grows_with_the_answer_at_once_and_shrinks_little_by_little():
    pace = Pace()
    pace.answered(0.2)
    assert pace.interval_s(0) == pytest.approx(4.0)
    pace.answered(5.0)
    assert pace.interval_s(0) == LONGEST_INTERVAL_S
    quick = []
    for _ in range(40):
        pace.answered(0.01)
        quick.append(pace.interval_s(0))
    assert quick == sorted(quick, reverse=True)
    assert quick[5] > SHORTEST_INTERVAL_S == quick[-1]
    pace.timed_out()
    assert pace.interval_s(0) == LONGEST_INTERVAL_S, "no answer is a long one"


def test_however_many_relays_there_are_they_ask_for_no_more_than_the_server_answers():
    """A server that answers one after the other, each in a tenth of a second: the answer takes the longer, the more
    there are in the queue.
    """
    for relays in (1, 20, 200):
        pace = Pace()
        answer_s = 0.1
        for _ in range(100):
            pace.answered(answer_s)
            a_second = relays / (pace.interval_s(0) + answer_s)
            answer_s = max(0.1, min(answer_s * a_second * 0.1, relays * 0.1))
        assert a_second <= max(10, relays / LONGEST_INTERVAL_S)


def old_run(folder: Path, uri: str) -> TrainingMetricsTracker:
    tracker = TrainingMetricsTracker(
        folder,
        run=RunInfo(local_id=uuid.uuid4().hex, tracking_uri=uri, created_ms=records.now_ms() - int(1000 * OLD_S)),
    )
    tracker.start_delivery()
    return tracker


def test_in_an_old_run_points_wait_and_are_there_once_something_is_decided_or_it_ends(tmp_path: Path):
    uri = ready_store(tmp_path)
    tracker = old_run(tmp_path / "run", uri)
    tracker.log_metric("train_loss", 1.0, step=1)
    until(lambda: sent(tracker.directory) == 1, "the first point")
    answers_ms = [tracker.directory.read_delivery()["acknowledged_ms"]]
    for step in range(2, 12):
        tracker.log_metric("train_loss", 1 / step, step)
    time.sleep(2.5)  # five looks at the journal
    assert sent(tracker.directory) == 1
    tracker.set_tags({"note": "something that somebody may wait for"})
    answers_ms.append(
        until(
            lambda: sent(tracker.directory) == 11 and tracker.directory.read_delivery()["acknowledged_ms"],
            "the points before it",
        )
    )
    tracker.log_metric("train_loss", 0.01, step=12)
    assert tracker.close() == "complete"
    answers_ms.append(tracker.directory.read_delivery()["acknowledged_ms"])
    assert all(later - earlier < 1000 * LONGEST_INTERVAL_S for earlier, later in itertools.pairwise(answers_ms)), (
        "neither waited for its turn"
    )
    assert_complete(tracker.directory, uri, status="FINISHED")


@pytest.fixture(scope="module")
def proxy(server: str) -> Iterator[FaultyProxy]:
    with faulty_proxy(server) as proxy:
        yield proxy


@pytest.mark.long
def test_an_old_run_that_records_without_pause_asks_three_times_an_interval(
    tmp_path: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
):
    """The points, whether the run is still this directory's, and the machine's own metrics."""
    tracker = old_run(tmp_path / "run", proxy.uri)
    tracker.log_metric("train_loss", 1.0, step=1)
    until(lambda: sent(tracker.directory) == 1, "the first point")
    began, step = time.monotonic(), 1
    seen = len(proxy.seen)
    while time.monotonic() - began < 1.3 * LONGEST_INTERVAL_S:
        step += 1
        tracker.log_metric("train_loss", 1 / step, step)
        time.sleep(0.02)
    asked = len(proxy.seen) - seen
    assert asked <= 2 * 4
    assert tracker.close() == "complete"
    assert_complete(tracker.directory, proxy.uri, status="FINISHED")
