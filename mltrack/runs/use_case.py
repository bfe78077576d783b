"""One training from the request to the response: the nine steps, and the only place that chooses concrete classes.

Invariant: `execute` never raises for bad input or a failed training; the MLflow run ends as the response says.

    response = TrainModelUseCase().execute(TrainModelRequest(task="text_classification", dataset_path="records.jsonl"))
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import mltrack
from mltrack import registry
from mltrack.addresses import has_secrets, redact
from mltrack.checkpoints import CheckpointManager
from mltrack.config import TrainModelRequest, TrainModelResponse
from mltrack.data.check import check_data
from mltrack.data.encoding import check_truncation
from mltrack.data.requested import checked_paths, requested_records
from mltrack.errors import ConfigurationError, Interrupted, MltrackError, TrackingError, alone, described
from mltrack.hardware import choose_device, choose_precision, give_back_freed_memory, prepare_to_repeat
from mltrack.journal import RunDirectory, make_output_dir, write_json
from mltrack.models import resolve_model
from mltrack.relay import tracking_uri_of
from mltrack.runs import results
from mltrack.runs.provenance import (
    earlier_labels,
    find_resumed,
    reads_as_tokens,
    saved_options,
    take,
    take_over,
    undelivered,
)
from mltrack.runs.record import data_figures, describe_run, long_text_warnings
from mltrack.runs.training_run import TrainingRun, go_on_from_checkpoint, log_what_is_known, log_writing
from mltrack.shortage import shortage_of
from mltrack.store import credentials_place, default_tracking_uri
from mltrack.tasks import task_for
from mltrack.tracking import TrainingMetricsTracker, deliver_in_background
from mltrack.training import (
    AdvancedTrainer,
    Listener,
    check_metric_name,
    choose_parallel,
    compare_decisive,
    decisive,
    narrows,
    use_attention,
)

log = logging.getLogger("mltrack")

STEPS = (
    "validate_request",
    "load_model",
    "load_data",
    "open_tracker",
    "open_checkpoints",
    "build_trainer",
    "train",
    "save_results",
    "respond",
)


class TrainModelUseCase:
    """Trains a model as a request says and keeps the run in MLflow.

    Args:
        listeners: are told of steps and evaluations.
        notice: takes one line for the user at a time: steps, warnings.
        progress: called with (what, done, total) while something long is prepared.
        on_delivery: called with delivery.json's content while the end waits for MLflow.
        stop_requested: asked between steps and in what takes long; a signal number ends the training, in the loop with
            a checkpoint.
        at_once: inside it KeyboardInterrupt may be raised at any point: nothing is open that it would leave half done.
    """

    def __init__(
        self,
        *,
        listeners: Sequence[Listener] = (),
        notice: Callable[[str], None] = log.info,
        progress: Callable[[str, int, int], None] | None = None,
        on_delivery: Callable[[dict[str, Any]], None] | None = None,
        stop_requested: Callable[[], int | None] = lambda: None,
        at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self._listeners, self._notice, self._progress = listeners, notice, progress
        self._on_delivery, self._stop_requested, self._at_once = on_delivery, stop_requested, at_once

    def execute(self, request: TrainModelRequest) -> TrainModelResponse:
        """Run the nine steps.

        Returns:
            With `success=False`, `errors` and `exit_code` (2 bad input, 1 failed, 128 + signal) where a step failed.
        """
        run = TrainingRun(request, at_once=self._at_once)
        warnings = run.response.warnings
        try:
            for name in STEPS[:-1]:
                self._take(name, run)
        except BaseException as error:  # whatever it is, the run must not be left without its end
            with alone(warnings, "the failure was not handled to its end"):
                self._fail(run, error)
        with alone(warnings, "the response is not complete"):
            self._take(STEPS[-1], run)
        if run.lock is not None:
            run.lock.release()
        return run.response

    def _take(self, name: str, run: TrainingRun) -> None:
        log.info("step %d of %d: %s", STEPS.index(name) + 1, len(STEPS), name.replace("_", " "))
        if name in STEPS[:6]:
            self._check()
        with self._at_once() if name in STEPS[:3] else nullcontext():
            getattr(self, f"_{name}")(run)

    # 1
    def _validate_request(self, run: TrainingRun) -> None:
        if problems := run.request.validate():
            raise ConfigurationError("; ".join(problems))
        run.request = run.request.redacted()
        found = find_resumed(run.request, self._notice)
        if found is not None:
            run.resumed, run.lock = found
            run.request = saved_options(run.resumed, run.request, self._notice)
            if problems := run.request.validate():
                raise ConfigurationError("; ".join(problems))
        prepare_to_repeat(run.request.deterministic)
        task = task_for(run.task)
        run.request = run.request.with_defaults(task.defaults(run.request.model_name))
        check_truncation(run.request.truncation, run.task)
        choose_parallel(run.request.parallel, choose_device(run.request.device), task, compiled=run.request.compile)
        make_output_dir(run.request.output_dir)
        registry.check_name(run.request.registered_model_name)
        run.request, lines = checked_paths(run.request)
        for line in lines:
            self._notice(line)
        if not run.request.offline:
            uri = default_tracking_uri(run.request.tracking_uri)
            if has_secrets(uri):
                self._notice(
                    "the tracking URI holds credentials, which are not recorded; a later sync or resume reads"
                    f" {credentials_place(uri)}"
                )

    # 2
    def _load_model(self, run: TrainingRun) -> None:
        """The tokenizer and what is known of the model; its weights follow once the data has told the classes."""
        request = run.request
        uri = request.tracking_uri if run.resumed is None else tracking_uri_of(run.resumed, request.tracking_uri)
        parent = run.parent = registry.find_parent(
            request.model_name, uri, run.resumed.path / "config.json" if run.resumed is not None else None
        )
        run.source = resolve_model(
            request.model_name,
            run.task,
            trust_remote_code=request.trust_remote_code,
            as_trained=reads_as_tokens(run.resumed, self._notice),
            registry_resolver=None if parent is None else lambda _: parent.folder,
        )
        run.source.check_max_length(request.max_length)

    # 3
    def _load_data(self, run: TrainingRun) -> None:
        request, source = run.request, run.source
        assert source is not None
        found = requested_records(
            request,
            tokenizer=source.tokenizer,
            progress=partial(self._report, "reading"),
            earlier=earlier_labels(run.resumed),
        )
        run.records = found
        for line in found.lines:
            self._notice(line)
        if source.kind == "scratch":
            source.train_tokenizer(text for record in found.train for text in (record.description, record.text) if text)
        tokenizing = partial(self._report, "tokenizing")
        run.train_dataset = found.loader.dataset(found.train, source.tokenizer, progress=tokenizing)
        run.eval_dataset = found.loader.dataset(found.evaluation, source.tokenizer, progress=tokenizing)
        run.data_check = check_data(
            found.train, found.evaluation, group=request.group, progress=partial(self._report, "comparing")
        )
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
        self._notice(
            f"data: {len(run.train_dataset):,} training and {len(run.eval_dataset):,} evaluation records from"
            f" {request.dataset_path}"
        )

    def _load_checkpoint(self, run: TrainingRun) -> None:
        """Read the resumed run's latest checkpoint and compare it, before anything of that run is touched."""
        request, resumed = run.request, run.resumed
        if resumed is None:
            return
        assert run.train_dataset is not None
        held = CheckpointManager(
            resumed.checkpoints,
            metric_name=request.metric_name,
            mode=request.metric_mode,
            run_id=resumed.path.name,
            on_change=lambda *_: None,
            read_only=True,
        )
        run.checkpoint, run.damaged = held.load_latest_checkpoint(), held.damaged
        if run.checkpoint is None:
            raise ConfigurationError(
                f"resume: {resumed.path} holds no complete checkpoint; accepted: a run with one, or resume=never"
            )
        device = choose_device(request.device)
        replicated = choose_parallel(request.parallel, device, task_for(run.task), compiled=request.compile).replicates
        config, precision = request.training_config(), choose_precision(request.use_mixed_precision, device)
        narrow = narrows(run.model, config, replicated=replicated)
        now = decisive(config, run.train_dataset, run.model, device, precision, replicated=replicated, narrow=narrow)
        compare_decisive(run.checkpoint["extra_state"]["decisive"], now, exact=request.exact)

    # 4
    def _open_tracker(self, run: TrainingRun) -> None:
        request = run.request
        run.info = describe_run(request, run.resumed, self._notice)
        take(run.info.run_id)
        run.response.run_id = run.info.run_id or run.info.local_id
        continues = run.resumed is not None and not request.new_run
        run.directory = (
            run.resumed
            if continues
            else RunDirectory(Path(request.output_dir).absolute() / (run.info.run_id or run.info.local_id))
        )
        assert run.directory is not None
        restarted = not continues and run.directory.journal.exists()
        with self._at_once():
            run.lock = run.lock or take_over(run.directory, force=request.force, notice=self._notice)
        named = run.records is None or run.records.loader.class_names
        made = {
            "mltrack_version": mltrack.__version__,
            "parent": run.parent.uri if run.parent else None,
            "class_names": named,
        }
        write_json(run.directory.path / "config.json", {**made, **request.options()})
        run.tracker = TrainingMetricsTracker(
            run.directory.path,
            request.experiment_name,
            resume=continues or restarted,
            on_disk_full=request.on_disk_full,
            presumed_failed=True,
            run=run.info,
            lock=run.lock,
        )
        run.lock = None
        if restarted:  # the same MLflow run, started again before its first checkpoint: what it has recorded stands
            run.tracker.resume_from(0, 0)
        log_what_is_known(run, run.tracker)
        deliver_in_background(undelivered(request.output_dir), request.tracking_uri)

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
        assert run.tracker is not None
        run.trainer = AdvancedTrainer(
            run.model,
            train_dataset,
            run.eval_dataset,
            config=request.training_config(),
            tracker=run.tracker,
            checkpoint_manager=run.checkpoints,
            listeners=self._listeners,
            stop_requested=partial(self._stop, run.tracker),
        )
        go_on_from_checkpoint(run, self._notice)
        assert run.directory is not None
        run.began_at = run.directory.journal.stat().st_size
        if not request.offline:
            run.tracker.start_delivery()
        trainer = run.trainer
        run.tracker.set_tags(
            {
                "mltrack.device": str(trainer.device),
                "mltrack.precision": trainer.precision.mode,
                "mltrack.parameters": sum(parameter.numel() for parameter in run.model.parameters()),
            }
        )

    def _stop(self, tracker: TrainingMetricsTracker) -> int | None:
        """The signal that asked for a stop, if any.

        Raises:
            TrackingError: MLflow refuses the run itself.
        """
        if tracker.rejected is not None:
            raise TrackingError(tracker.rejected)
        return self._stop_requested()

    def _check(self) -> None:
        if (signal_number := self._stop_requested()) is not None:
            raise Interrupted(signal_number)

    # 7
    def _train(self, run: TrainingRun) -> None:
        assert run.trainer is not None
        run.trainer.train()
        give_back_freed_memory()

    # 8
    def _save_results(self, run: TrainingRun) -> None:
        """The model and its registration; then the training has finished, and what describes it is best effort."""
        info = results.save_best(run, self._notice)
        results.register(run, info)
        results.describe(run, info, self._stop_requested)

    # 9
    def _respond(self, run: TrainingRun) -> None:
        """Fill in what the trainer found, end the run, and wait for MLflow to have it; each of them as far as it can be
        done.
        """
        response, directory, tracker, warnings = run.response, run.directory, run.tracker, run.response.warnings
        with alone(warnings, "the results are not complete"):
            if run.trainer is not None:
                found = run.trainer.results()
                for name in (
                    "best_metric",
                    "best_epoch",
                    "best_step",
                    "epochs_run",
                    "steps_run",
                    "stopped_early",
                    "training_time",
                    "tokens_per_second",
                ):
                    setattr(response, name, found[name])
            if run.checkpoints is not None:
                response.checkpoints = [
                    {
                        "step": one.step,
                        "epoch": one.epoch,
                        "metric_value": one.metric_value,
                        "metrics": one.metrics,
                        "path": str(one.path),
                    }
                    for one in run.checkpoints.list_checkpoints()
                ]
        if directory is not None:
            response.model_path = str(directory.model) if directory.model.exists() else None
            response.metrics_file = (
                str(directory.path / "metrics.json") if (directory.path / "metrics.json").is_file() else None
            )
        if directory is None or tracker is None:
            return
        with alone(warnings, "the end of the run could not be recorded"):
            if warnings and response.success:
                tracker.set_tags({"mltrack.warnings": "; ".join(warnings)})
            tracker.end(response.status, response.exit_code)
            stopped = response.status == "KILLED" or self._stop_requested() is not None
            response.delivery = results.delivered(
                run, stopped=stopped, stop_requested=self._stop_requested, on_progress=self._on_delivery
            )
        delivery, info = directory.read_delivery(), directory.read_run()
        response.run_id, response.experiment_id = info.run_id or info.local_id, info.experiment_id
        if response.success and tracker.rejected is not None:
            response.success, response.exit_code, response.errors = False, TrackingError.exit_code, [tracker.rejected]
        if delivery.get("opened_for") == info.trainer_started:
            warnings += delivery.get("notices", [])
        if run.began_at is None or delivery.get("offset", 0) < run.began_at:
            return  # it tells of an earlier trainer's models
        best = delivery.get("best_model_id")
        response.model_uri = f"models:/{best}" if best else None
        response.registered_model = delivery.get("registered")

    def _fail(self, run: TrainingRun, error: BaseException) -> None:
        """Record first how the run has ended; what else is done may fail, step by step, and changes nothing of that."""
        response, tracker, warnings = run.response, run.tracker, run.response.warnings
        if response.success:
            warnings.append(described(error))
            return
        if isinstance(error, KeyboardInterrupt):
            error = Interrupted(self._stop_requested() or signal.SIGINT)
        error = shortage_of(error) or error
        response.status = "KILLED" if isinstance(error, Interrupted) else "FAILED"
        response.exit_code = error.exit_code if isinstance(error, MltrackError) else 1
        response.errors = [redact(described(error))]
        if tracker is not None:
            with suppress(BaseException):  # a run that says nothing has FAILED
                tracker.settle(response.status, response.exit_code)
            with suppress(BaseException):
                tracker.set_tags({"mltrack.failure": response.errors[0]})
        with alone(warnings, "the traceback could not be shown"):
            log.debug("%s", trace := redact("".join(traceback.format_exception(error))))
            if run.request.debug:
                sys.stderr.write(trace)
        with alone(warnings, "the checkpoint in flight was not saved"):
            if run.checkpoints is not None:
                run.checkpoints.close()
        if tracker is None:
            return
        with alone(warnings, "delivery"):
            if tracker.delivery is None and not run.request.offline:
                tracker.start_delivery()
        with alone(warnings, "metrics.json could not be written"):
            tracker.export_to_json("metrics.json")

    def _report(self, what: str, done: int, total: int) -> None:
        self._check()
        if self._progress is not None:
            self._progress(what, done, total)
