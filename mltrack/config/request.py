"""What a user asks for (`TrainModelRequest`), what the trainer needs of it (`TrainingConfig`), what comes back
(`TrainModelResponse`).

Invariant: a `TrainingConfig` that exists is valid; a request may be wrong in many places and `validate()` tells them
all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from mltrack.addresses import redacted, without_secrets
from mltrack.config.options import OPTIONS, setting
from mltrack.config.speedups import Speedups
from mltrack.errors import ConfigurationError, printable


class TaskType(StrEnum):
    """The three tasks."""

    TEXT_CLASSIFICATION = "text_classification"
    CODE_GENERATION = "code_generation"
    SECURITY_CLASSIFICATION = "security_classification"

    @property
    def is_classification(self) -> bool:
        """True where a record has a label, False where it has a completion."""
        return self is not TaskType.CODE_GENERATION


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The options of `AdvancedTrainer`; their meanings and ranges are those of `OPTIONS` (`num_epochs` is `epochs`
    there).

    Raises:
        ConfigurationError: a value outside of what is accepted, at construction.
    """

    num_epochs: int = 3
    max_steps: int | None = setting("max_steps")
    batch_size: int = 8
    eval_batch_size: int | None = setting("eval_batch_size")
    learning_rate: float = 2e-5
    weight_decay: float = setting("weight_decay")
    warmup_steps: int | None = setting("warmup_steps")
    warmup_ratio: float = setting("warmup_ratio")
    max_grad_norm: float = setting("max_grad_norm")
    gradient_accumulation_steps: int = setting("gradient_accumulation_steps")
    max_batch_tokens: int | None = setting("max_batch_tokens")
    packing: bool = setting("packing")
    gradient_checkpointing: bool = setting("gradient_checkpointing")
    use_mixed_precision: str | bool = setting("use_mixed_precision")
    early_stopping_patience: int | None = setting("early_stopping_patience")
    early_stopping_min_delta: float = setting("early_stopping_min_delta")
    metric_name: str = setting("metric_name")
    metric_mode: str | None = setting("metric_mode")
    eval_every: int | str = setting("eval_every")
    save_every: int | str = setting("save_every")
    max_checkpoints: int = setting("max_checkpoints")
    keep_every: int | None = setting("keep_every")
    device: str = setting("device")
    parallel: str = setting("parallel")
    compile: bool = setting("compile")
    speedups: str | Mapping[str, str] | None = setting("speedups")
    num_workers: int = setting("num_workers")
    seed: int = setting("seed")
    deterministic: bool = setting("deterministic")
    class_weights: str = setting("class_weights")
    on_non_finite: str = setting("on_non_finite")
    on_disk_full: str = setting("on_disk_full")
    exact: bool = setting("exact")

    def __post_init__(self) -> None:
        for f in fields(self):
            option = OPTIONS["epochs" if f.name == "num_epochs" else f.name]
            value = getattr(self, f.name)
            if value is None and option.by_task:
                raise ConfigurationError(f"{f.name}: seen None; accepted: {option.accepted}")
            object.__setattr__(self, f.name, option.check(value))

    @property
    def effective_speedups(self) -> Speedups:
        """Those that are on."""
        return Speedups.of(self.speedups)

    @property
    def effective_eval_batch_size(self) -> int:
        """`eval_batch_size`, or twice `batch_size`."""
        return self.eval_batch_size or 2 * self.batch_size


