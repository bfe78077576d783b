"""A user's request (`TrainModelRequest`), the trainer's part of it (`TrainingConfig`), and the response
(`TrainModelResponse`).

Invariant: a `TrainingConfig` that exists is valid; a request may have many problems, and `validate()` returns them all
at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrack.addresses import redacted, without_secrets
from mltrack.config.config_file import ConfigFile
from mltrack.config.former_names import FORMER_NAMES, accepts_former_names, current_names
from mltrack.config.option import Option
from mltrack.config.options import (
    OPTIONS,
    Checkpoints,
    Data,
    Duration,
    Model,
    Optimization,
    Performance,
    Run,
    Tracking,
)
from mltrack.config.speedups import Speedups
from mltrack.config.task_options import options_of, own_options
from mltrack.errors import ConfigurationError, did_you_mean, one_of, printable
from mltrack.tasks.names import task_named

if TYPE_CHECKING:
    from mltrack.tasks.contract import Task


@accepts_former_names
@dataclass(kw_only=True)
class TrainingConfig(Optimization, Performance, Checkpoints):
    """The options of `AdvancedTrainer`; their meanings and ranges are those of `OPTIONS`. Immutable.

    Raises:
        ConfigurationError: a value is out of range, at construction.
    """

    num_epochs: int = OPTIONS["epochs"].trainer_default
    """`epochs` of the request."""

    def __setattr__(self, name: str, value: Any) -> None:
        name = FORMER_NAMES.get(name, name)
        if name in self.__dict__:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        option = OPTIONS["epochs" if name == "num_epochs" else name]
        if value is None and option.by_task:
            value = option.trainer_default
        super().__setattr__(name, option.check(value))

    @property
    def effective_speedups(self) -> Speedups:
        """The speed-ups that are on."""
        return Speedups.of(self.speedups)

    @property
    def effective_eval_batch_size(self) -> int:
        """`eval_batch_size`, or twice `batch_size`."""
        return self.eval_batch_size or 2 * self.batch_size


@accepts_former_names
@dataclass(kw_only=True)
class TrainModelRequest(Data, Model, Duration, Optimization, Performance, Checkpoints, Tracking, Run):
    """One training, as the user asks for it: the options of `mltrack train`. None stands for the task's default."""

    task_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of an installed package's task, by name; `options()` and MLflow's params include them."""
    as_typed: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """The words of the command line by option name: MLflow params keep them as typed."""
    config_text: str | None = field(default=None, repr=False, compare=False)
    """Of the file that options were read from, which becomes an artifact of the run."""

    @classmethod
    def from_words(cls, words: Mapping[str, str]) -> TrainModelRequest:
        """A request from the words of a command line; an empty word leaves its option unset.

        Raises:
            ConfigurationError: for the first invalid word.
        """
        typed = current_names({name: word for name, word in words.items() if word})
        options = options_of(OPTIONS["task"].parse(typed.get("task", "")))
        return cls.of({name: options[name].parse(word) for name, word in typed.items()}, as_typed=typed)

    @classmethod
    def from_config(cls, path: str | Path, **options: Any) -> TrainModelRequest:
        """A request from a YAML file of options, as `mltrack init` writes one; `options` win over the file.

        Raises:
            ConfigurationError: with file and line.
        """
        file, given = ConfigFile.read(path), current_names(options)
        request = cls.from_words({name: value.word for name, value in file.words.items() if name not in given})
        for name, value in given.items():
            setattr(request, name, value)
        request.config_text = file.text
        return request

    @classmethod
    def of(cls, options: Mapping[str, Any], **others: Any) -> TrainModelRequest:
        """A request from options by name, its task's included."""
        options = current_names(options)
        own = {name: value for name, value in options.items() if name not in OPTIONS}
        return cls(**{name: value for name, value in options.items() if name in OPTIONS}, task_options=own, **others)

    def validate(self) -> list[str]:
        """All problems of the options, one line each; empty if there are none. Makes the values canonical."""
        problems = []
        for name, option in OPTIONS.items():
            try:
                setattr(self, name, option.check(getattr(self, name)))
            except ConfigurationError as error:
                problems.append(str(error))
        try:
            own = own_options(self.task) if isinstance(self.task, str) else {}
            self.task_options = _checked(self.task_options, own)
        except ConfigurationError as error:
            problems += [] if str(error) in problems else [str(error)]
        if self.upload == "none" and self.register != "never":
            problems.append(
                f"upload=none leaves no model to register, but register is {self.register}; use --register never, or"
                " --upload model"
            )
        return problems

    def with_defaults(self, defaults: Mapping[str, Any]) -> TrainModelRequest:
        """A copy in which unset options have the task's defaults."""
        copy = TrainModelRequest(**{f.name: getattr(self, f.name) for f in fields(self)})
        for name, value in defaults.items():
            if getattr(copy, name) is None:
                setattr(copy, name, value)
        return copy

    @property
    def registry_name(self) -> str:
        """Under which the model is registered."""
        return self.registered_model_name or f"mltrack-{self.task}"

    def redacted(self) -> TrainModelRequest:
        """A copy in which only the tracking URI may hold credentials: all other options are recorded unchanged."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return TrainModelRequest(**{**redacted(values), "tracking_uri": self.tracking_uri})

    def options(self) -> dict[str, Any]:
        """The values to record, by option name in the order of `OPTIONS`; the tracking URI without credentials."""
        return {
            **{name: getattr(self, name) for name in OPTIONS},
            **self.task_options,
            "tracking_uri": self.tracking_uri and without_secrets(self.tracking_uri),
        }

    def chosen_task(self) -> Task:
        """The task with its options.

        Raises:
            ConfigurationError: there is no task of that name.
        """
        return task_named(self.task).configured(self.task_options)

    def training_config(self) -> TrainingConfig:
        """The trainer's part. The task's defaults must have been filled in."""
        names = {f.name for f in fields(TrainingConfig)} - {"num_epochs"}
        return TrainingConfig(num_epochs=self.epochs, **{name: getattr(self, name) for name in names})


def _checked(values: Mapping[str, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"task_options must be a mapping of names to values, not {type(values).__name__}")
    unknown = next((name for name in values if name not in options), None)
    if unknown is not None:
        raise ConfigurationError(
            f"unknown task option {unknown!r}; use {one_of(options)}{did_you_mean(unknown, options)}"
        )
    return {name: option.check(values.get(name, option.default)) for name, option in options.items()}


def checked_options(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options among the values of a `config.json`, which is untrusted, each checked as if typed.

    Raises:
        ConfigurationError: for the first invalid value; `where` names the file.
    """
    try:
        content = current_names(content)
        options = options_of(OPTIONS["task"].check(content.get("task", OPTIONS["task"].default)))
        return {name: option.check(content[name]) for name, option in options.items() if name in content}
    except (ConfigurationError, ValueError, OverflowError) as error:
        raise ConfigurationError(printable(f"{where}: {error}")) from None


@dataclass(kw_only=True)
class TrainModelResponse:
    """The result of a training; `errors` is empty exactly if `success` is True."""

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
    """What failed beside the training itself, one line each: a report, an export, the rest of the delivery."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
