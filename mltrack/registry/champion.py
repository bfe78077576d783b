"""Which version is champion, and how it came to be: the aliases follow from the history and the versions.

Invariant: MLflow has no compare-and-set, so nobody decides by what an alias says. A version carries its intent (`mltrack.promote` and its figures)
from the moment it exists; the champion is the result of one pass over all versions behind the last decision of a person, and whoever has written
an alias reads again until alias and result agree. So two relays come to the same end in whatever order their requests arrive.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mltrack.errors import TrackingError
from mltrack.registry import gate
from mltrack.registry.history import Change, champions_in_turn, last_decision, new_mark, outdated, read_history
from mltrack.registry.loading import connect_existing
from mltrack.store import Store, model_tags, registry
from mltrack.store.model_tags import RegisteredModel

CHAMPION, CHALLENGER = "champion", "challenger"
OUTSIDE = "outside"
MAX_ROUNDS = 50
IN_FLIGHT_MS = 3_600_000
"""How long a version without a decision may be somebody's that is still writing."""
SETTLING_MS = 10_000
"""How long an alias may lag behind a person's decision that is written already."""
VERSION_IN_CARD = "{version}"
"""Stands in a model card for the number that the registry gives."""


@dataclass(frozen=True)
class Outcome:
    """What became of a version."""

    version: int
    aliases: list[str]
    decision: str
    command: str | None = None
    """Where the gate cannot tell: what decides."""


@dataclass
class Standing:
    """The registered model at one moment, and who should be its champion."""

    model: RegisteredModel
    history: list[Change]
    champion: int | None = None
    verdicts: dict[int, gate.Verdict] = field(default_factory=dict)
    """Of the versions behind the last decision."""
    unwritten: list[Change] = field(default_factory=list)
    """Changes that follow and are not in the tags yet."""

    @property
    def newest(self) -> int:
        """The highest number of a version that was ever looked at."""
        return max([*self.model.versions, *(change.barrier for change in self.history), 0])


def read_standing(connected: Store, name: str) -> Standing:
    """Read the model and go through its versions."""
    model = model_tags.read_model(connected, name)
    standing = Standing(model, read_history(model.tags))
    last = standing.history[-1] if standing.history else None
    decided = last_decision(standing.history)
    mark = decided.mark if decided is not None else ""
    standing.champion = last.version if last is not None and last.version in model.versions else None
    for number, version in sorted(model.versions.items()):
        tags = version.tags
        if gate.POLICY not in tags or (last is not None and number <= last.barrier):
            continue
        present = model.versions[standing.champion].tags if standing.champion is not None else None
        verdict = gate.judge(tags, present, standing.champion)
        standing.verdicts[number] = verdict
        if verdict.promoted:
            standing.unwritten.append(
                Change(version=number, before=standing.champion, why=verdict.why, kind="gate", barrier=number, at_ms=version.created_ms, mark=mark)
            )
            standing.champion = number
    return standing


def settle(connected: Store, name: str) -> Standing:
    """Write what follows from the versions and the last decision, until the alias agrees.

    Raises:
        TrackingError: somebody else moves the alias all the time.
    """
    for _ in range(MAX_ROUNDS):
        standing = read_standing(connected, name)
        for change in standing.unwritten:
            model_tags.set_model_tag(connected, name, change.key, change.text)
        if standing.model.aliases.get(CHAMPION) == standing.champion:
            for change in outdated(standing.history):
                model_tags.drop_model_tag(connected, name, change.key)
            return standing
        if standing.champion is None:
            registry.delete_alias(connected, name, CHAMPION)
        else:
            registry.set_alias(connected, name, CHAMPION, standing.champion)
    raise TrackingError(f"{name}@{CHAMPION} in {connected.shown_uri}: somebody else moves it all the time; try again")


def register(connected: Store, name: str, model_id: str, tags: Mapping[str, Any], description: str) -> Outcome:
    """The finished run's best as a version with the alias challenger, judged against the champion; the second call for it changes nothing.

    Args:
        connected: the store.
        name: of the registered model.
        model_id: the logged model, READY.
        tags: as `version_tags` makes them; they are the intent that others read.
        description: Markdown; "{version}" in it becomes the number.
    """
    _adopt(connected, name)
    number = int(registry.register(connected, name, model_id, tags=tags, description=description))
    model = model_tags.read_model(connected, name)
    if number not in model.versions:
        raise TrackingError(f"{name}/{number} was registered in {connected.shown_uri}, which does not list it; try again")
    written = model.versions[number].tags
    if gate.DECISION in written:
        return Outcome(number, _aliases_of(model, number), written[gate.DECISION], gate.open_command(name, number, written))
    if VERSION_IN_CARD in description:
        model_tags.describe_version(connected, name, number, description.replace(VERSION_IN_CARD, str(number)))
    _challenge(connected, name, number)
    standing = settle(connected, name)
    verdict = standing.verdicts.get(number) or _past_verdict(standing, number)
    decision = f"{'champion' if verdict.promoted else 'challenger'}: {verdict.why}"
    command = gate.deciding_command(name, number, written) if verdict.open else None
    model_tags.set_version_tags(connected, name, number, {**({gate.DECIDE: command} if command else {}), gate.DECISION: decision})
    return Outcome(number, _aliases_of(model_tags.read_model(connected, name), number), decision, command)


