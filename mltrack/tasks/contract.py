"""What a task is: one object that owns its records, their encoding, the model's head, the loss, the evaluation, the
words of its model card and how it is served.

Invariant: everything else asks the object, nothing asks which task it is. Sums and counts, never means; the caller that
adds them up decides what they are divided by. Importing this module loads no torch.

    task = task_named("code_generation")
    loss_sum, count = task.sums(model, batch)
    evaluator = task.evaluator()
    with torch.inference_mode():
        evaluator.update(model, batch)
    evaluator.compute()                                 # {"loss": ..., "perplexity": ..., "token_accuracy": ...}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from mltrack.config import TrainingConfig
from mltrack.config.option import declared
from mltrack.errors import ConfigurationError
from mltrack.records.record import RawRecord, Record
from mltrack.store.light_model import Serving

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
Batch = Mapping[str, "torch.Tensor"]
"""input_ids [B, T] int64, attention_mask [B, T] int64 (right padding; absent where nothing is padded), labels [B] or
[B, T] int64, and for packed examples position_ids [B, T] int64 instead of a mask; all on the model's device."""
Part = tuple[str, Callable[[], list[tuple[Path, str]]]]
"""What a report says, and what writes it: [(file, folder in the run's artifacts)]."""


class Encoding(Protocol):
    """How the records of one task become token ids, with one tokenizer."""

    marks_words: bool
    """Its rows say which token stands for which word."""

    def facts(self) -> dict[str, Any]:
        """What decides the ids beside the records, the tokenizer and the length, as JSON values."""

    def tokens(self, records: Sequence[Record]) -> tuple[list[list[int]], ...]:
        """Token ids of the records' parts, without a bound: one list a part of a record, with a row a record."""

    @property
    def row(self) -> Callable[..., tuple[Any, ...]]:
        """What is kept of a record, given the ids of each of its parts: (token ids, leading ones that are no target,
        tokens before `max_length`), and where words are marked the number of its word for each token, from 1, 0 for
        none.
        """


class Rows(Protocol):
    """Token ids of records, as a data set holds them."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each, int32 [N]."""

    @property
    def num_prompt(self) -> np.ndarray:
        """Leading tokens of each that are no target, int32 [N]."""

    def marks_of(self, index: int) -> np.ndarray:
        """For each token of a row the number of its word, from 1; 0 for none: int64 [T]."""


class Targets(Protocol):
    """What the model has to say of each example."""

    counts: np.ndarray
    """What each example adds to the count that its loss is divided by, int32 [N]."""

    def of(self, index: int, input_ids: np.ndarray) -> int | np.ndarray:
        """The labels of an example: one class index, or int64 [T] with -100 where there is none."""


class Evaluator(Protocol):
    """Adds up batches; what `compute` gives depends neither on how the records were batched nor on their order."""

    def update(self, model: torch.nn.Module, batch: Batch) -> None:
        """Add a batch. The caller has put the model in evaluation mode and holds inference_mode and autocast."""

    def merge(self, other: Self) -> None:
        """Add what another evaluator (of another rank) has seen."""

    def compute(self) -> dict[str, float]:
        """The metrics by name, without the `eval_` prefix; `loss` is among them. NaN where nothing was added."""


