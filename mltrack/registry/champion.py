"""Which version is champion, and why: the aliases follow from the history and the versions.

Invariant: MLflow has no compare-and-set, so no decision depends on an alias. A version carries its intent
(`mltrack.promote` and its metrics) from its creation. The champion is the result of one pass over all versions after
the last decision of a person, and the writer of an alias reads again until alias and result agree. So two relays reach
the same result in whatever order their requests arrive. A tag records how far the pass has come, and only newer
versions are read: a decision costs the same at the tenth version and at the ten-thousandth. The tag is no lock: an
older one, written late, makes other processes read more and decide the same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mltrack.errors import TrackingError
from mltrack.journal.records import now_ms
from mltrack.registry import gate
from mltrack.registry.history import (
    SETTLED,
    Change,
    Settled,
    champions_in_turn,
    last_decision,
    new_mark,
    outdated,
    read_history,
)
from mltrack.registry.loading import connect_existing
from mltrack.store import Store, model_tags, registry
from mltrack.store.model_tags import RegisteredModel, RegisteredVersion

CHAMPION, CHALLENGER = "champion", "challenger"
OUTSIDE = "outside"
MAX_ROUNDS = 50
IN_FLIGHT_MS = 3_600_000
"""How long a version without a decision may belong to a process that is still writing."""
SETTLING_MS = 10_000
"""How long an alias may lag behind the recorded decision of a person."""
SETTLED_AT_ONCE = 10
"""How many versions are read again before a tag marks them as settled."""
MAX_NAMED = 10
"""How many versions an error names."""
VERSION_IN_CARD = "{version}"
"""Placeholder in a model card for the number that the registry assigns."""


@dataclass(frozen=True)
class Outcome:
    """The result for a version."""

    version: int
    aliases: list[str]
    decision: str
    command: str | None = None
    """If the gate cannot tell: the command that decides."""


@dataclass
class Standing:
    """The registered model at one moment, and which version should be its champion."""

    model: RegisteredModel
    """With the versions that are not settled and the version of the last change."""
    history: list[Change]
    settled: Settled = field(default_factory=Settled)
    read_above: int = 0
    """Versions up to this number are settled and were not read."""
    champion: int | None = None
    verdicts: dict[int, gate.Verdict] = field(default_factory=dict)
    """Of the versions after the last decision."""
    unwritten: list[Change] = field(default_factory=list)
    """Changes that follow from the versions but are not in the tags yet."""

    @property
    def newest(self) -> int:
        """The highest version number that was ever read."""
        return max([*self.model.versions, *(change.barrier for change in self.history), self.read_above])

    @property
    def mark(self) -> str:
        """The mark of the last decision by a person."""
        decided = last_decision(self.history)
        return decided.mark if decided is not None else ""

    @property
    def settled_now(self) -> Settled:
        """Up to the last version before which each has its decision, or is too old for one to be written still."""
        number, since = self.read_above, now_ms() - IN_FLIGHT_MS
        for version in sorted(self.model.versions.values(), key=lambda one: one.number):
            if _is_open(version) and version.created_ms > since:
                break
            number = max(number, version.number)
        return Settled(number, self.mark)


def read_standing(connected: Store, name: str) -> Standing:
    """Read the model and judge the versions that are not settled."""
    head = model_tags.read_head(connected, name) or RegisteredModel(name=name)
    standing = Standing(head, read_history(head.tags), Settled.read(head.tags))
    last = standing.history[-1] if standing.history else None
    judged = last.barrier if last is not None else 0
    if standing.settled.mark == standing.mark:
        standing.read_above = standing.settled.number
        judged = max(judged, standing.settled.number)
    else:  # a person has decided since
        standing.read_above = min(judged, standing.settled.number)
    versions = model_tags.read_versions(connected, name, above=standing.read_above)
    if last is not None and last.version is not None:
        held = versions.get(last.version) or model_tags.read_version(connected, name, last.version)
        if held is not None:
            versions[last.version], standing.champion = held, last.version
    standing.model = replace(head, versions=versions)
    for number, version in sorted(versions.items()):
        if gate.POLICY not in version.tags or number <= judged:
            continue
        present = versions[standing.champion].tags if standing.champion is not None else None
        verdict = gate.judge(version.tags, present, standing.champion)
        standing.verdicts[number] = verdict
        if verdict.promoted:
            standing.unwritten.append(
                Change(
                    version=number,
                    before=standing.champion,
                    why=verdict.why,
                    kind="gate",
                    barrier=number,
                    at_ms=version.created_ms,
                    mark=standing.mark,
                )
            )
            standing.champion = number
    return standing


def settle(connected: Store, name: str) -> Standing:
    """Write what follows from the versions and the last decision, until the alias agrees.

    Raises:
        TrackingError: other processes keep moving the alias.
    """
    for _ in range(MAX_ROUNDS):
        standing = read_standing(connected, name)
        for change in standing.unwritten:
            model_tags.set_model_tag(connected, name, change.key, change.text)
        if standing.model.aliases.get(CHAMPION) == standing.champion:
            for change in outdated(standing.history):
                model_tags.drop_model_tag(connected, name, change.key)
            _note_settled(connected, standing)
            return standing
        if standing.champion is None:
            registry.delete_alias(connected, name, CHAMPION)
        else:
            registry.set_alias(connected, name, CHAMPION, standing.champion)
    raise TrackingError(f"{name}@{CHAMPION} in {connected.shown_uri}: other processes keep moving it; try again")


def register(connected: Store, name: str, model_id: str, tags: Mapping[str, Any], description: str) -> Outcome:
    """Register the finished run's best as a version with the alias challenger, and judge it against the champion. A
    second call changes nothing.

    Args:
        connected: the store.
        name: of the registered model.
        model_id: the logged model, READY.
        tags: as `version_tags` makes them; other processes read the intent from them.
        description: Markdown; "{version}" in it is replaced by the number.
    """
    _adopt(connected, name)
    number = int(registry.register(connected, name, model_id, tags=tags, description=description))
    version = _version_there(connected, name, number)
    written = version.tags
    if gate.DECISION in written:
        return Outcome(number, list(version.aliases), written[gate.DECISION], gate.open_command(name, number, written))
    if VERSION_IN_CARD in description:
        model_tags.describe_version(connected, name, number, description.replace(VERSION_IN_CARD, str(number)))
    _challenge(connected, name, number)
    standing = settle(connected, name)
    verdict = standing.verdicts.get(number) or _past_verdict(connected, standing, version)
    decision = f"{'champion' if verdict.promoted else 'challenger'}: {verdict.why}"
    command = gate.deciding_command(name, number, written) if verdict.open else None
    model_tags.set_version_tags(
        connected, name, number, {**({gate.DECIDE: command} if command else {}), gate.DECISION: decision}
    )
    return Outcome(number, list(_version_there(connected, name, number).aliases), decision, command)


def promote(
    name: str, version: str | int | None = None, tracking_uri: str | None = None, *, alias: str = CHAMPION
) -> str | None:
    """Move an alias by hand and return the version that had it before.

    Args:
        name: of the registered model.
        version: its number; None: the challenger.
        tracking_uri: of the store; None: the default one.
        alias: champion, or any other.

    Raises:
        TrackingError: no such model or version.
    """
    connected = connect_existing(tracking_uri, name)
    model = existing_model(connected, name)
    number = existing_version(
        connected, model, model.aliases.get(CHALLENGER, "") if version is None else version
    ).number
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
    """Make the previous champion champion again; another call goes further back.

    Raises:
        TrackingError: no such model, or no earlier champion still exists.
    """
    connected = connect_existing(tracking_uri, name)
    existing_model(connected, name)
    _adopt(connected, name)
    standing = settle(connected, name)
    stack = [version for version in champions_in_turn(standing.history) if version != standing.champion]
    earlier = next(
        (version for version in reversed(stack) if model_tags.read_version(connected, name, version) is not None), None
    )
    if earlier is None:
        held = f"version {standing.champion}" if standing.champion else "no version"
        raise TrackingError(
            f"{name}: {held} is champion and none was before it; use mltrack models promote {shlex.quote(name)}"
            " --version N"
        )
    return decide(connected, name, earlier, kind="rollback", why=f"back from version {standing.champion}")


def decide(connected: Store, name: str, version: int | None, *, kind: str, why: str) -> Change:
    """Record a person's decision and move the alias; an earlier change of it by other means is recorded first."""
    if kind != OUTSIDE:
        _adopt(connected, name)
    standing = read_standing(connected, name)
    at_ms = max(now_ms(), *(change.at_ms + 1 for change in standing.history), 0)
    before = standing.champion if kind == OUTSIDE else standing.model.aliases.get(CHAMPION)
    change = Change(
        version=version, before=before, why=why, kind=kind, barrier=standing.newest, at_ms=at_ms, mark=new_mark(at_ms)
    )
    model_tags.set_model_tag(connected, name, change.key, change.text)
    settle(connected, name)
    return change


