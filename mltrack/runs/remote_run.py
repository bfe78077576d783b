"""Rebuilds a run directory from MLflow, so that a run can continue on a machine that has only its tracking server.

Invariant: a fetched file is complete and verified or does not exist under its name. Every point in MLflow is in the new
journal, marked as delivered, so nothing is sent twice and the first value of a step is kept. An interrupted fetch
continues where it stopped: what had arrived stays in `.fetching-<run id>` and is checked against the recorded hashes
before use.

    directory = fetch_run("0f3c...", tracking_uri=None, output_dir="mltrack-runs")
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mltrack
from mltrack.addresses import redacted
from mltrack.config import checked_options
from mltrack.errors import ConfigurationError, TrackingError
from mltrack.evaluation.metrics import metric_mode
from mltrack.journal import (
    KINDS,
    JournalWriter,
    RunDirectory,
    RunInfo,
    heartbeat,
    make_output_dir,
    read_json,
    records,
    write_json,
)
from mltrack.registry import connect_existing
from mltrack.relay.delivery_state import Progress
from mltrack.relay.liveness import (
    BOOT_TAG,
    HEARTBEAT_TAG,
    HOST_TAG,
    NAMESPACE_TAG,
    PID_TAG,
    STARTED_TAG,
    Life,
    Trainer,
    moves,
)
from mltrack.relay.trainers import VERSION_TAG, OwnTrainers
from mltrack.runs.remote_checkpoints import Notice, fetch_checkpoints, ready_models
from mltrack.store import Store, StoreRejected, StoreUnavailable, artifacts, fetching, metric_history, runs
from mltrack.tracking.metric_table import TIMING_WORDS

if TYPE_CHECKING:  # loads torch, which `mltrack runs` does without
    from mltrack.checkpoints import CheckpointMetadata


class UnknownRunError(ConfigurationError):
    """MLflow does not hold the run."""


ASK_AGAIN_S = 5.0
"""Between two reads of a run's heartbeat in MLflow."""

_MADE = ("mltrack_version", "parent", "model_commit", "model_digest")
"""Other names in config.json, besides the options."""


def fetch_run(
    run_id: str,
    tracking_uri: str | None,
    output_dir: str | Path,
    *,
    fork: bool = False,
    any_checkpoint: bool = True,
    notice: Notice = lambda line: None,
) -> RunDirectory:
    """Make `<output_dir>/<run id>/` from MLflow: configuration, all complete checkpoints, and every point.

    Args:
        run_id: of MLflow, or the local id of a run that was offline at first.
        tracking_uri: None means MLFLOW_TRACKING_URI, else mlflow.db in the working directory.
        fork: a new run will begin at its checkpoints, so it may still be training.
        any_checkpoint: refuse a run whose checkpoints were not uploaded on purpose.
        notice: called with a line for the user.

    Raises:
        UnknownRunError: there is no such run, or no such database.
        ConfigurationError: the run is being trained elsewhere, or mltrack did not train it.
        TrackingError: MLflow cannot be reached, or the disk is full.
    """
    store, run = look_up(run_id, tracking_uri)
    if VERSION_TAG not in run.tags:
        raise ConfigurationError(
            f"resume: run {run.run_id} in {store.shown_uri} was not trained by mltrack; name a run with the tag"
            f" {VERSION_TAG}"
        )
    if not fork:
        runs.get_active_run(store, run.run_id)
        _refuse_living(store, run, notice)
    make_output_dir(str(output_dir))
    root = Path(output_dir).absolute()
    making = root / f".fetching-{run.run_id}"
    try:
        with _locked(making, run.run_id):
            try:
                return fetching.persistently(
                    lambda: _made(store, run, making, notice, any_checkpoint=any_checkpoint), making, notice
                )
            except ConfigurationError:  # would be refused again
                shutil.rmtree(making, ignore_errors=True)
                raise
    except OSError as error:
        raise TrackingError(
            f"{root}: run {run.run_id} cannot be fetched: {error}; use an output_dir with room for its checkpoints"
        ) from error


def fetch_started_run(
    run_id: str, tracking_uri: str | None, output_dir: str | Path, *, notice: Notice = lambda line: None
) -> RunDirectory | None:
    """The same for a run that may be new: None if mltrack has recorded nothing in it, or MLflow does not answer.

    Raises:
        ConfigurationError: the run is being trained elsewhere.
    """
    try:
        store = connect_existing(tracking_uri, f"run {run_id}")
        run = runs.get_run(store, run_id)
        if run.is_deleted or VERSION_TAG not in run.tags:
            return None
    except TrackingError:
        return None
    return fetch_run(run_id, tracking_uri, output_dir, any_checkpoint=False, notice=notice)


