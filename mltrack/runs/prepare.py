"""The first stage of a training: a request becomes data, a model and a checkpoint.

Invariant: nothing outside of this process is created or changed, except that a resumed run directory is locked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mltrack import registry
from mltrack.addresses import has_secrets, is_same
from mltrack.checkpoints import CheckpointManager
from mltrack.config import OPTIONS, TrainModelRequest
from mltrack.data import CodeDataset
from mltrack.data.requested import RequestedRecords, checked_paths, requested_records
from mltrack.errors import ConfigurationError
from mltrack.evaluation.evaluate import check_metric_name
from mltrack.hardware import choose_device, choose_precision, prepare_to_repeat
from mltrack.journal import JournalLock, RunDirectory, make_output_dir
from mltrack.models import ModelSource, resolve_model
from mltrack.records.check import DataReport, check_data
from mltrack.relay import tracking_uri_of
from mltrack.runs.description import data_summary, long_text_warnings, one_class_warning
from mltrack.runs.frontend import Frontend
from mltrack.runs.own_data import made_datasets
from mltrack.runs.provenance import earlier_labels, find_resumed, pinned_revision, reads_as_tokens, saved_options
from mltrack.store import credentials_place, served_uri
from mltrack.training import choose_parallel, compare_fingerprints, fingerprint_of, use_attention, uses_cls_only


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """The run that is continued or forked."""

    directory: RunDirectory
    lock: JournalLock | None
    """None for a fork, which does not change the directory."""
    checkpoint: Mapping[str, Any]
    damaged: Sequence[Path]
    """Its damaged checkpoints, which are not kept."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that a training needs before its run is opened."""

    request: TrainModelRequest
    """With the options of the resumed run and the task's defaults."""
    resumed: Resumed | None
    parent: registry.Parent | None
    source: ModelSource
    model: Any
    records: RequestedRecords | None
    """None if the caller made the data sets."""
    train_dataset: CodeDataset
    eval_dataset: CodeDataset
    data_check: DataReport | None
    """Of the records, where there are some."""
    data_summary: Mapping[str, Any]
    """What `data/data.json` says."""

    @property
    def origin_tags(self) -> dict[str, str]:
        """What the model's name referred to, as tags of run and version."""
        return {f"mltrack.{name}": value for name, value in self.source.origin.items()}

    @property
    def continued(self) -> Resumed | None:
        """The resumed run, unless this training is a fork of it."""
        return None if self.request.fork else self.resumed


def prepare(request: TrainModelRequest, frontend: Frontend) -> Prepared:
    """Steps 1 to 3. A signal interrupts them at any point.

    Raises:
        ConfigurationError, DatasetError, TrackingError, CheckpointError: the request cannot be met.
        Interrupted, KeyboardInterrupt: a signal requested a stop.
    """
    with frontend.at_once(), ExitStack() as held:
        frontend.begin("validate_request")
        request, directory, lock = _validated(request, frontend, held)
        frontend.begin("load_model")
        source, parent = _model_source(request, directory, frontend)
        frontend.begin("load_data")
        records, data_check = None, None
        if frontend.datasets is None:
            records, train_dataset, eval_dataset = _datasets(request, source, directory, frontend)
            data_check = check_data(
                records.train,
                records.evaluation,
                group=request.group,
                classes=train_dataset.task.stratified,
                progress=partial(frontend.report, "comparing"),
            )
            for finding in data_check.findings:
                frontend.notice(finding.line)
        else:
            train_dataset, eval_dataset = made_datasets(frontend.datasets, request, source)
            request = replace(
                request, dataset_path=train_dataset.source, max_length=train_dataset.max_length
            ).redacted()
        check_metric_name(eval_dataset, request.metric_name, frontend.metrics)
        model = _model(request, source, train_dataset)
        resumed = None
        if directory is not None:
            checkpoint, damaged = _checkpoint(request, directory, model, train_dataset)
            resumed = Resumed(directory=directory, lock=lock, checkpoint=checkpoint, damaged=damaged)
        for line in [
            *long_text_warnings(train_dataset, eval_dataset),
            *one_class_warning(train_dataset, eval_dataset),
        ]:
            frontend.notice(line)
        frontend.notice(
            f"data: {len(train_dataset):,} training and {len(eval_dataset):,} evaluation records from"
            f" {request.dataset_path}"
        )
        prepared = Prepared(
            request=request,
            resumed=resumed,
            parent=parent,
            source=source,
            model=model,
            records=records,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_check=data_check,
            data_summary=data_summary(
                train_dataset, eval_dataset, records.counts if records is not None else {}, data_check
            ),
        )
        held.pop_all()
    return prepared


