"""Rebuilds the checkpoints of a run from MLflow.

Invariant: a returned checkpoint matches its recorded hashes; an interrupted fetch continues where it stopped.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrack.errors import CheckpointError, ConfigurationError
from mltrack.store import Store, StoreRejected, artifacts, fetching, models_of_run, runs

if TYPE_CHECKING:  # loads torch, which `mltrack runs` does without
    from mltrack.checkpoints import CheckpointMetadata

Notice = Callable[[str], None]
FETCHES = 2
"""How often a file is fetched if it does not match its recorded hash."""


def fetch_checkpoints(store: Store, run: runs.RunInfo, folder: Path, notice: Notice) -> dict[int, CheckpointMetadata]:
    """{step: checkpoint} of the complete ones; for each other one a notice says what is wrong."""
    models = ready_models(store, run.run_id)
    folder.mkdir(exist_ok=True)
    steps = {
        f"step-{int(name):08d}": name
        for name in artifacts.list_names(store, run.run_id, "checkpoints")
        if re.fullmatch(r"[0-9]{1,18}", name)
    }
    for left in folder.iterdir():  # no longer kept since an earlier attempt
        if left.name not in steps:
            shutil.rmtree(left)
    fetched = {}
    for target, name in steps.items():
        try:
            one = _fetch_checkpoint(store, run, int(name), models.get(int(name)), folder / target)
        except (StoreRejected, CheckpointError) as error:
            notice(f"left out: the checkpoint of step {name}: {error}")
            shutil.rmtree(folder / target, ignore_errors=True)
            continue
        if one.run_id not in (run.run_id, run.tags.get(runs.LOCAL_ID_TAG)):
            raise ConfigurationError(
                f"resume: the checkpoint of step {name} belongs to run {one.run_id}, not to {run.run_id}; name a"
                " run that holds its own checkpoints"
            )
        fetched[one.step] = one
    return fetched


def ready_models(store: Store, run_id: str) -> dict[int, dict[str, Any]]:
    """{step: row} of the run's complete logged models."""
    return {row["step"]: row for row in models_of_run(store, run_id) if row["status"] == "READY"}


def _fetch_checkpoint(
    store: Store, run: runs.RunInfo, step: int, model: Mapping[str, Any] | None, target: Path
) -> CheckpointMetadata:
    """One checkpoint from the run's artifacts and its logged model; files of an earlier attempt that match their hashes
    are kept.

    Raises:
        CheckpointError: it is not complete.
    """
    from mltrack.checkpoints import directory

    target.mkdir(exist_ok=True)
    state = f"checkpoints/{step}/state"
    beside = fetching.listed(store, run.artifact_uri, state)
    if directory.METADATA not in beside:
        raise CheckpointError(f"{state} in {store.shown_uri} has no {directory.METADATA}: its upload did not finish")
    (target / directory.METADATA).unlink(missing_ok=True)
    fetching.fetch(store, run.artifact_uri, {directory.METADATA: beside[directory.METADATA]}, target, path=state)
    info = directory.read_metadata(target)
    if info is None or info.step != step:
        raise CheckpointError(f"{state}/{directory.METADATA} in {store.shown_uri} cannot be read")
    wrong = directory.damaged(info, info.files)
    for _ in range(FETCHES):
        names = [name for name in wrong if directory.is_inside(name)]
        for name in names:
            (target / name).unlink(missing_ok=True)
        fetching.fetch(
            store, run.artifact_uri, {name: beside[name] for name in names if name in beside}, target, path=state
        )
        if model is not None and set(names) - set(beside):
            held = fetching.listed(store, model["artifact_location"])
            weights = {
                name: held[name] for name in names if name in held and name not in beside and Path(name).name == name
            }
            fetching.fetch(store, model["artifact_location"], weights, target)
        wrong = directory.damaged(info, wrong)
    for path in target.iterdir():  # without a hash, and all files in a checkpoint are uploaded with it
        if path.name != directory.METADATA and not any(Path(name).parts[0] == path.name for name in info.files):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    fetching.drop_parts(target)
    problems = [*directory.what_is_not_named(info), *wrong.values()]
    if problems:
        raise CheckpointError("; ".join(problems))
    return info
