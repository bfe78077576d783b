"""The champion moves only to what is better on the same data; who was it when, and why, can be read and taken back; two
at once end the same way.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import commands
import pytest
from ready_store import ready_store
from registered_runs import DIGEST, finish, intent, logged_model, model_folder

from mltrack import registry
from mltrack.errors import TrackingError
from mltrack.registry import gate
from mltrack.registry.champion import Outcome, read_standing
from mltrack.registry.history import MAX_CHANGES, Change, champions_in_turn, read_history
from mltrack.store import Store, connect, get_alias, model_tags, register, set_alias


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    before, folder = os.getcwd(), tmp_path_factory.mktemp("gate")
    os.chdir(folder)
    try:
        return connect(ready_store(folder))
    finally:
        os.chdir(before)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own."""
    return request.node.name.replace("/", "_").replace(":", "_")


def history(store: Store, name: str) -> list[Change]:
    return read_history(model_tags.read_model(store, name).tags)


def aliases(store: Store, name: str) -> dict[str, int]:
    return dict(model_tags.read_model(store, name).aliases)


@pytest.mark.parametrize(
    ("challenger", "champion", "promoted", "said"),
    [
        (intent(0.3), intent(0.4), True, "eval_loss 0.3 is better than 0.4 of version 7, on the same data"),
        (intent(0.4), intent(0.4), False, "is not better than"),
        (intent(0.5), intent(0.4), False, "is not better than"),
        (intent(0.35, margin=0.1), intent(0.4), False, "is not enough better than 0.4 of version 7 (margin 0.1)"),
        (intent(0.30, margin=0.05), intent(0.35), True, "is better than"),
        (intent(0.4, margin=0.0), intent(0.4), False, "is not better"),
        (intent(0.9, **{gate.MODE: "max"}), intent(0.8, **{gate.MODE: "max"}), True, "is better than"),
        (intent(0.7, **{gate.MODE: "max"}), intent(0.8, **{gate.MODE: "max"}), False, "is not better than"),
        (intent("nan"), None, False, "it has no eval_loss to be judged by"),
        (intent(0.3), None, True, "there was no champion"),
        (intent(0.1, policy="never"), intent(0.4), False, "promote=never"),
        (intent(0.9, policy="always"), intent(0.4), True, "promote=always"),
    ],
)
def test_the_gate_by_figures(
    challenger: dict[str, str], champion: dict[str, str] | None, promoted: bool, said: str
) -> None:
    verdict = gate.judge(challenger, champion, 7)
    assert (verdict.promoted, verdict.open) == (promoted, False)
    assert said in verdict.why


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({gate.EVAL_DIGEST: "e" * 64}, "other evaluation data"),
        ({gate.METRIC: "eval_accuracy"}, "other metric"),
        ({gate.MODE: "max"}, "other direction"),
        ({gate.TOKENS: "abc/512"}, "other tokens of the evaluation"),
        ({gate.VALUE: "nan"}, "has no metric value"),
    ],
)
def test_figures_that_were_not_measured_alike_are_not_compared(changed: dict[str, str], said: str) -> None:
    verdict = gate.judge(intent(0.1), {**intent(0.4), **changed}, 7)
    assert (verdict.promoted, verdict.open) == (False, True)
    assert said in verdict.why


def test_a_better_run_becomes_champion_and_a_worse_one_stays_challenger(store: Store, folder: Path, name: str) -> None:
    outcomes = [finish(store, folder, name, value) for value in (0.5, 0.6, 0.4)]
    assert [outcome.aliases for outcome in outcomes] == [
        ["challenger", "champion"],
        ["challenger"],
        ["challenger", "champion"],
    ]
    assert [outcome.decision.split(":")[0] for outcome in outcomes] == ["champion", "challenger", "champion"]
    assert aliases(store, name) == {"champion": 3, "challenger": 3}
    model = model_tags.read_model(store, name)
    assert [model.versions[number].tags[gate.DECISION] for number in (1, 2, 3)] == [
        outcome.decision for outcome in outcomes
    ]
    assert [(change.before, change.version, change.kind) for change in history(store, name)] == [
        (None, 1, "gate"),
        (1, 3, "gate"),
    ]
    assert "0.4 is better than 0.5 of version 1" in history(store, name)[-1].why
    assert store.client.get_model_version(name, "2").description == "made by a test, version 2"


