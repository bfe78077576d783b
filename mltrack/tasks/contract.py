"""The interface of a task: one object that owns its records, their encoding, the model's head, the loss, the
evaluation, its part of the model card and how it is served.

Invariant: all other code asks the object, never which task it is. It gives sums and counts, never means; the caller
that adds them up does the division. Importing this module loads no torch.

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
from mltrack.errors import ConfigurationError, one_of
from mltrack.records.record import RawRecord, Record
from mltrack.store.light_model import Serving

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
Batch = Mapping[str, "torch.Tensor"]
"""input_ids [B, T] int64, attention_mask [B, T] int64 (right padding; absent if nothing is padded), labels [B] or
[B, T] int64, and for packed examples position_ids [B, T] int64 instead of a mask; all on the model's device."""
Part = tuple[str, Callable[[], list[tuple[Path, str]]]]
"""A part of a report and the function that writes it: [(file, folder in the run's artifacts)]."""


class Encoding(Protocol):
    """How the records of one task become token ids, with one tokenizer."""

    marks_words: bool
    """Whether its rows number the word of each token."""

    def facts(self) -> dict[str, Any]:
        """What else decides the ids besides records, tokenizer and length, as JSON values."""

    def tokens(self, records: Sequence[Record]) -> tuple[list[list[int]], ...]:
        """Token ids of the records' parts, not truncated: one list per part, with one row per record."""

    @property
    def row(self) -> Callable[..., tuple[Any, ...]]:
        """What is kept of a record, given the ids of each of its parts: (token ids, number of leading ones that are no
        target, tokens before truncation), and if words are marked each token's word number, from 1, 0 for none.
        """


class Rows(Protocol):
    """Token ids of records, as a data set holds them."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per record, int32 [N]."""

    @property
    def num_prompt(self) -> np.ndarray:
        """Leading tokens per record that are no target, int32 [N]."""

    def marks_of(self, index: int) -> np.ndarray:
        """The word number of each token of a row, from 1; 0 for none: int64 [T]."""


class Targets(Protocol):
    """What the model must predict for each example."""

    counts: np.ndarray
    """Each example's part of the count that losses are divided by, int32 [N]."""

    def of(self, index: int, input_ids: np.ndarray) -> int | np.ndarray:
        """The labels of an example: one class index, or int64 [T] with -100 where there is none."""


class Evaluator(Protocol):
    """Adds up batches; the result of `compute` depends neither on how the records were batched nor on their order."""

    def update(self, model: torch.nn.Module, batch: Batch) -> None:
        """Add a batch. The caller has put the model in evaluation mode and holds inference_mode and autocast."""

    def merge(self, other: Self) -> None:
        """Add the batches of another evaluator (of another rank)."""

    def compute(self) -> dict[str, float]:
        """The metrics by name, without the `eval_` prefix; `loss` is among them. NaN if nothing was added."""