class Objective(Protocol):
    """What is trained."""

    def sums(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward pass: (loss_sum, count).

        Returns:
            loss_sum: float32, 0-dim, with gradient: nats, summed over what `count` counts.
            count: int64, 0-dim: examples or target tokens.
        """


@dataclass(frozen=True)
class Head:
    """What a model must end in."""

    auto_class: str
    """Of transformers: what loads a pretrained model, such as AutoModelForCausalLM."""
    scratch_class: str
    """Of transformers: what a scratch model is."""
    causal: bool = False
    """A token sees those before it alone: a decoder. False: an encoder."""
    problem_type: str | None = None
    """What config.json says of the loss."""


@dataclass(frozen=True)
class Card:
    """The task's own words of a model card."""

    cannot: str
    """What the model cannot do, in a sentence."""
    predict_params: str = ""
    """Further arguments of `model.predict` in the example, with the comma before them."""
    about_builtin: str = ""
    """What is to be known of the labels of the built-in source."""


class Trained(Protocol):
    """A finished training, as a report looks at it."""

    @property
    def model(self) -> torch.nn.Module:
        """With the weights that are kept."""

    @property
    def dataset(self) -> Any:
        """The evaluation set: a `CodeDataset`."""

    @property
    def folder(self) -> Path:
        """Where files are written."""

    def evaluator(self) -> Any:
        """The task's evaluator, which has seen the whole evaluation set; made once."""

    def autocast(self) -> Any:
        """The context in which the model computes."""

    def check_stop(self) -> None:
        """Raises Interrupted once a stop was asked for."""

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record figures at the step of the weights that are kept."""

    def show_table(self, path: Path) -> None:
        """Let MLflow's UI show a table that is logged to `evaluation/`."""


@dataclass(frozen=True, eq=False)
class Task(ABC):
    """One task. Packages bring their own by a subclass and the entry point group `mltrack.tasks`.

    A task equals its name, so that it can stand where the name was expected.
    """

    name: str
    given: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Values of the task's own options."""

    fields: ClassVar[tuple[str, ...]]
    """Columns that a record must have."""
    has_classes: ClassVar[bool] = False
    """What is predicted is one of a fixed set of classes, each with an index."""
    stratified: ClassVar[bool] = False
    """A record has one class, by which splits are stratified."""
    counts_tokens: ClassVar[bool] = False
    """The loss is a mean over tokens: it compares two models only where they make the same tokens of a text."""
    packs: ClassVar[bool] = False
    """Several examples may stand in one row."""
    truncations: ClassVar[tuple[str, ...]] = ("head", "tail", "both", "drop")
    """What may be kept of a text that is too long."""
    head: ClassVar[Head]
    card: ClassVar[Card]
    serving: ClassVar[Serving]
    options: ClassVar[type | None] = None
    """A dataclass of `mltrack.config.option` fields: options of this task alone."""

    def configured(self, given: Mapping[str, Any]) -> Self:
        """The task with values of its own options; those that are not given have their defaults."""
        own = declared(self.options, "") if self.options is not None else []
        return replace(self, given={one.name: one.default for one in own} | dict(given)) if own else self

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return str(self) == other if isinstance(other, str) else self is other

    def __hash__(self) -> int:
        return hash(self.name)

    # records

    @abstractmethod
    def parse(self, raw: RawRecord) -> Record:
        """The record that the columns mean.

        Raises:
            DatasetError: made by `raw`: what is wrong, with file, record and field.
        """

    @abstractmethod
    def columns(self, record: Record) -> dict[str, Any]:
        """The fields of a record: what `parse` was given."""

    def builtin_records(self, progress: Progress | None = None) -> list[Record]:
        """The records of the built-in source `stdlib`.

        Raises:
            ConfigurationError: it has none for this task.
        """
        raise ConfigurationError(
            f"dataset_path: the built-in source 'stdlib' has no records for {self.name}; give --dataset-path a file"
        )

    def builtin_facts(self) -> dict[str, str]:
        """Versions of what labels the built-in source, by name."""
        return {}

    # classes

    def label_mapping(self, records: Sequence[Record]) -> dict[str, int]:
        """Class index per class, in index order; empty where there are no classes."""
        return {}

    def class_counts(self, records: Sequence[Record], label_mapping: Mapping[str, int]) -> dict[str, int]:
        """Examples per class, in index order."""
        return {}

    def read_labels(
        self, records: Iterator[Record], *, known: Sequence[str], most: int | None, source: str, column: str
    ) -> Iterator[Record]:
        """The records as they are read, with labels in one spelling.

        Args:
            known: classes of an earlier training, whose spelling wins.
            most: classes that there may be; None: any number.
            source, column: for messages.
        """
        return records

    def check_classes(  # noqa: B027
        self, records: Sequence[Record], label_mapping: Mapping[str, int], num_labels: int | None, source: str
    ) -> None:
        """Refuse records that nothing can be learned from.

        Args:
            num_labels: how many classes the user expects.

        Raises:
            DatasetError: with what there is.
        """

    def known(self, records: Sequence[Record], label_mapping: Mapping[str, int]) -> np.ndarray:
        """Which records the classes cover, bool [N]."""
        return np.ones(len(records), dtype=bool)

    # encoding

    @abstractmethod
    def encoding(self, tokenizer: Any, max_length: int, truncation: str) -> Encoding:
        """How records become token ids.

        Raises:
            ConfigurationError: a tokenizer that cannot serve the task.
        """

    @abstractmethod
    def targets(self, records: Sequence[Record], rows: Rows, label_mapping: Mapping[str, int]) -> Targets:
        """What the model has to say of each record.

        Raises:
            DatasetError: a label outside the mapping.
        """

    def check_truncation(self, truncation: str) -> None:
        """Refuse what the task cannot do.

        Raises:
            ConfigurationError: with what it can.
        """
        if truncation not in self.truncations:
            raise ConfigurationError(
                f"truncation: seen '{truncation}' for {self.name}; accepted: {', '.join(self.truncations)}"
            )

    # model

    def settings(self) -> dict[str, Any]:
        """What config.json says of the task under `mltrack`, beside its name and `max_length`: the serving file reads
        it.
        """
        return {}

    @abstractmethod
    def defaults(self, model_name: str) -> dict[str, Any]:
        """epochs, batch_size, learning_rate and max_length where the user gave none."""

    # training

    @abstractmethod
    def sums(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The plain objective; see `Objective.sums`."""

    def objective(self, config: TrainingConfig, dataset: Any) -> Objective:
        """What is trained with these options.

        Raises:
            ConfigurationError: an option that the task does not have.
        """
        if config.class_weights != "none":
            raise ConfigurationError(
                f"class_weights: seen {config.class_weights}, but {self.name} has no classes; accepted: none"
            )
        if config.packing and not self.packs:
            raise ConfigurationError(
                f"packing: seen true, but a batch of {self.name} has one label a row; accepted: false"
            )
        return self

    def fingerprint(self, config: TrainingConfig) -> dict[str, Any]:
        """What of the task decides the result of a training; compared where one is resumed."""
        own = declared(self.options, "") if self.options is not None else []
        return {"logits": "everywhere"} | {one.name: self.given.get(one.name) for one in own if one.fixes_result}

    # evaluation

    @abstractmethod
    def evaluator(self, label_names: Sequence[str] | None = None, *, keeps_predictions: bool = False) -> Evaluator:
        """A new, empty evaluator.

        Args:
            label_names: the classes in the order of their indices, for the metrics' names.
            keeps_predictions: it has `predictions` and `labels`, lists of numbers that own metrics are computed from.
        """

    def baselines(self, train_dataset: Any, eval_dataset: Any, vocab_size: int) -> dict[str, float]:
        """Figures that a model must beat, by name, learned on one data set and measured on the other."""
        return {}

    def report(self, trained: Trained) -> list[Part]:
        """What describes a trained model."""
        return []