def existing_model(connected: Store, name: str) -> RegisteredModel:
    """The model, without its versions.

    Raises:
        TrackingError: no model of that name has a version; the message names the existing ones.
    """
    model = model_tags.read_head(connected, name)
    if model is None or not model_tags.newest_numbers(connected, name, 1):
        known = ", ".join(row["name"] for row in registry.list_models(connected)[:10]) or "none"
        raise TrackingError(
            f"no {name} in {connected.shown_uri}; models there: {known}; if it is in another database, set"
            " MLFLOW_TRACKING_URI or give --tracking-uri"
        )
    return model


def existing_version(connected: Store, model: RegisteredModel, version: str | int) -> RegisteredVersion:
    """The version of that number.

    Raises:
        TrackingError: there is none; the message names the newest ones.
    """
    text = str(version)
    found = model_tags.read_version(connected, model.name, int(text)) if text.isascii() and text.isdecimal() else None
    if found is None:
        raise TrackingError(f"{model.name} has no version '{version}'; it has {versions_there(connected, model.name)}")
    return found


def versions_there(connected: Store, name: str) -> str:
    """Numbers of the newest versions, for messages."""
    numbers = model_tags.newest_numbers(connected, name, MAX_NAMED + 1)
    return ("... " if len(numbers) > MAX_NAMED else "") + ", ".join(
        str(number) for number in reversed(numbers[:MAX_NAMED])
    )


