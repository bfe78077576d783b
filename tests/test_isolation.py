"""Of a batch that a store fails on, only what it refuses alone is given up; a store that takes nothing is given nothing
up to.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mltrack.relay import isolation
from mltrack.relay.isolation import send_isolated
from mltrack.store import StoreRejected, StoreUnavailable
from mltrack.store.refusal import StoreFailed


class Table:
    """Takes numbers in requests as a database does: all of a request or nothing."""

    def __init__(self, *, poison: Sequence[int] = (), kind: type[Exception] = StoreFailed, failures: int = 0):
        self.poison, self.kind, self.failures = set(poison), kind, failures
        self.rows: list[int] = []
        self.requests = 0

    def take(self, items: Sequence[int]) -> None:
        self.requests += 1
        if self.failures > 0 or self.poison & set(items):
            self.failures -= 1
            raise self.kind("no")
        self.rows.extend(items)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "PAUSE_S", 0.0)


@pytest.mark.parametrize("kind", [StoreFailed, StoreRejected])
def test_the_poison_is_found_and_the_rest_is_there_once_and_in_order(kind):
    table = Table(poison=[0, 417, 418, 999], kind=kind)
    refused = send_isolated(range(1000), table.take, lambda: True)
    assert [item for item, _ in refused] == [0, 417, 418, 999]
    assert table.rows == [item for item in range(1000) if item not in table.poison]
    assert table.requests < 120


def test_a_failure_that_passes_costs_no_item():
    table = Table(failures=isolation.ATTEMPTS - 1)
    assert send_isolated(range(50), table.take, lambda: True) == []
    assert table.rows == list(range(50))
    assert table.requests == isolation.ATTEMPTS


def test_a_store_that_takes_nothing_is_given_nothing_up_to():
    def away() -> bool:
        raise StoreUnavailable("away")

    table = Table(poison=range(1000))
    with pytest.raises(StoreUnavailable, match="away"):
        send_isolated(range(50), table.take, away)
    assert table.requests == 1
    with pytest.raises(StoreUnavailable):
        send_isolated(range(1000), table.take, lambda: False)  # nothing is known that it would take
    assert table.requests < 40, "it is not asked for each of the thousand"


def test_without_a_known_good_write_the_others_of_the_batch_are_the_proof():
    table = Table(poison=[7])
    assert [item for item, _ in send_isolated(range(20), table.take, lambda: False)] == [7]
