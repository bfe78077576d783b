"""Publishes the kept checkpoints as logged models of the run, and deletes those that are no longer kept.

Invariant: after `reconcile` the store holds the journal's set, and after `settle` nothing else of this run, whatever a
crash left there; a registered model is never deleted. If the journal has a gap, nothing is deleted until its next whole
set. `index.json` follows within seconds, and at the end of the delivery."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mltrack.errors import CheckpointError, ConfigurationError
from mltrack.journal import JournalReader, RetainedCheckpoints, RunDirectory
from mltrack.relay.delivery_state import Progress
from mltrack.store import Store, StoreRejected, StoreUnavailable, artifacts, light_model, logged_models, translated
from mltrack.store.connection import ServersOwnFolder
from mltrack.tasks import TaskType, task_named

CHECKPOINTS = "checkpoints"
"""Folder of the run's artifacts: `index.json`, and `<step>/state/` with the checkpoint's files beside its model."""
SAVED_TAG = "mltrack.saved_ms"
"""On a logged model: when its checkpoint was saved, to distinguish checkpoints of the same step."""
INDEX_PAUSE_S = 15.0
"""Pause between two uploads of `index.json`, which lists all of them; the last one is always uploaded."""
REQUIRED = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas")

log = logging.getLogger("mltrack.relay")

Save = Callable[[], None]
Check = Callable[[], None]
Report = Callable[[str], None]


class RetainedModels:
    """The kept checkpoints of one run in one store.

    Args:
        save: writes `progress`; called after each acknowledged step.
        check: raises if another trainer has the run; called before anything is deleted.
        report: called with a line for a checkpoint that can never be published.
        upload: all; model: without the training state; none: kept checkpoints are only listed.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        directory: RunDirectory,
        progress: Progress,
        save: Save,
        check: Check,
        report: Report,
        upload: str = "all",
    ):
        self._upload = upload
        self._store, self._run_id, self._directory, self._progress, self._save, self._check = (
            store,
            run_id,
            directory,
            progress,
            save,
            check,
        )
        self._report = report
        self._staging = directory.path / ".relay"
        self._reader, self._set = JournalReader(directory.journal), RetainedCheckpoints()
        self._in_doubt = True
        """Whether the store may hold leftovers of a killed relay or of a failed attempt of this one."""
        self._index, self._index_due_s = "", 0.0

    def reconcile(self, until: float) -> None:
        """Publish the new checkpoints of the journal's set and delete those that are no longer in it.

        Args:
            until: byte of the journal after the record of the set. A checkpoint's points are sent before its model,
                which takes its times from them.
        """
        if not self._read_set(until):
            return
        kept = {str(step): one for step, one in self._set.kept.items()}
        in_doubt, self._in_doubt = self._in_doubt, True
        shutil.rmtree(self._staging, ignore_errors=True)  # of a killed relay
        for step, one in kept.items():
            if step in self._progress.models and self._progress.saved_ms.get(step) != one.get("created_ms"):
                self._prune(step)  # the same step was saved again, with a later evaluation
            if step not in self._progress.models and self._upload != "none":
                try:
                    in_doubt |= not self._publish(one)
                except ServersOwnFolder as error:
                    self._report(str(error))
                except (artifacts.UnreadableFile, CheckpointError, StoreRejected) as error:
                    self._report(f"checkpoint of step {step}: {error}")
        for step in [] if self._set.has_gap else [step for step in self._progress.models if step not in kept]:
            self._prune(step)
        self._in_doubt = in_doubt
        best = self._set.best_step
        self._progress.best_model_id = (self._progress.models.get(str(best)) or None) if best is not None else None
        if self._index_text() != self._index:
            self._progress.index_is_stored = False
        self.store_index(now=False)

    def store_index(self, *, now: bool) -> None:
        """Write `index.json` if it is out of date: at once if `now` (all of the journal is applied), else not too soon
        after the last time.
        """
        is_due = now or time.monotonic() >= self._index_due_s
        if self._progress.index_is_stored or not is_due or not self._read_set(math.inf if now else 0):
            return
        text = self._index_text()
        artifacts.put_text(self._store, self._run_id, text, f"{CHECKPOINTS}/index.json")
        self._index, self._index_due_s = text, time.monotonic() + INDEX_PAUSE_S
        self._progress.index_is_stored = True
        self._save()

    def forget_missing(self) -> bool:
        """Remove models that the store has lost from the progress, so that the next `reconcile` publishes them again;
        True if there were any.
        """
        ready = {
            row["model_id"]
            for row in logged_models.models_of_run(self._store, self._run_id)
            if row["status"] == "READY"
        }
        missing = [step for step, model_id in self._progress.models.items() if model_id and model_id not in ready]
        for step in missing:
            log.warning("the model of step %s (%s) is not in the store any more", step, self._progress.models[step])
            if self._progress.models.pop(step) == self._progress.best_model_id:
                self._progress.best_model_id = None
        return bool(missing)

    @property
    def has_leftovers(self) -> bool:
        """True if `settle` has something to do."""
        return self._may_hold_more or (not self._progress.index_is_stored and time.monotonic() >= self._index_due_s)

    @property
    def _may_hold_more(self) -> bool:
        return self._in_doubt and self._set.whole_ms is not None and not self._set.has_gap

    def settle(self) -> None:
        """Remove half-done work of this run, including that of killed relays; call it when no newer record is known."""
        self.store_index(now=False)
        if not self._may_hold_more:
            return
        for row in logged_models.models_of_run(self._store, self._run_id):
            if row["model_id"] not in self._progress.models.values():
                self._check()
                self._prune_model(row["model_id"])
        for name in artifacts.list_names(self._store, self._run_id, CHECKPOINTS):
            if name.isdigit() and int(name) not in self._set.kept:
                self._check()
                artifacts.delete(self._store, self._run_id, f"{CHECKPOINTS}/{name}")
        self._in_doubt = False

    def _read_set(self, until: float) -> bool:
        """Read up to a byte of the journal; True if a set is recorded before it."""
        if self._reader.offset < until:
            for record in self._reader.read_new():
                self._set = self._set.after(record)
                if self._reader.offset >= until:
                    break
        return self._set.whole_ms is not None

    def _index_text(self) -> str:
        index = [
            {
                **{name: one[name] for name in ("step", "epoch", "metric_name", "metric_value", "reasons")},
                "model_id": self._progress.models.get(str(step)) or None,
            }
            for step, one in self._set.kept.items()
        ]
        return json.dumps(index, indent=1)

    def _publish(self, one: Mapping[str, Any]) -> bool:
        """Store one checkpoint; False if it was deleted before all of it was stored."""
        folder = self._directory.inside(one["path"])
        for path in folder.rglob("*"):
            self._directory.inside(path)
        step = int(one["step"])
        self._progress.uploading = f"checkpoint of step {step}"
        self._save()
        try:
            for path in sorted(folder.rglob("*")):
                if not path.is_dir():
                    artifacts.check_readable(path)
            is_model = (folder / "config.json").exists() or not folder.exists()
            goes_on = is_model and self._was_begun(step, one)
            model_id = self._upload_model(folder, step, one, goes_on) if is_model else ""
            for name in light_model.files_beside_model(folder) if self._upload == "all" else ():
                below = Path(f"{CHECKPOINTS}/{step}/state", name).parent.as_posix()
                artifacts.put_file(self._store, self._run_id, folder / name, below, goes_on=goes_on, immutable=True)
        except (FileNotFoundError, artifacts.UnreadableFile) as error:
            if folder.exists():
                raise artifacts.UnreadableFile(str(error)) from error
            return False  # dropped during its upload; the next record says so
        finally:
            self._progress.uploading = None
            shutil.rmtree(self._staging, ignore_errors=True)
        self._progress.models[str(step)] = model_id
        self._progress.saved_ms[str(step)] = one.get("created_ms") or 0
        self._save()
        return True

    def _was_begun(self, step: int, one: Mapping[str, Any]) -> bool:
        """True if the store's files of this step are from this save. If they are from another one, remove them and
        return False.
        """
        held = logged_models.of_step(self._store, self._run_id, step)
        if held is not None and held["tags"].get(SAVED_TAG) == str(one.get("created_ms")):
            return True
        self._check()
        if held is not None:
            logged_models.prune(self._store, held["model_id"])
        artifacts.delete(self._store, self._run_id, f"{CHECKPOINTS}/{step}")
        return False

    def _upload_model(self, folder: Path, step: int, one: Mapping[str, Any], goes_on: bool) -> str:
        staged = self._staging / f"step-{step}"
        with translated(self._store, f"preparing the model of step {step}"):  # a full disk may have room later
            try:
                self._write_model(folder, staged, step)
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise CheckpointError(
                    f"{folder / 'config.json'}: cannot be used: {type(error).__name__}: {error}"
                ) from error
        measured_on = self._progress.evaluation_set or {}
        return logged_models.publish(
            self._store,
            self._run_id,
            staged,
            name=f"step-{step:08d}",
            step=step,
            tags={
                "mltrack.epoch": str(one["epoch"] + 1),
                "mltrack.kept_as": ",".join(one["reasons"]),
                SAVED_TAG: str(one.get("created_ms")),
            },
            goes_on=goes_on,
            immutable=True,
            metrics=one["metrics"],
            timestamp_ms=one.get("created_ms") or self._set.whole_ms or 0,
            dataset_name=measured_on.get("name"),
            dataset_digest=measured_on.get("digest"),
        )

    def _write_model(self, folder: Path, staged: Path, step: int) -> None:
        hf_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        ours = hf_config.get("mltrack", {})
        try:
            task = task_named(ours.get("task", TaskType.TEXT_CLASSIFICATION.value))
        except ConfigurationError as error:  # of a package that is not installed here
            raise StoreUnavailable(f"{error}; install the task's package, then run mltrack sync") from None
        light_model.write_model_folder(
            folder,
            staged,
            task=task.name,
            serving=task.serving,
            hf_config=hf_config,
            requirements=[f"{name}=={metadata.version(name).split('+')[0]}" for name in REQUIRED],
            source_model_name=ours.get("source_model_name") or hf_config.get("_name_or_path") or "scratch",
            metadata={"mltrack_run_id": self._run_id, "mltrack_step": step},
            immutable=True,  # a checkpoint is renamed into place and then only read or deleted
        )

    def _prune(self, step: str) -> None:
        self._check()
        if self._progress.models[step]:
            self._prune_model(self._progress.models[step])
        artifacts.delete(self._store, self._run_id, f"{CHECKPOINTS}/{step}")
        del self._progress.models[step]
        self._progress.saved_ms.pop(step, None)
        self._save()

    def _prune_model(self, model_id: str) -> None:
        if logged_models.prune(self._store, model_id) == "foreign":
            log.error("%s is not deleted: the folder that it names holds something else", model_id)