def set_aside_if_outdated(directory: RunDirectory, tracking_uri: str) -> bool:
    """If the run was resumed elsewhere after this directory was written, rename the directory so that it no longer
    counts as a run directory, and return True; nothing in it is deleted.

    Args:
        tracking_uri: of the server to ask, with credentials.

    If the server does not answer, the directory is used unchanged.
    """
    info = directory.read_run()
    if info.run_id is None:
        return False
    try:
        store = connect_existing(tracking_uri, f"run {info.run_id}")
        run = runs.get_run(store, info.run_id)
    except TrackingError:
        return False
    if not OwnTrainers(directory).fell_behind(run, Progress.read(directory, store.tracking_uri).offset):
        return False
    number = 1
    while (aside := directory.path.with_name(f"{directory.path.name}.earlier-{number}")).exists():
        number += 1
    directory.path.rename(aside)
    (aside / directory.run_file.name).rename(aside / f"earlier-{directory.run_file.name}")
    return True


def look_up(run_id: str, tracking_uri: str | None) -> tuple[Store, runs.RunInfo]:
    """A run by its MLflow id or the local id that it was recorded under, and the store that holds it.

    Raises:
        UnknownRunError: there is no such run, or no such database.
        TrackingError: MLflow does not answer.
    """
    try:
        store = connect_existing(tracking_uri, f"run {run_id}")
        try:
            return store, runs.get_run(store, run_id)
        except StoreRejected:
            run = metric_history.run_of_local_id(store, run_id)
    except StoreUnavailable:
        raise
    except TrackingError as error:
        raise UnknownRunError(str(error)) from error
    if run is None:
        raise UnknownRunError(
            f"no run {run_id} in {store.shown_uri}; if it is in another database, set MLFLOW_TRACKING_URI or give"
            " --tracking-uri"
        )
    return store, run


def _refuse_living(store: Store, run: runs.RunInfo, notice: Notice) -> None:
    """Check a trainer on this machine by its process, one elsewhere by its heartbeat or (mltrack 0.1) by new points.

    Raises:
        ConfigurationError: it is alive.
    """
    trainer = Trainer.of_tags(run.tags)
    life = trainer.life() if trainer.machine is not None else Life.ELSEWHERE
    if run.status != "RUNNING" or life is Life.GONE:
        return

    def signs() -> object:
        now = runs.get_run(store, run.run_id)
        return now.status, now.tags.get(HEARTBEAT_TAG) or metric_history.newest_point_ms(store, run.run_id)

    if life is Life.ELSEWHERE:
        notice(
            f"run {run.run_id}: checking for {heartbeat.STANDS_STILL_S:.0f} s whether {trainer.place} still trains it"
        )
    if life is Life.ALIVE or moves(signs, ASK_AGAIN_S):
        raise ConfigurationError(
            f"cannot resume {run.run_id}: {trainer.place} is training it; wait until it has ended, or use --fork"
        )


@contextmanager
def _locked(making: Path, run_id: str) -> Iterator[None]:
    """Create the folder if it is missing, and keep other processes from fetching into it; the lock ends with its
    holder.
    """
    making.mkdir(exist_ok=True)
    lock = making / ".lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (
            lock.exists() and os.path.samestat(lock.stat(), os.fstat(descriptor))
        ):  # another process has just ended its fetch
            raise BlockingIOError
        yield
    except BlockingIOError:
        raise ConfigurationError(
            f"run {run_id} is being fetched into {making.parent} by another process; wait for it, then resume there"
        ) from None
    finally:
        os.close(descriptor)