@dataclass(kw_only=True)
class TrainModelRequest:
    """One training, as the user asks for it: the options of `mltrack train`. None stands for the task's default."""

    dataset_path: str = setting("dataset_path")
    columns: str | Mapping[str, str] | None = None
    labels: str | Mapping[str, str] | None = None
    task: str = setting("task")
    model_name: str = setting("model_name")
    num_labels: int | None = None
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int | None = None
    eval_batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float = setting("weight_decay")
    warmup_steps: int | None = None
    warmup_ratio: float = setting("warmup_ratio")
    max_grad_norm: float = setting("max_grad_norm")
    gradient_accumulation_steps: int = setting("gradient_accumulation_steps")
    max_batch_tokens: int | None = None
    packing: bool = setting("packing")
    gradient_checkpointing: bool = setting("gradient_checkpointing")
    use_mixed_precision: str | bool = setting("use_mixed_precision")
    early_stopping_patience: int | None = None
    early_stopping_min_delta: float = setting("early_stopping_min_delta")
    metric_name: str = setting("metric_name")
    metric_mode: str | None = None
    validation_split: float = setting("validation_split")
    validation_path: str | None = None
    group: str | None = None
    max_length: int | None = None
    truncation: str = setting("truncation")
    seed: int = setting("seed")
    deterministic: bool = setting("deterministic")
    device: str = setting("device")
    attention: str = setting("attention")
    compile: bool = setting("compile")
    speedups: str | Mapping[str, str] | None = None
    num_workers: int = setting("num_workers")
    eval_every: int | str = setting("eval_every")
    save_every: int | str = setting("save_every")
    save_when_busy: str = setting("save_when_busy")
    max_checkpoints: int = setting("max_checkpoints")
    keep_every: int | None = None
    parallel: str = setting("parallel")
    output_dir: str = setting("output_dir")
    experiment_name: str | None = None
    run_name: str | None = None
    upload: str = setting("upload")
    register: str = setting("register")
    registered_model_name: str | None = None
    promote: str = setting("promote")
    promote_margin: float = setting("promote_margin")
    resume: str = setting("resume")
    exact: bool = setting("exact")
    new_run: bool = setting("new_run")
    force: bool = setting("force")
    offline: bool = setting("offline")
    exit_wait: float = setting("exit_wait")
    class_weights: str = setting("class_weights")
    on_non_finite: str = setting("on_non_finite")
    on_disk_full: str = setting("on_disk_full")
    on_bad_record: str = setting("on_bad_record")
    trust_remote_code: bool = setting("trust_remote_code")
    tracking_uri: str | None = field(default=None, repr=False)
    debug: bool = setting("debug")
    output: str = setting("output")
    as_typed: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """The words of the command line by option name: MLflow params keep the form that the user typed."""

    @classmethod
    def from_words(cls, words: Mapping[str, str]) -> TrainModelRequest:
        """A request from the words of a command line; an empty word leaves its option as it is without.

        Raises:
            ConfigurationError: the first word that is not accepted.
        """
        typed = {name: word for name, word in words.items() if word}
        return cls(**{name: OPTIONS[name].parse(word) for name, word in typed.items()}, as_typed=typed)

    def validate(self) -> list[str]:
        """All problems of the options themselves, one line each; empty where there is none. Values become canonical."""
        problems = []
        for name, option in OPTIONS.items():
            try:
                setattr(self, name, option.check(getattr(self, name)))
            except ConfigurationError as error:
                problems.append(str(error))
        if self.upload == "none" and self.register != "never":
            problems.append(
                f"upload=none leaves no model to register, but register is {self.register}; use --register never, or"
                " --upload model"
            )
        return problems

    def with_defaults(self, defaults: Mapping[str, Any]) -> TrainModelRequest:
        """A copy in which what the user left open is what the task says."""
        copy = TrainModelRequest(**{f.name: getattr(self, f.name) for f in fields(self)})
        for name, value in defaults.items():
            if getattr(copy, name) is None:
                setattr(copy, name, value)
        return copy

    def redacted(self) -> TrainModelRequest:
        """A copy in which the tracking URI alone holds credentials: every other option is recorded as it is."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return TrainModelRequest(**{**redacted(values), "tracking_uri": self.tracking_uri})

    def options(self) -> dict[str, Any]:
        """The values by option name, in the order of `OPTIONS`, as they are recorded: the tracking URI without
        credentials.
        """
        return {
            **{name: getattr(self, name) for name in OPTIONS},
            "tracking_uri": self.tracking_uri and without_secrets(self.tracking_uri),
        }

    def training_config(self) -> TrainingConfig:
        """The trainer's part. Every default by task must have been filled in."""
        names = {f.name for f in fields(TrainingConfig)} - {"num_epochs"}
        assert self.epochs is not None
        return TrainingConfig(num_epochs=self.epochs, **{name: getattr(self, name) for name in names})


def checked_options(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options among the values of a `config.json`, which anybody may have written, each checked as if it had been
    typed.

    Raises:
        ConfigurationError: the first value that is not accepted; `where` names the file.
    """
    try:
        return {name: option.check(content[name]) for name, option in OPTIONS.items() if name in content}
    except (ConfigurationError, ValueError, OverflowError) as error:
        raise ConfigurationError(printable(f"{where}: {error}")) from None


@dataclass(kw_only=True)
class TrainModelResponse:
    """What a training gave; `errors` is empty exactly where `success` is True."""

    success: bool = False
    run_id: str | None = None
    """MLflow run id, or the local id of an offline run."""
    experiment_id: str | None = None
    status: str = "FAILED"
    """FINISHED, FAILED or KILLED."""
    exit_code: int = 1
    best_metric: float | None = None
    best_epoch: int | None = None
    """0-based."""
    best_step: int | None = None
    """Optimizer step; the first is 1."""
    epochs_run: int = 0
    steps_run: int = 0
    stopped_early: bool = False
    training_time: float = 0.0
    """Seconds in the loop."""
    tokens_per_second: float | None = None
    model_path: str | None = None
    """The best model: a Hugging Face folder."""
    metrics_file: str | None = None
    model_uri: str | None = None
    """models:/m-... of the best model, once delivered."""
    registered_model: dict[str, Any] | None = None
    """name, version, aliases."""
    delivery: str = "pending"
    """complete or pending."""
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What could not be done beside the training itself, one line each: a report, an export, the end of the
    delivery.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