class Objective(Protocol):
    """The loss that is minimized."""

    def sums(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward pass: (loss_sum, count).

        Returns:
            loss_sum: float32, 0-dim, with gradient, in nats, summed over what `count` counts.
            count: int64, 0-dim: examples or target tokens.
        """


@dataclass(frozen=True)
class Head:
    """The classes and head of a task's models."""

    auto_class: str
    """The class of transformers that loads a pretrained model, such as AutoModelForCausalLM."""
    scratch_class: str
    """The class of transformers of a scratch model."""
    causal: bool = False
    """A token attends only to earlier ones: a decoder. False: an encoder."""
    problem_type: str | None = None
    """`problem_type` in config.json, which names the loss."""


@dataclass(frozen=True)
class Card:
    """The task's part of a model card."""

    cannot: str
    """What the model cannot do, in a sentence."""
    predict_params: str = ""
    """Further arguments of `model.predict` in the example, with a leading comma."""
    about_builtin: str = ""
    """A caveat about the labels of the built-in source."""


class Trained(Protocol):
    """A finished training, as a report sees it."""

    @property
    def model(self) -> torch.nn.Module:
        """The model with the weights that are kept."""

    @property
    def dataset(self) -> Any:
        """The evaluation set: a `CodeDataset`."""

    @property
    def folder(self) -> Path:
        """The folder for the report's files."""

    def evaluator(self) -> Any:
        """The task's evaluator after the whole evaluation set; made once."""

    def autocast(self) -> Any:
        """The context in which the model computes."""

    def check_stop(self) -> None:
        """Raise Interrupted if a stop was requested."""

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record figures at the step of the weights that are kept."""

    def show_table(self, path: Path) -> None:
        """Show a table that is logged to `evaluation/` in MLflow's UI."""


@dataclass(frozen=True, eq=False)
class Task(ABC):
    """One task. Packages add their own with a subclass and the entry point group `mltrack.tasks`.

    A task equals its name, so it can be used in place of the name.
    """

    name: str
    given: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Values of the task's own options."""

    fields: ClassVar[tuple[str, ...]]
    """Columns that a record must have."""
    has_classes: ClassVar[bool] = False
    """It predicts one of a fixed set of classes, each with an index."""
    stratified: ClassVar[bool] = False
    """A record has one class, by which splits are stratified."""
    counts_tokens: ClassVar[bool] = False
    """The loss is a mean over tokens: two models are comparable only if they split a text into the same tokens."""
    packs: ClassVar[bool] = False
    """Several examples may share one row."""
    truncations: ClassVar[tuple[str, ...]] = ("head", "tail", "both", "drop")
    """What may be kept of a text that is too long."""
    head: ClassVar[Head]
    card: ClassVar[Card]
    serving: ClassVar[Serving]
    options: ClassVar[type | None] = None
    """A dataclass of `mltrack.config.option` fields: options of this task only."""

    def configured(self, given: Mapping[str, Any]) -> Self:
        """The task with values of its own options; missing ones have their defaults."""
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
        """The record in these columns.

        Raises:
            DatasetError: raised by `raw`, with the problem, file, record and field.
        """

    @abstractmethod
    def columns(self, record: Record) -> dict[str, Any]:
        """The columns of a record: the inverse of `parse`."""

    def builtin_records(self, progress: Progress | None = None) -> list[Record]:
        """The records of the built-in source `stdlib`.

        Raises:
            ConfigurationError: there are none for this task.
        """
        raise ConfigurationError(
            f"dataset_path: the built-in source 'stdlib' has no records for {self.name}; give --dataset-path a file"
        )

    def builtin_facts(self) -> dict[str, str]:
        """Versions of the tools that label the built-in source, by name."""
        return {}

    # classes

    def label_mapping(self, records: Sequence[Record]) -> dict[str, int]:
        """Class index per class, in index order; empty if there are no classes."""
        return {}

    def class_counts(self, records: Sequence[Record], label_mapping: Mapping[str, int]) -> dict[str, int]:
        """Examples per class, in index order."""
        return {}

    def read_labels(
        self, records: Iterator[Record], *, known: Sequence[str], most: int | None, source: str, column: str
    ) -> Iterator[Record]:
        """The records as they are read, with labels in one spelling.

        Args:
            known: classes of an earlier training, whose spelling is used.
            most: largest number of classes; None: any.
            source, column: for messages.
        """
        return records

    def check_classes(  # noqa: B027
        self, records: Sequence[Record], label_mapping: Mapping[str, int], num_labels: int | None, source: str
    ) -> None:
        """Refuse records that nothing can be learned from.

        Args:
            num_labels: the number of classes that the user expects.

        Raises:
            DatasetError: with the classes that were found.
        """

    def known(self, records: Sequence[Record], label_mapping: Mapping[str, int]) -> np.ndarray:
        """Which records the classes cover, bool [N]."""
        return np.ones(len(records), dtype=bool)

    # encoding

    @abstractmethod
    def encoding(self, tokenizer: Any, max_length: int, truncation: str) -> Encoding:
        """How records become token ids.

        Raises:
            ConfigurationError: the tokenizer does not suit the task.
        """

    @abstractmethod
    def targets(self, records: Sequence[Record], rows: Rows, label_mapping: Mapping[str, int]) -> Targets:
        """What the model must predict for each record.

        Raises:
            DatasetError: a label is not in the mapping.
        """

    def check_truncation(self, truncation: str) -> None:
        """Refuse a truncation that the task does not support.

        Raises:
            ConfigurationError: with those that it supports.
        """
        if truncation not in self.truncations:
            raise ConfigurationError(
                f"truncation must be {one_of(self.truncations)} for {self.name}, not '{truncation}'"
            )

    # model

    def settings(self) -> dict[str, Any]:
        """Entries of `mltrack` in config.json, beside the task's name and `max_length`, for the serving file."""
        return {}

    @abstractmethod
    def defaults(self, model_name: str) -> dict[str, Any]:
        """Defaults of epochs, batch_size, learning_rate and max_length."""

    # training

    @abstractmethod
    def sums(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The plain objective; see `Objective.sums`."""

    def objective(self, config: TrainingConfig, dataset: Any) -> Objective:
        """The objective for these options.

        Raises:
            ConfigurationError: the task does not support an option.
        """
        if config.class_weights != "none":
            raise ConfigurationError(
                f"class_weights must be none, not {config.class_weights}: {self.name} has no classes"
            )
        if config.packing and not self.packs:
            raise ConfigurationError(f"packing must be false, not true: a batch of {self.name} has one label per row")
        return self

    def fingerprint(self, config: TrainingConfig) -> dict[str, Any]:
        """What the task contributes to the result of a training; compared when one is resumed."""
        own = declared(self.options, "") if self.options is not None else []
        return {"logits": "everywhere"} | {one.name: self.given.get(one.name) for one in own if one.fixes_result}

    # evaluation

    @abstractmethod
    def evaluator(self, label_names: Sequence[str] | None = None, *, keeps_predictions: bool = False) -> Evaluator:
        """A new, empty evaluator.

        Args:
            label_names: the classes in the order of their indices, for the metrics' names.
            keeps_predictions: it has `predictions` and `labels`, lists of numbers for a user's own metrics.
        """

    def baselines(self, train_dataset: Any, eval_dataset: Any, vocab_size: int) -> dict[str, float]:
        """Figures that a model must beat, by name, learned on one data set and measured on the other."""
        return {}

    def report(self, trained: Trained) -> list[Part]:
        """The parts of a report on a trained model."""
        return []