def test_a_delivery_that_is_repeated_moves_nothing(store: Store, folder: Path, name: str) -> None:
    first = logged_model(store, folder)
    registry.register(store, name, first, intent(0.5), "")
    finish(store, folder, name, 0.4)
    registry.promote(name, "1", store.tracking_uri)
    held, past = aliases(store, name), history(store, name)
    again = registry.register(store, name, first, intent(0.5), "")
    assert (again.version, again.decision.split(":")[0]) == (1, "champion")
    assert (aliases(store, name), history(store, name)) == (held, past)


class CutOffError(BaseException):
    """The process died."""


class Cut:
    """A client whose process dies at one verb."""

    def __init__(self, real: Any, verb: str):
        self._real, self._verb = real, verb

    def __getattr__(self, verb: str) -> Any:
        if verb == "tracking_uri":
            return self._real.tracking_uri

        if verb == self._verb:
            raise CutOffError
        return getattr(self._real, verb)


def test_cut_off_at_any_request_and_called_again_it_is_one_decision(store: Store, folder: Path, name: str) -> None:
    finish(store, folder, name, 0.5)
    model_id, real = logged_model(store, folder), store.client
    for verb in (
        "create_model_version",
        "set_logged_model_tags",
        "update_model_version",
        "set_registered_model_alias",
        "set_registered_model_tag",
        "set_model_version_tag",
    ):
        store.client = Cut(real, verb)
        try:
            with pytest.raises(CutOffError):
                registry.register(store, name, model_id, intent(0.4), "version {version}")
        finally:
            store.client = real
    outcome = registry.register(store, name, model_id, intent(0.4), "version {version}")
    assert (outcome.version, outcome.aliases, outcome.decision.split(":")[0]) == (
        2,
        ["challenger", "champion"],
        "champion",
    )
    assert [(change.before, change.version, change.kind) for change in history(store, name)] == [
        (None, 1, "gate"),
        (1, 2, "gate"),
    ]
    assert store.client.get_model_version(name, "2").description == "version 2"
    assert store.client.get_logged_model(model_id).tags["mlflow.modelVersions"] == json.dumps(
        [{"name": name, "version": "2"}]
    )