def _made(store: Store, run: runs.RunInfo, making: Path, notice: Notice, *, any_checkpoint: bool) -> RunDirectory:
    directory = RunDirectory(making)
    notice(f"fetching run {run.run_id} from {store.shown_uri}")
    config = redacted(_config(store, run))
    write_json(making / "config.json", config)
    fetched = fetch_checkpoints(store, run, directory.checkpoints, notice)
    if any_checkpoint and not fetched and (upload := config.get("upload", "all")) != "all":
        raise ConfigurationError(
            f"cannot resume: the training state of run {run.run_id} is not in {store.shown_uri} because of --upload"
            f" {upload}; resume it in its run directory on {run.tags.get(HOST_TAG, 'the machine that trained it')}"
        )
    renamed = {
        key: name
        for key, name in runs.parsed(run.tags.get("mltrack.renamed", "{}"), dict).items()
        if isinstance(name, str)
    }
    points = metric_history.points_of(store, run.run_id)
    trainer = {
        name: run.tags[name] for name in (HOST_TAG, BOOT_TAG, NAMESPACE_TAG, PID_TAG, STARTED_TAG) if name in run.tags
    }
    directory.journal.unlink(missing_ok=True)  # of an earlier attempt
    _write_journal(directory.journal, points, renamed, trainer)
    best = _best(fetched.values(), config)
    models = ready_models(store, run.run_id)
    Progress(
        tracking_uri=store.shown_uri,
        run_id=run.run_id,
        offset=directory.journal.stat().st_size,
        sent=len(points),
        infinite=[one for one in run.tags.get("mltrack.infinite_values", "").split("; ") if one],
        renamed=renamed,
        models={str(step): models[step]["model_id"] if step in models else "" for step in fetched},
        saved_ms={str(step): one.created_ms for step, one in fetched.items()},
        best_model_id=models[best.step]["model_id"] if best is not None and best.step in models else None,
        status=run.status,
        complete=True,
    ).write(directory)
    directory.write_run(
        RunInfo(
            local_id=run.tags.get(runs.LOCAL_ID_TAG) or run.run_id,
            run_id=run.run_id,
            experiment_id=run.experiment_id,
            run_name=run.run_name or None,
            tracking_uri=store.tracking_uri,
            task=run.tags.get("mltrack.task"),
            kind=run.tags.get(runs.KIND_TAG, KINDS[0]),
            created_ms=run.start_time_ms,
            under_mlflow_run=run.tags.get("mlflow.source.type") == "PROJECT",
            mltrack_version=mltrack.__version__,
        )
    )
    name = next((one.run_id for one in fetched.values() if one.run_id), run.run_id)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ConfigurationError(f"resume: run id {name!r} in {store.shown_uri} must be an id, not a path")
    target = making.parent / name
    if target.exists():
        raise ConfigurationError(
            f"output_dir: {target} exists and is not a run directory; move it away, or use another output_dir"
        )
    (making / ".lock").unlink()
    making.rename(target)
    if name != run.run_id:
        RunDirectory(target).link(run.run_id)
    num_bytes = sum(one.num_bytes for one in fetched.values())
    notice(f"fetched {len(points):,} points and {len(fetched)} checkpoints ({num_bytes / 1e6:,.1f} MB) into {target}")
    return RunDirectory(target)


def _config(store: Store, run: runs.RunInfo) -> dict[str, Any]:
    """The options that the run was started with."""
    if "config.json" not in artifacts.list_names(store, run.run_id):
        raise ConfigurationError(
            f"resume: run {run.run_id} in {store.shown_uri} has no artifact config.json; name a run of `mltrack train`"
        )
    where = f"config.json of run {run.run_id} in {store.shown_uri}"
    with tempfile.TemporaryDirectory(prefix="mltrack-") as folder:
        content = read_json(artifacts.download(store, run.run_id, "config.json", folder))
    if content is None:
        raise ConfigurationError(f"cannot resume: {where} is not a JSON object; resume a run of `mltrack train`")
    made = {name: content[name] for name in _MADE if isinstance(content.get(name), str)}
    made |= {"class_names": True} if content.get("class_names") is True else {}
    return {**made, **checked_options(content, where)}


def _number(text: str | None, kind: type[int] | type[float]) -> Any:
    """The number in a tag; None if there is none."""
    try:
        return kind(text) if text is not None else None
    except ValueError:
        return None


def _write_journal(
    path: Path, points: Iterable[runs.Point], renamed: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    """All points as records in order of time; MLflow does not keep the epoch of points that count steps."""
    by_moment: dict[tuple[int, int, int], dict[str, float]] = {}
    for key, value, time_ms, step in points:
        name, again = renamed.get(key, key), 0
        while name in by_moment.setdefault((time_ms, step, again), {}):
            again += 1
        by_moment[time_ms, step, again][name] = value
    writer = JournalWriter(path, mltrack_version=mltrack.__version__)
    try:
        writer.append(records.tags(tags))
        for (time_ms, step, _), values in sorted(by_moment.items()):
            epochs = {name: value for name, value in values.items() if name.startswith(records.EPOCH_PREFIX)}
            steps = {name: value for name, value in values.items() if name not in epochs}
            for held, epoch in ((steps, None), (epochs, step - 1)):
                if held:
                    timing = {name: value for name, value in held.items() if any(word in name for word in TIMING_WORDS)}
                    record = records.metrics(
                        step, {name: value for name, value in held.items() if name not in timing}, timing, epoch=epoch
                    )
                    writer.append({**record, "time_ms": time_ms})
    finally:
        writer.close()


def _best(checkpoints: Iterable[CheckpointMetadata], config: Mapping[str, Any]) -> CheckpointMetadata | None:
    from mltrack.checkpoints.metadata import best_first, judged_by

    name = config.get("metric_name", "eval_loss")
    ranked = best_first([judged_by(one, name) for one in checkpoints], config.get("metric_mode") or metric_mode(name))
    return ranked[0] if ranked else None
