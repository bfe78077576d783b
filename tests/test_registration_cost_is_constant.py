"""What a registration asks of MLflow does not grow with the versions that are there, and what it decides is the
same.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from ready_store import ready_store
from registered_runs import add_versions, finish, intent, logged_model, model_folder

from mltrack import registry
from mltrack.errors import TrackingError
from mltrack.registry.champion import SETTLED_AT_ONCE, read_standing, settle
from mltrack.registry.history import SETTLED, Settled
from mltrack.store import Store, connect, model_tags, register, resolve
from mltrack.store.registered import is_registered


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("cost")
    with chdir(folder):  # the artifacts lie in the working directory of whoever makes the database
        return connect(ready_store(folder))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own."""
    return request.node.name


class Counted:
    """A client that counts its requests and the versions that came with the answers."""

    def __init__(self, real: Any):
        self._real = real
        self.requests: Counter[str] = Counter()
        self.versions = 0

    def __getattr__(self, verb: str) -> Any:
        if verb == "tracking_uri":
            return self._real.tracking_uri

        def call(*args: Any, **kwargs: Any) -> Any:
            self.requests[verb] += 1
            answer = getattr(self._real, verb)(*args, **kwargs)
            self.versions += len(answer) if verb == "search_model_versions" else verb == "get_model_version"
            return answer

        return call


def counted(store: Store, work: Any) -> Counted:
    """What `work()` asks of the store."""
    real, store.client = store.client, Counted(store.client)
    try:
        work()
        return store.client
    finally:
        store.client = real


def settled(store: Store, name: str) -> Settled:
    head = model_tags.read_head(store, name)
    assert head is not None
    return Settled.read(head.tags)


def test_it_asks_the_same_at_ten_versions_and_at_three_hundred(store: Store, folder: Path, name: str) -> None:
    finish(store, folder, name, 0.5)
    asked = []
    for more in (10, 290):
        add_versions(store, name, more)
        finish(store, folder, name, 0.9)  # those came by other means, so they are read once
        for value in (0.8, 0.5 - more / 1000):
            model_id = logged_model(store, folder)
            asked.append(
                counted(
                    store,
                    lambda model_id=model_id, value=value: registry.register(store, name, model_id, intent(value), ""),
                )
            )
    assert [one.requests for one in asked[:2]] == [one.requests for one in asked[2:]]
    assert all(one.versions <= 30 for one in asked), [one.versions for one in asked]
    assert all(one.requests.total() <= 30 for one in asked), [one.requests for one in asked]
    model = model_tags.read_model(store, name)
    assert model.aliases == {"champion": 307, "challenger": 307}
    assert [change.version for change in read_standing(store, name).history] == [1, 14, 307]


@pytest.mark.parametrize("command", ["promote", "rollback", "latest", "missing", "delete"])
def test_so_do_the_commands(store: Store, folder: Path, command: str, name: str) -> None:
    for value in (0.5, 0.4):
        finish(store, folder, name, value)
    add_versions(store, name, 3 * SETTLED_AT_ONCE)
    finish(store, folder, name, 0.9)

    def work() -> None:
        uri = store.tracking_uri
        if command == "promote":
            registry.promote(name, 2, uri)
        elif command == "rollback":
            assert registry.rollback(name, uri).version == 1
        elif command == "latest":
            resolve(store, f"models:/{name}/latest")
            found = registry.find_parent(f"models:/{name}/latest", uri)
            assert found is not None
            assert found.uri == f"models:/{name}/33"
        elif command == "delete":
            registry.delete(name, 33, uri, keep_files=True)
        else:
            with pytest.raises(
                TrackingError, match=r"no version '999'; it has \.\.\. 24, 25, 26, 27, 28, 29, 30, 31, 32, 33$"
            ):
                registry.promote(name, 999, uri)

    with pytest.MonkeyPatch.context() as patched:
        for module in ("champion", "deletion", "loading"):
            patched.setattr(f"mltrack.registry.{module}.connect_existing", lambda *_: store)
        assert counted(store, work).versions <= 30