def test_a_decision_whose_alias_is_about_to_move_is_not_taken_back_by_a_run_that_ends_then(
    store: Store, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (0.5, 0.4):
        finish(store, folder, name, value)
    with monkeypatch.context() as patched:
        patched.setattr("mltrack.registry.champion.connect_existing", lambda *_: store)
        patched.setattr(store, "client", Cut(store.client, "set_registered_model_alias"))
        with pytest.raises(CutOffError):
            registry.promote(name, 1, store.tracking_uri)
    assert aliases(store, name)["champion"] == 2
    finish(store, folder, name, 0.6)
    assert aliases(store, name)["champion"] == 1
    assert history(store, name)[-1].kind == "promote"


def test_a_move_by_mlflows_page_is_what_a_rollback_goes_back_to(store: Store, folder: Path, name: str) -> None:
    for value in (0.5, 0.6, 0.7):
        finish(store, folder, name, value)
    store.client.set_registered_model_alias(name, "champion", "2")
    registry.promote(name, 3, store.tracking_uri)
    assert [(change.kind, change.before, change.version) for change in history(store, name)][-2:] == [
        ("outside", 1, 2),
        ("promote", 2, 3),
    ]
    assert registry.rollback(name, store.tracking_uri).version == 2
    assert aliases(store, name)["champion"] == 2


def test_a_move_by_mlflows_page_stays_while_a_version_is_being_registered(
    store: Store, folder: Path, name: str
) -> None:
    for value in (0.5, 0.6):
        finish(store, folder, name, value)
    register(store, name, logged_model(store, folder), tags=intent(0.7), description="its relay was killed here")
    store.client.set_registered_model_alias(name, "champion", "2")
    finish(store, folder, name, 0.9)
    assert aliases(store, name)["champion"] == 2
    assert registry.rollback(name, store.tracking_uri).version == 1


def test_other_evaluation_data_leave_it_challenger_and_name_the_command(store: Store, folder: Path, name: str) -> None:
    finish(store, folder, name, 0.5)
    outcome = finish(store, folder, name, 0.1, digest="e" * 64)
    assert outcome.aliases == ["challenger"]
    assert outcome.command is not None
    assert outcome.command.startswith("mltrack models promote ")
    assert outcome.command.endswith(" --version 2 --dataset-path FILE")
    assert model_tags.read_model(store, name).versions[2].tags[gate.DECIDE] == outcome.command
    assert finish(store, folder, name, 0.49, digest=DIGEST).aliases == ["challenger", "champion"], (
        "compared with the champion, not with the newest"
    )


def test_rollback_restores_the_one_before_and_goes_further_back(store: Store, folder: Path, name: str) -> None:
    for value in (0.5, 0.4, 0.3):
        finish(store, folder, name, value)
    uri = store.tracking_uri
    assert [
        (change.before, change.version) for change in (registry.rollback(name, uri), registry.rollback(name, uri))
    ] == [(3, 2), (2, 1)]
    with pytest.raises(TrackingError, match=r"version 1 is champion and none was before it; .*mltrack models promote"):
        registry.rollback(name, uri)
    assert get_alias(store, name, "champion") == "1"
    assert [change.kind for change in history(store, name)] == ["gate"] * 3 + ["rollback"] * 2
    # what is better than the restored one is champion again, and the rolled back ones do not come back by themselves
    assert finish(store, folder, name, 0.6).aliases == ["challenger"]
    assert finish(store, folder, name, 0.45).aliases == ["challenger", "champion"]
    assert registry.rollback(name, uri).version == 1


def test_a_decision_by_hand_stands_until_something_better_comes(store: Store, folder: Path, name: str) -> None:
    for value in (0.5, 0.4):
        finish(store, folder, name, value)
    assert registry.promote(name, "1", store.tracking_uri) == "2"
    assert finish(store, folder, name, 0.6).aliases == ["challenger"]
    assert aliases(store, name)["champion"] == 1
    assert finish(store, folder, name, 0.45).aliases == ["challenger", "champion"]


def test_an_alias_that_was_moved_by_other_means_is_a_decision_too(store: Store, folder: Path, name: str) -> None:
    for value in (0.5, 0.4):
        finish(store, folder, name, value)
    set_alias(store, name, "champion", 1)
    assert finish(store, folder, name, 0.6).aliases == ["challenger"]
    assert aliases(store, name)["champion"] == 1
    assert [(change.kind, change.version) for change in history(store, name)][-1] == ("outside", 1)


def test_promote_names_the_versions_and_models_that_are_there(store: Store, folder: Path, name: str) -> None:
    finish(store, folder, name, 0.5)
    with pytest.raises(TrackingError, match=f"{name} has no version '9'; it has 1$"):
        registry.promote(name, "9", store.tracking_uri)
    with pytest.raises(TrackingError, match=r"no nowhere in sqlite:.*models there: .*MLFLOW_TRACKING_URI"):
        registry.promote("nowhere", "1", store.tracking_uri)


def test_a_champion_is_deleted_by_force_alone(store: Store, folder: Path, name: str) -> None:
    uri = store.tracking_uri
    ids = [logged_model(store, folder) for _ in range(3)]
    for model_id, value in zip(ids, (0.5, 0.4, 0.6), strict=True):
        registry.register(store, name, model_id, intent(value), "")
    registry.register(store, f"{name}-2", ids[2], intent(0.6), "")
    for version in ("2", None):
        with pytest.raises(TrackingError, match=r"@champion \(version 2\) would be deleted.*--force true"):
            registry.delete(name, version, uri)
    assert len(model_tags.read_model(store, name).versions) == 3
    location = {
        model_id: Path(store.client.get_logged_model(model_id).artifact_location.removeprefix("file://"))
        for model_id in ids
    }
    said = registry.delete(name, "3", uri)
    assert said == [
        f"{name}/3: deleted, and with it @challenger",
        f"{ids[2]}: its files stay, because another version uses them",
    ]
    assert (location[ids[2]] / "model.safetensors").exists()
    said = registry.delete(name, "2", uri, force=True)
    assert said[1].startswith(f"{name} has no champion now")
    assert said[2] == f"{ids[1]}: its files were deleted"
    assert not location[ids[1]].exists()
    assert get_alias(store, name, "champion") is None
    assert registry.rollback(name, uri).version == 1
    assert registry.delete(name, None, uri, force=True, keep_files=True) == [
        f"{name}: deleted with its versions 1",
        f"{ids[0]}: its files stay, as a model of its run",
    ]
    assert (location[ids[0]] / "model.safetensors").exists()


def test_a_model_without_a_champion_takes_the_next_best(store: Store, folder: Path, name: str) -> None:
    finish(store, folder, name, 0.5)
    registry.delete(name, "1", store.tracking_uri, force=True)
    assert finish(store, folder, name, 0.9).aliases == ["challenger", "champion"]


def test_the_history_is_bounded_and_loses_no_decision_that_counts(store: Store, folder: Path, name: str) -> None:
    for value in (0.5, 0.4):
        finish(store, folder, name, value)
    registry.promote(name, "1", store.tracking_uri)
    for count in range(MAX_CHANGES + 5):
        old = Change(version=1, before=2, why="long ago", kind="promote", barrier=0, at_ms=count, mark=f"{count}-old")
        model_tags.set_model_tag(store, name, old.key, old.text)
    finish(store, folder, name, 0.45)
    finish(store, folder, name, 0.46)
    kept = history(store, name)
    assert len(kept) <= MAX_CHANGES
    assert [(change.kind, change.version) for change in kept[-2:]] == [("promote", 1), ("gate", 3)]
    assert aliases(store, name)["champion"] == 3


def test_a_rollback_takes_off_what_came_after() -> None:
    def changes(*steps: tuple[str, int | None]) -> list[Change]:
        return [
            Change(version=version, before=None, why="", kind=kind, barrier=9, at_ms=at, mark="m")
            for at, (kind, version) in enumerate(steps)
        ]

    assert champions_in_turn(changes(("gate", 1), ("gate", 2), ("promote", 1))) == [1, 2, 1]
    assert champions_in_turn(changes(("gate", 1), ("gate", 2), ("gate", 3), ("rollback", 2))) == [1, 2]
    assert champions_in_turn(changes(("gate", 1), ("gate", 2), ("delete", None))) == [1, 2]


def interleaved(uri: str, ids: tuple[str, str], name: str, values: tuple[float, float], seed: int) -> list[Outcome]:
    """Two registrations whose requests reach the store one at a time, in an order that the seed draws."""
    draw = random.Random(seed)
    gates, back = [threading.Semaphore(0), threading.Semaphore(0)], threading.Semaphore(0)
    ended, errors = [False, False], []
    outcomes: dict[int, Outcome] = {}

    class TakesTurns:
        def __init__(self, real: Any, which: int):
            self._real, self._which = real, which

        def __getattr__(self, verb: str) -> Any:
            if verb == "tracking_uri":
                return self._real.tracking_uri

            def call(*args: Any, **kwargs: Any) -> Any:
                gates[self._which].acquire()
                try:
                    return getattr(self._real, verb)(*args, **kwargs)
                finally:
                    back.release()

            return call

    def work(which: int) -> None:
        try:
            store = connect(uri)
            store.client = TakesTurns(store.client, which)
            outcomes[which] = registry.register(store, name, ids[which], intent(values[which]), "")
        except BaseException as error:
            errors.append(error)
        finally:
            ended[which] = True
            back.release()

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    while not all(ended):
        which = draw.choice([one for one in (0, 1) if not ended[one]])
        gates[which].release()
        assert back.acquire(timeout=60)
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    return [outcomes[0], outcomes[1]]


def assert_the_better_is_champion(store: Store, name: str, value_of: dict[int, float]) -> None:
    """`value_of` by version."""
    model = model_tags.read_model(store, name)
    best = min(value_of, key=value_of.__getitem__)
    assert model.aliases == {"champion": best, "challenger": 2}
    decisions = {number: version.tags[gate.DECISION] for number, version in model.versions.items()}
    assert decisions[1].startswith("champion: there was no champion")
    relation = "champion: eval_loss 0.3 is better than" if best == 2 else "challenger: eval_loss 0.4 is not better than"
    assert decisions[2].startswith(relation), decisions
    assert [change.version for change in read_history(model.tags)] == ([1, 2] if best == 2 else [1])
    assert not read_standing(store, name).unwritten


def test_whatever_the_order_of_the_requests_the_better_one_is_champion(
    store: Store, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", store.tracking_uri
    )  # process-wide, and two threads must not take it from each other
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store.tracking_uri)
    ids = (logged_model(store, folder), logged_model(store, folder))
    orders = set()
    try:
        for seed in range(20):
            monkeypatch.setattr("mltrack.registry.champion.SETTLED_AT_ONCE", 1 if seed % 2 else 10)
            outcomes = interleaved(store.tracking_uri, ids, f"{name}-{seed}", (0.3, 0.4), seed)
            assert sorted(outcome.version for outcome in outcomes) == [1, 2]
            assert_the_better_is_champion(
                store,
                f"{name}-{seed}",
                {outcome.version: value for outcome, value in zip(outcomes, (0.3, 0.4), strict=True)},
            )
            orders.add(outcomes[0].version)
    finally:
        mlflow.set_tracking_uri(before)
    assert orders == {1, 2}, "either of the two was first in some of them"


