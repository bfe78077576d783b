"""One training from the request to the response: the nine steps, and the only place that chooses concrete classes.

Invariant: `execute` never raises for bad input or a failed training; the MLflow run ends as the response says.

    response = TrainModelUseCase().execute(TrainModelRequest(task="text_classification", dataset_path="records.jsonl"))
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import mltrack
from mltrack import registry
from mltrack.checkpoints import CheckpointManager, CheckpointMetadata
from mltrack.checkpoints.state import load_model
from mltrack.config import TrainModelRequest, TrainModelResponse
from mltrack.data.check import check_data
from mltrack.data.encoding import check_truncation
from mltrack.data.readers import find_sources
from mltrack.data.requested import requested_records
from mltrack.errors import ConfigurationError, DatasetError, Interrupted, MltrackError, TrainingError
from mltrack.evaluation.outcome import write_outcome
from mltrack.hardware import choose_device, choose_precision, give_back_freed_memory
from mltrack.journal import RunDirectory, make_output_dir, write_json
from mltrack.models import resolve_model, save_pretrained
from mltrack.provenance import find_resumed, refuse_live, saved_options, undelivered
from mltrack.relay import tracking_uri_of
from mltrack.run_opening import RunOpener
from mltrack.run_record import data_figures, long_text_warnings, open_run
from mltrack.store import default_tracking_uri
from mltrack.store.connection import without_autologging
from mltrack.tasks import task_for
from mltrack.tracking import TrainingMetricsTracker, deliver_in_background
from mltrack.training import AdvancedTrainer, Listener, check_metric_name, choose_parallel, compare_decisive, decisive, narrows, use_attention
from mltrack.training_run import TrainingRun, log_what_is_known

log = logging.getLogger("mltrack")

STEPS = ("validate_request", "load_model", "load_data", "open_tracker", "open_checkpoints", "build_trainer", "train", "save_results", "respond")


AFTER_SIGNAL_S = 2.0
"""Whoever sent a signal kills soon: the checkpoint is written, and the relay delivers the rest without this process."""


class TrainModelUseCase:
    """Trains a model as a request says and keeps the run in MLflow.

    Args:
        listeners: are told of steps and evaluations.
        notice: takes one line for the user at a time: steps, warnings.
        progress: called with (what, done, total) while something long is prepared.
        on_delivery: called with delivery.json's content while the end waits for MLflow.
        stop_requested: a signal number once the training shall stop with a checkpoint.
        opener: of the MLflow run, begun already; it is used where the run belongs there, and whoever made it closes it.
    """

    def __init__(
        self,
        *,
        listeners: Sequence[Listener] = (),
        notice: Callable[[str], None] = log.info,
        progress: Callable[[str, int, int], None] | None = None,
        on_delivery: Callable[[dict[str, Any]], None] | None = None,
        stop_requested: Callable[[], int | None] = lambda: None,
        opener: RunOpener | None = None,
    ):
        self._listeners, self._notice, self._progress = listeners, notice, progress
        self._on_delivery, self._stop_requested, self._opener = on_delivery, stop_requested, opener

    def execute(self, request: TrainModelRequest) -> TrainModelResponse:
        """Run the nine steps.

        Returns:
            With `success=False`, `errors` and `exit_code` (2 bad input, 1 failed, 130 or 143 interrupted) where a step failed.
        """
        with without_autologging():
            return self._executed(TrainingRun(request))

    def _executed(self, run: TrainingRun) -> TrainModelResponse:
        try:
            for number, name in enumerate(STEPS, start=1):
                log.info("step %d of %d: %s", number, len(STEPS), name.replace("_", " "))
                getattr(self, f"_{name}")(run)
        except (Exception, KeyboardInterrupt) as error:
            self._fail(run, error)
        finally:
            if run.opener is not None:
                run.opener.close()
        return run.response

    # 1
    def _validate_request(self, run: TrainingRun) -> None:
        problems = run.request.validate()
        if problems:
            raise ConfigurationError("; ".join(problems))
        run.resumed = find_resumed(run.request, self._notice)
        if run.resumed is not None:
            if not run.request.new_run:
                refuse_live(run.resumed)
            run.request = saved_options(run.resumed, run.request)
        task = task_for(run.task)
        run.request = run.request.with_defaults(task.defaults(run.request.model_name))
        check_truncation(run.request.truncation, run.task)
        choose_parallel(run.request.parallel, choose_device(run.request.device), task, compiled=run.request.compile)
        make_output_dir(run.request.output_dir)
        registry.check_name(run.request.registered_model_name)
        for name in ("dataset_path", "validation_path"):
            path = getattr(run.request, name)
            if path is not None and path != "stdlib":
                try:
                    find_sources(path)
                except DatasetError as error:
                    raise ConfigurationError(f"{name}: {error}") from None
        if not run.request.offline:
            uri = default_tracking_uri(run.request.tracking_uri)
            run.opener = self._opener if self._opener is not None and self._opener.tracking_uri == uri else RunOpener(uri)

    # 2
    def _load_model(self, run: TrainingRun) -> None:
        """The tokenizer and what is known of the model; its weights follow once the data has told the classes."""
        request = run.request
        uri = request.tracking_uri if run.resumed is None else tracking_uri_of(run.resumed, request.tracking_uri)
        parent = run.parent = registry.find_parent(request.model_name, uri, run.resumed.path / "config.json" if run.resumed is not None else None)
        run.source = resolve_model(
            request.model_name,
            run.task,
            trust_remote_code=request.trust_remote_code,
            registry_resolver=None if parent is None else lambda _: parent.folder,
        )
        assert request.max_length is not None
        run.source.check_max_length(request.max_length)

    # 3
    def _load_data(self, run: TrainingRun) -> None:
        request, source = run.request, run.source
        assert source is not None
        assert request.max_length is not None
        found = requested_records(request, tokenizer=source.tokenizer, progress=self._part("reading"))
        run.records = found
        for line in found.lines:
            self._notice(line)
        if source.kind == "scratch":
            source.train_tokenizer(text for record in found.train for text in (record.description, record.text) if text)
        tokenizing = self._part("tokenizing")
        run.train_dataset = found.loader.dataset(found.train, source.tokenizer, progress=tokenizing)
        run.eval_dataset = found.loader.dataset(found.evaluation, source.tokenizer, progress=tokenizing)
        run.data_check = check_data(found.train, found.evaluation, group=request.group, progress=self._part("comparing"))
        for finding in run.data_check.findings:
            self._notice(finding.line)
        check_metric_name(run.eval_dataset, request.metric_name)
        mapping = run.train_dataset.label_mapping if run.task.is_classification else None
        run.model = source.build(label_mapping=mapping, max_length=request.max_length, seed=request.seed)
        run.model.config.mltrack["truncation"] = request.truncation
        device = choose_device(request.device)
        use_attention(run.model, request.attention, device, choose_precision(request.use_mixed_precision, device))
        self._load_checkpoint(run)
        run.data_figures = found.counts | run.data_check.metrics() | data_figures(run.train_dataset, run.eval_dataset)
        for line in long_text_warnings(run.train_dataset, run.eval_dataset):
            self._notice(line)
        self._notice(f"data: {len(run.train_dataset):,} training and {len(run.eval_dataset):,} evaluation records from {request.dataset_path}")

    def _load_checkpoint(self, run: TrainingRun) -> None:
        """Read the resumed run's latest checkpoint and compare it, before anything of that run is touched."""
        request, resumed = run.request, run.resumed
        if resumed is None:
            return
        assert run.train_dataset is not None
        held = CheckpointManager(
            resumed.checkpoints, metric_name=request.metric_name, mode=request.metric_mode, run_id=resumed.path.name, on_change=ignore, read_only=True
        )
        run.checkpoint, run.damaged = held.load_latest_checkpoint(), held.damaged
        if run.checkpoint is None:
            raise ConfigurationError(f"resume: {resumed.path} holds no complete checkpoint; accepted: a run with one, or resume=never")
        device = choose_device(request.device)
        replicated = choose_parallel(request.parallel, device, task_for(run.task), compiled=request.compile).replicates
        config, precision = request.training_config(), choose_precision(request.use_mixed_precision, device)
        narrow = narrows(run.model, config, replicated=replicated)
        now = decisive(config, run.train_dataset, run.model, device, precision, replicated=replicated, narrow=narrow)
        compare_decisive(run.checkpoint["extra_state"]["decisive"], now, exact=request.exact)

    # 4
    def _open_tracker(self, run: TrainingRun) -> None:
        request = run.request
        run.info = open_run(request, run.resumed, run.opener, self._notice)
        run.response.run_id = run.info.run_id or run.info.local_id
        run.response.experiment_id = run.info.experiment_id
        continues = run.resumed is not None and not request.new_run
        run.directory = run.resumed if continues else RunDirectory(Path(request.output_dir).absolute() / (run.info.run_id or run.info.local_id))
        assert run.directory is not None
        run.directory.path.mkdir(parents=True, exist_ok=True)
        restarted = not continues and run.directory.journal.exists()
        made = {"mltrack_version": mltrack.__version__, "parent": run.parent.uri if run.parent else None}
        write_json(run.directory.path / "config.json", {**made, **request.options()})
        run.tracker = TrainingMetricsTracker(
            run.directory.path, request.experiment_name, resume=continues or restarted, unbacked=True, on_disk_full=request.on_disk_full
        )
        run.tracker.describe(run.info)  # before anything is recorded that an earlier trainer's delivery could take for its own
        if restarted:  # the same MLflow run, started again before its first checkpoint: what it has recorded stands
            run.tracker.resume_from(0, 0)
        log_what_is_known(run, run.tracker)
        deliver_in_background(undelivered(request.output_dir))

    # 5
    def _open_checkpoints(self, run: TrainingRun) -> None:
        request = run.request
        assert run.directory is not None
        assert run.tracker is not None
        assert run.source is not None
        run.checkpoints = CheckpointManager(
            run.directory.checkpoints,
            max_checkpoints=request.max_checkpoints,
            metric_name=request.metric_name,
            mode=request.metric_mode,
            keep_every=request.keep_every,
            run_id=run.directory.path.name,
            on_change=run.tracker.log_checkpoints,
            tokenizer=run.source.tokenizer,
            background=True,
            when_busy=request.save_when_busy,
            on_written=partial(log_writing, run.tracker),
        )
        if run.directory is run.resumed:
            for folder in run.damaged:
                run.checkpoints.set_aside(folder)

    # 6
    def _build_trainer(self, run: TrainingRun) -> None:
        request, train_dataset = run.request, run.train_dataset
        assert run.source is not None
        assert train_dataset is not None
        assert run.model is not None
        run.trainer = AdvancedTrainer(
            run.model,
            train_dataset,
            run.eval_dataset,
            config=request.training_config(),
            tracker=run.tracker,
            checkpoint_manager=run.checkpoints,
            listeners=self._listeners,
            stop_requested=self._stop_requested,
        )
        self._resume(run)
        assert run.directory is not None
        run.began_at = run.directory.journal.stat().st_size
        self._start_delivery(run)
        trainer = run.trainer
        assert run.tracker is not None
        run.tracker.set_tags(
            {
                "mltrack.device": str(trainer.device),
                "mltrack.precision": trainer.precision.mode,
                "mltrack.parameters": sum(parameter.numel() for parameter in run.model.parameters()),
            }
        )

    def _resume(self, run: TrainingRun) -> None:
        assert run.trainer is not None
        assert run.tracker is not None
        assert run.checkpoints is not None
        if run.resumed is None:
            return
        assert run.checkpoint is not None
        changed = run.trainer.load_checkpoint(run.checkpoint)
        if run.request.new_run:
            run.trainer.forget_best()
        if changed:
            run.tracker.set_tags({"mltrack.inexact_resume": "; ".join(changed)})
        state = run.trainer.state
        run.tracker.resume_from(state.step, state.epoch)
        if not run.request.new_run:
            run.checkpoints.settle()
        self._notice(f"resumed at step {state.step:,} (epoch {state.epoch + 1}) of {run.resumed.path}")
        if state.stopped_early:
            self._notice("it had stopped early and stays stopped")
        elif state.step >= run.trainer.plan.total_steps:
            remedy = (
                f"step {state.step:,} of {run.trainer.plan.total_steps:,} is reached already: nothing is left to train; accepted: larger epochs or max_steps"
            )
            if run.request.new_run:
                raise ConfigurationError(f"resume: {remedy}")
            self._notice(remedy)

    def _start_delivery(self, run: TrainingRun) -> None:
        assert run.tracker is not None
        assert run.info is not None
        if run.opener is None:
            run.tracker.describe(run.info)
        else:
            run.tracker.follow(run.info, run.opener.become_relay)

    # 7
    def _train(self, run: TrainingRun) -> None:
        assert run.trainer is not None
        run.trainer.train()
        give_back_freed_memory()

    # 8
    def _save_results(self, run: TrainingRun) -> None:
        directory, trainer, tracker, checkpoints = run.directory, run.trainer, run.tracker, run.checkpoints
        assert directory is not None
        assert trainer is not None
        assert tracker is not None
        assert checkpoints is not None
        assert run.source is not None
        assert run.eval_dataset is not None
        best = checkpoints.load_best_checkpoint() or checkpoints.load_latest_checkpoint()
        if best is None:
            raise TrainingError(f"{checkpoints.checkpoint_dir}: no complete checkpoint is left")
        info, best_step = best["metadata"], trainer.state.best_step
        if best_step is not None and info.step != best_step:  # it could not be written, or was damaged since
            self._notice(f"model: the weights are those of step {info.step}, the best checkpoint there is; the best evaluation was at step {best_step}")
        load_model(trainer.model, best["model_state_dict"])
        save_pretrained(trainer.model, run.source.tokenizer, directory.model)
        written_files = write_outcome(trainer, directory.path, step=info.step, stop_requested=self._stop_requested)
        for path, folder in written_files:
            tracker.log_artifact(path, folder)
        for path in (tracker.export_to_json("metrics.json"), tracker.export_to_csv("metrics.csv")):
            tracker.log_artifact(path)
        name = run.request.registered_model_name or f"mltrack-{run.request.task}"
        tracker.log_model(
            step=info.step,
            path=str(info.path.relative_to(directory.path)),
            registered_name=name,
            promote=run.request.promote,
            promote_margin=run.request.promote_margin,
            metrics=info.metrics,
            tags=registry.version_tags(run.request, trainer.train_dataset, run.eval_dataset, info, mode=checkpoints.mode, parent=run.parent),
            description=registry.model_card(run.request, name, trainer.train_dataset, run.eval_dataset, info, run.response.baselines, parent=run.parent),
        )
        tracker.end("FINISHED", 0)
        run.response.success = True
        run.response.status, run.response.exit_code = "FINISHED", 0

    # 9
    def _respond(self, run: TrainingRun) -> None:
        """Fill in what the trainer found, and wait for MLflow to have it."""
        response, directory = run.response, run.directory
        if run.trainer is not None:
            results = run.trainer.results()
            for name in ("best_metric", "best_epoch", "best_step", "epochs_run", "steps_run", "stopped_early", "training_time", "tokens_per_second"):
                setattr(response, name, results[name])
        if run.checkpoints is not None:
            response.checkpoints = [
                {"step": one.step, "epoch": one.epoch, "metric_value": one.metric_value, "metrics": one.metrics, "path": str(one.path)}
                for one in run.checkpoints.list_checkpoints()
            ]
        if directory is not None:
            response.model_path = str(directory.model) if directory.model.exists() else None
            response.metrics_file = str(directory.path / "metrics.json") if (directory.path / "metrics.json").exists() else None
        if run.tracker is not None and directory is not None:
            wait_s = min(run.request.exit_wait, AFTER_SIGNAL_S) if response.status == "KILLED" else run.request.exit_wait
            delivered = run.tracker.close(exit_wait_s=wait_s, on_progress=self._on_delivery)
            response.delivery = "pending" if run.request.offline else delivered
            delivery = directory.read_delivery()
            if run.began_at is None or delivery.get("offset", 0) < run.began_at:
                return  # it tells of an earlier trainer's models
            best = delivery.get("best_model_id")
            response.model_uri = f"models:/{best}" if best else None
            response.registered_model = delivery.get("registered")

    def _fail(self, run: TrainingRun, error: BaseException) -> None:
        """End the run truthfully and say what happened."""
        response = run.response
        response.success = False
        if isinstance(error, KeyboardInterrupt):
            error = Interrupted(2)
        response.status = "KILLED" if isinstance(error, Interrupted) else "FAILED"
        response.exit_code = error.exit_code if isinstance(error, MltrackError) else 1
        response.errors = [str(error)] if isinstance(error, MltrackError) else [f"{type(error).__name__}: {error}"]
        log.debug("%s", "".join(traceback.format_exception(error)))
        if run.request.debug:
            traceback.print_exception(error)
        if run.checkpoints is not None:
            with suppress(MltrackError):
                run.checkpoints.close()
        if run.tracker is None:
            return
        if run.tracker.delivery is None and not run.request.offline:
            with suppress(MltrackError):
                self._start_delivery(run)
        with suppress(MltrackError):
            run.tracker.set_tags({"mltrack.failure": response.errors[0]})
            run.tracker.export_to_json("metrics.json")
            run.tracker.end(response.status, response.exit_code)
            self._respond(run)

    def _part(self, what: str) -> Callable[[int, int], None] | None:
        progress = self._progress
        return None if progress is None else lambda done, total: progress(what, done, total)


def log_writing(tracker: TrainingMetricsTracker, written: CheckpointMetadata, milliseconds: float) -> None:
    """What a checkpoint cost behind the training."""
    tracker.log_metrics({"checkpoint_write_ms": milliseconds, "checkpoint_bytes": written.num_bytes}, step=written.step)


def ignore(*_: Any) -> None:
    """For a checkpoint manager whose changes concern nobody."""