def _validated(
    request: TrainModelRequest, frontend: Frontend, held: ExitStack
) -> tuple[TrainModelRequest, RunDirectory | None, JournalLock | None]:
    """The whole request, the resumed run directory, and its lock, which is released when `held` is closed."""
    _refuse_problems(request)
    request = request.redacted()
    directory, lock = find_resumed(request, frontend.notice) or (None, None)
    if lock is not None:
        held.callback(lock.release)
    if directory is not None:
        request = saved_options(directory, request, frontend.notice)
        _refuse_problems(request)
    prepare_to_repeat(request.deterministic)
    task = request.chosen_task()
    request = request.with_defaults(task.defaults(request.model_name))
    task.check_truncation(request.truncation)
    choose_parallel(request.parallel, choose_device(request.device), task, compiled=request.compile)
    make_output_dir(request.output_dir)
    registry.check_name(request.registered_model_name)
    if frontend.datasets is None:
        request, lines = checked_paths(request)
        for line in lines:
            frontend.notice(line)
    elif "dataset_path" in request.as_typed or request.dataset_path != OPTIONS["dataset_path"].default:
        frontend.notice(f"dataset_path={request.dataset_path} is not read: the caller makes the data sets")
    if not request.offline and has_secrets(uri := served_uri(request.tracking_uri)):
        frontend.notice(
            "the tracking URI holds credentials, which are not recorded; a later sync or resume reads"
            f" {credentials_place(uri)}"
        )
    registry_uri = os.environ.get("MLFLOW_REGISTRY_URI")
    if registry_uri and not is_same(registry_uri, request.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")):
        frontend.notice("MLFLOW_REGISTRY_URI is not used: versions are kept where the runs are")
    return request, directory, lock


def _refuse_problems(request: TrainModelRequest) -> None:
    if problems := request.validate():
        raise ConfigurationError("; ".join(problems))


def _model_source(
    request: TrainModelRequest, resumed: RunDirectory | None, frontend: Frontend
) -> tuple[ModelSource, registry.Parent | None]:
    """The model's source and tokenizer; its weights follow once the data gives the classes."""
    uri = request.tracking_uri if resumed is None else tracking_uri_of(resumed, request.tracking_uri)
    parent = registry.find_parent(request.model_name, uri, None if resumed is None else resumed.path / "config.json")
    source = resolve_model(
        request.model_name,
        request.chosen_task(),
        revision=pinned_revision(request, resumed),
        trust_remote_code=request.trust_remote_code,
        as_trained=reads_as_tokens(resumed, frontend.notice),
        registry_resolver=None if parent is None else lambda _: parent.folder,
    )
    if frontend.datasets is None:  # else the caller's data sets have their own
        source.check_max_length(request.max_length)
    return source, parent


def _datasets(
    request: TrainModelRequest, source: ModelSource, resumed: RunDirectory | None, frontend: Frontend
) -> tuple[RequestedRecords, CodeDataset, CodeDataset]:
    """The records, and both splits as token ids; a scratch model's tokenizer is trained on the training split."""
    found = requested_records(
        request,
        tokenizer=source.tokenizer,
        progress=partial(frontend.report, "reading"),
        earlier=earlier_labels(resumed),
    )
    for line in found.lines:
        frontend.notice(line)
    if source.kind == "scratch":
        source.train_tokenizer(text for record in found.train for text in (record.description, record.text) if text)
    tokenizing = partial(frontend.report, "tokenizing")
    train_dataset = found.loader.dataset(found.train, source.tokenizer, progress=tokenizing)
    eval_dataset = found.loader.dataset(found.evaluation, source.tokenizer, progress=tokenizing)
    return found, train_dataset, eval_dataset


def _model(request: TrainModelRequest, source: ModelSource, train_dataset: CodeDataset) -> Any:
    mapping = train_dataset.label_mapping if train_dataset.task.has_classes else None
    model: Any = source.build(label_mapping=mapping, max_length=request.max_length, seed=request.seed)
    model.config.mltrack |= {"truncation": request.truncation, "source_model_name": request.model_name}
    device = choose_device(request.device)
    use_attention(model, request.attention, device, choose_precision(request.precision, device))
    return model


def _checkpoint(
    request: TrainModelRequest, resumed: RunDirectory, model: Any, train_dataset: CodeDataset
) -> tuple[Mapping[str, Any], Sequence[Path]]:
    """The resumed run's latest checkpoint, compared with this training, and its damaged ones."""
    held = CheckpointManager(
        resumed.checkpoints,
        metric_name=request.metric_name,
        mode=request.metric_mode,
        run_id=resumed.path.name,
        on_change=lambda *_: None,
        read_only=True,
    )
    checkpoint = held.load_latest_checkpoint()
    if checkpoint is None:
        raise ConfigurationError(
            f"resume: {resumed.path} holds no complete checkpoint; name a run that has one, or use resume=never"
        )
    device, config = choose_device(request.device), request.training_config()
    task = train_dataset.task
    replicated = choose_parallel(request.parallel, device, task, compiled=request.compile).replicates
    precision = choose_precision(request.precision, device)
    cls_only = uses_cls_only(model, config, replicated=replicated)
    now = fingerprint_of(config, train_dataset, model, device, precision, replicated=replicated, cls_only=cls_only)
    compare_fingerprints(checkpoint["extra_state"]["decisive"], now, strict=request.strict_resume)
    return checkpoint, held.damaged