RACER = """
import sys, time
from pathlib import Path
from registered_runs import intent
from mltrack import registry
from mltrack.store import StoreUnavailable, connect

uri, model_id, value, who, count, meeting = sys.argv[1:]
store = connect(uri, request_timeout_s=60)
for turn in range(int(count)):
    Path(meeting, f"{turn}-{who}").touch()
    deadline = time.monotonic() + 180
    while not Path(meeting, f"{turn}-{1 - int(who)}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    while True:
        try:
            outcome = registry.register(store, f"race-{turn}", model_id, intent(value), "")
            break
        except StoreUnavailable:  # a locked database; a relay tries again too
            assert time.monotonic() < deadline
    print(outcome.version, flush=True)
"""


def race(store: Store, folder: Path, meeting: Path, count: int) -> None:
    """Two processes, each a run that ends; `count` models one after the other, both at the same moment."""
    meeting.mkdir()
    ids = [logged_model(store, folder) for _ in range(2)]
    path = f"{commands.ROOT}:{commands.ROOT / 'tests'}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, store.tracking_uri, model_id, value, str(who), str(count), str(meeting)],
            env=commands.environment(PYTHONPATH=path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who, (model_id, value) in enumerate(zip(ids, ("0.3", "0.4"), strict=True))
    ]
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [errors for _, errors in said]
    versions = [[int(word) for word in out.split()] for out, _ in said]
    for turn in range(count):
        assert_the_better_is_champion(store, f"race-{turn}", {versions[0][turn]: 0.3, versions[1][turn]: 0.4})


def test_two_relays_at_the_same_time_on_one_database(store: Store, folder: Path, tmp_path: Path) -> None:
    race(store, folder, tmp_path / "meeting", 8)


@pytest.mark.long
def test_two_relays_at_the_same_time_on_one_server(server: str, folder: Path, tmp_path: Path) -> None:
    race(connect(server), folder, tmp_path / "meeting", 12)