def test_a_registered_model_of_an_earlier_mltrack_goes_on(store: Store, folder: Path, name: str) -> None:
    for value in (0.5, 0.4):
        finish(store, folder, name, value)
    registry.promote(name, 1, store.tracking_uri)
    add_versions(store, name, 3 * SETTLED_AT_ONCE)
    assert settled(store, name) == Settled()
    assert finish(store, folder, name, 0.6).aliases == ["challenger"]
    assert settled(store, name).number == 32
    assert finish(store, folder, name, 0.45).aliases == ["challenger", "champion"]
    assert [registry.rollback(name, store.tracking_uri).version for _ in range(2)] == [1, 2]
    assert [change.kind for change in read_standing(store, name).history] == [
        "gate",
        "gate",
        "promote",
        "gate",
        "rollback",
        "rollback",
    ]


def test_a_decision_of_a_person_counts_from_its_moment_whatever_the_tag_says(
    store: Store, folder: Path, name: str
) -> None:
    finish(store, folder, name, 0.5)
    add_versions(store, name, 2 * SETTLED_AT_ONCE)
    finish(store, folder, name, 0.4)
    before = settled(store, name)
    assert before.number > SETTLED_AT_ONCE
    registry.promote(name, 3, store.tracking_uri)  # 0.9
    for late in (
        before,
        Settled(10_000, "of-nobody"),
        Settled(2, before.mark),
    ):  # a writer that was slow, or went wrong
        model_tags.set_model_tag(store, name, SETTLED, late.text)
        standing = settle(store, name)
        assert (standing.champion, standing.model.aliases["champion"]) == (3, 3)
        assert settled(store, name).number in (22, late.number)
    assert finish(store, folder, name, 0.95).aliases == ["challenger"]
    assert finish(store, folder, name, 0.7).aliases == ["challenger", "champion"]


def test_a_version_whose_relay_is_still_writing_is_read_again(store: Store, folder: Path, name: str) -> None:
    finish(store, folder, name, 0.5)
    slow = logged_model(store, folder)
    number = int(register(store, name, slow, tags=intent(0.4), description="its relay was stopped here"))
    for _ in range(2):
        finish(store, folder, name, 0.9)
    add_versions(store, name, 2 * SETTLED_AT_ONCE)
    finish(store, folder, name, 0.9)
    assert settled(store, name).number < number
    outcome = registry.register(store, name, slow, intent(0.4), "")
    assert (outcome.version, outcome.aliases, outcome.decision.split(":")[0]) == (number, ["champion"], "champion")
    finish(store, folder, name, 0.9)
    assert settled(store, name).number > number


def test_a_champion_that_was_deleted_by_other_means_leaves_the_place_free(
    store: Store, folder: Path, name: str
) -> None:
    finish(store, folder, name, 0.5)
    add_versions(store, name, 2 * SETTLED_AT_ONCE)
    finish(store, folder, name, 0.9)
    store.client.delete_model_version(name, "1")
    assert finish(store, folder, name, 0.95).aliases == ["challenger", "champion"]


def test_whether_a_model_is_registered_does_not_look_at_older_copies(store: Store, folder: Path, name: str) -> None:
    finish(store, folder, name, 0.5)
    store.client.copy_model_version(f"models:/{name}/1", f"{name}-copies")
    add_versions(store, f"{name}-copies", 300)
    with sqlite3.connect(store.tracking_uri.removeprefix("sqlite:///")) as database:
        database.execute(
            "update model_versions set source = ?, creation_time = 1000 where name = ?",
            (f"models:/{name}/1", f"{name}-copies"),
        )
    database.close()
    asked = counted(store, lambda: is_registered(store, logged_model(store, folder)))
    assert asked.requests["get_model_version_download_uri"] == 0
    assert asked.versions <= 201


def test_a_prompt_of_that_name_is_refused_in_one_line(store: Store, folder: Path, name: str) -> None:
    store.client.register_prompt(name, "say {{it}}")
    with pytest.raises(TrackingError, match="is a prompt, not a model"):
        finish(store, folder, name, 0.5)