def promote(name: str, version: str | int | None = None, tracking_uri: str | None = None, *, alias: str = CHAMPION) -> str | None:
    """Move an alias by hand; returns the version that had it before.

    Args:
        name: of the registered model.
        version: its number; None is the one that is challenger.
        tracking_uri: of the store; None is the default one.
        alias: champion, or any other.

    Raises:
        TrackingError: no such model or version.
    """
    connected = connect_existing(tracking_uri, name)
    model = existing_model(connected, name)
    number = existing_version(model, model.aliases.get(CHALLENGER, "") if version is None else version)
    before = model.aliases.get(alias)
    if alias != CHAMPION:
        registry.set_alias(connected, name, alias, number)
    else:
        decide(connected, name, number, kind="promote", why="by hand")
    return None if before is None else str(before)


def alias(name: str, word: str, version: str | int, tracking_uri: str | None = None) -> str | None:
    """Give a version an alias, as `promote` does."""
    return promote(name, version, tracking_uri, alias=word)


def rollback(name: str, tracking_uri: str | None = None) -> Change:
    """Make the champion before the present one champion again; called again, it goes further back.

    Raises:
        TrackingError: no such model, or no earlier champion that is still there.
    """
    connected = connect_existing(tracking_uri, name)
    existing_model(connected, name)
    _adopt(connected, name)
    standing = settle(connected, name)
    earlier = [version for version in champions_in_turn(standing.history, standing.model.versions) if version != standing.champion]
    if not earlier:
        held = f"version {standing.champion}" if standing.champion else "no version"
        raise TrackingError(f"{name}: {held} is champion and none was before it; accepted: mltrack models promote {shlex.quote(name)} --version N")
    return decide(connected, name, earlier[-1], kind="rollback", why=f"back from version {standing.champion}")


def decide(connected: Store, name: str, version: int | None, *, kind: str, why: str) -> Change:
    """Write a person's decision down and have the alias follow it; what somebody did to the alias before by other means is written down first."""
    if kind != OUTSIDE:
        _adopt(connected, name)
    standing = read_standing(connected, name)
    at_ms = max(_now_ms(), *(change.at_ms + 1 for change in standing.history), 0)
    before = standing.champion if kind == OUTSIDE else standing.model.aliases.get(CHAMPION)
    change = Change(version=version, before=before, why=why, kind=kind, barrier=standing.newest, at_ms=at_ms, mark=new_mark(at_ms))
    model_tags.set_model_tag(connected, name, change.key, change.text)
    settle(connected, name)
    return change


def existing_model(connected: Store, name: str) -> RegisteredModel:
    """The model.

    Raises:
        TrackingError: there is none of that name; those that are there are named.
    """
    model = model_tags.read_model(connected, name)
    if not model.versions:
        known = ", ".join(row["name"] for row in registry.list_models(connected)[:10]) or "none"
        raise TrackingError(f"no {name} in {connected.shown_uri}; models there: {known}; another database is named by MLFLOW_TRACKING_URI or --tracking-uri")
    return model


def existing_version(model: RegisteredModel, version: str | int) -> int:
    """The number of a version that is there.

    Raises:
        TrackingError: it is not.
    """
    if str(version) not in {str(number) for number in model.versions}:
        raise TrackingError(f"{model.name}: seen version '{version}'; accepted: {', '.join(str(number) for number in sorted(model.versions))}")
    return int(version)


def _adopt(connected: Store, name: str) -> None:
    """What somebody did to the alias by other means, MLflow's page for instance, is a decision like any other.

    While somebody is registering, an alias that does not agree may be one that is about to; not where it stands on a version that it never had lately.
    """
    standing = read_standing(connected, name)
    held = standing.model.aliases.get(CHAMPION)
    if held == standing.champion or (held is not None and held not in standing.model.versions):
        return
    decided = last_decision(standing.history)
    if decided is not None and held == decided.before and decided.at_ms > _now_ms() - SETTLING_MS:
        return  # whoever decided is about to move it
    since = _now_ms() - IN_FLIGHT_MS
    registering = any(gate.POLICY in one.tags and gate.DECISION not in one.tags and one.created_ms > since for one in standing.model.versions.values())
    lately = {version for change in (*standing.history, *standing.unwritten) if change.at_ms > since for version in (change.before, change.version)}
    if registering and held in lately:
        return
    decide(connected, name, held, kind=OUTSIDE, why="the alias was moved by other means")


def _challenge(connected: Store, name: str, number: int) -> None:
    """The alias challenger on the newest version that a run has registered."""
    for _ in range(MAX_ROUNDS):
        model = model_tags.read_model(connected, name)
        newest = max([number, *(other.number for other in model.versions.values() if gate.POLICY in other.tags)])
        if model.aliases.get(CHALLENGER) == newest:
            return
        registry.set_alias(connected, name, CHALLENGER, newest)
    raise TrackingError(f"{name}@{CHALLENGER} in {connected.shown_uri}: somebody else moves it all the time; try again")


def _past_verdict(standing: Standing, number: int) -> gate.Verdict:
    """What became of a version that others have decided on since."""
    own = next((change for change in standing.history if change.by_gate and change.version == number), None)
    if own is not None:
        return gate.Verdict(True, own.why)
    later = next((change for change in standing.history if change.barrier >= number), None)
    tags = standing.model.versions[number].tags
    before = later.before if later is not None else standing.champion
    held = standing.model.versions.get(before) if before is not None else None
    return gate.judge(tags, held.tags, before) if held is not None and later is not None and later.by_gate else gate.Verdict(False, "decided by hand")


def _aliases_of(model: RegisteredModel, number: int) -> list[str]:
    return sorted(word for word, version in model.aliases.items() if version == number)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