def _adopt(connected: Store, name: str) -> None:
    """Record a change of the alias by other means, such as MLflow's page, as a decision like any other.

    While a run is registering, an alias that differs may be about to be moved, unless it has not been on this version
    lately."""
    standing = read_standing(connected, name)
    held = standing.model.aliases.get(CHAMPION)
    if held == standing.champion:
        _note_settled(connected, standing)
        return
    if held is not None and model_tags.read_version(connected, name, held) is None:
        return
    decided = last_decision(standing.history)
    if decided is not None and held == decided.before and decided.at_ms > now_ms() - SETTLING_MS:
        return  # the process that decided is about to move it
    since = now_ms() - IN_FLIGHT_MS
    registering = any(_is_open(one) and one.created_ms > since for one in standing.model.versions.values())
    lately = {
        version
        for change in (*standing.history, *standing.unwritten)
        if change.at_ms > since
        for version in (change.before, change.version)
    }
    if registering and held in lately:
        return
    decide(connected, name, held, kind=OUTSIDE, why="the alias was moved by other means")


def _note_settled(connected: Store, standing: Standing) -> None:
    """Record up to which version none must be read again, once everything that follows from them is written."""
    now = standing.settled_now
    if not standing.unwritten and now.number >= standing.read_above + SETTLED_AT_ONCE:
        model_tags.set_model_tag(connected, standing.model.name, SETTLED, now.text)


def _challenge(connected: Store, name: str, number: int) -> None:
    """Set the alias challenger on the newest version that a run has registered."""
    for _ in range(MAX_ROUNDS):
        later = model_tags.read_versions(connected, name, above=number)
        number = max([number, *(other.number for other in later.values() if gate.POLICY in other.tags)])
        if CHALLENGER in _version_there(connected, name, number).aliases:
            return
        registry.set_alias(connected, name, CHALLENGER, number)
    raise TrackingError(f"{name}@{CHALLENGER} in {connected.shown_uri}: other processes keep moving it; try again")


def _past_verdict(connected: Store, standing: Standing, version: RegisteredVersion) -> gate.Verdict:
    """The verdict on a version that other processes have decided on since."""
    own = next((change for change in standing.history if change.by_gate and change.version == version.number), None)
    if own is not None:
        return gate.Verdict(True, own.why)
    later = next((change for change in standing.history if change.barrier >= version.number), None)
    before = later.before if later is not None else standing.champion
    held = model_tags.read_version(connected, standing.model.name, before) if before is not None else None
    if held is None or (later is not None and not later.by_gate):
        return gate.Verdict(False, "decided by hand")
    return gate.judge(version.tags, held.tags, before)


def _version_there(connected: Store, name: str, number: int) -> RegisteredVersion:
    """A version that existed a moment ago.

    Raises:
        TrackingError: it has been deleted since.
    """
    found = model_tags.read_version(connected, name, number)
    if found is None:
        raise TrackingError(f"{name}/{number} in {connected.shown_uri} was deleted while it was registered")
    return found


def _is_open(version: RegisteredVersion) -> bool:
    """True if a run registered it and has not recorded its decision yet."""
    return gate.POLICY in version.tags and gate.DECISION not in version.tags
