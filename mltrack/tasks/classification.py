"""Text and security classification: one class per record.

Invariant: the classes of text classification are those of the records; security classification always has its five, in
their order. Importing this module loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mltrack.config import TrainingConfig
from mltrack.records import labels
from mltrack.records.builtin.stdlib_source import rated_functions
from mltrack.records.record import SECURITY_LEVELS, RawRecord, Record, label_outside
from mltrack.records.table import labels_of
from mltrack.tasks.contract import Batch, Card, Encoding, Head, Part, Progress, Rows, Serving, Task, Trained
from mltrack.tasks.names import TaskType

if TYPE_CHECKING:
    import torch

    from mltrack.tasks.class_loss import ClassificationEvaluator, WeightedClasses

# A scratch model is small and learns from a few thousand records: the rate of a small transformer (5e-4 to 1e-3),
# several passes, 256 tokens. Pretrained: 2e-5 is the rate of BERT's and CodeBERT's own fine-tuning.
_SCRATCH = {"epochs": 4, "batch_size": 16, "learning_rate": 5e-4, "max_length": 256}
_PRETRAINED = {"batch_size": 16, "learning_rate": 2e-5, "max_length": 512}


@dataclass(frozen=True, eq=False)
class Classification(Task):
    """One class per record."""

    fields: ClassVar = ("code", "label")
    has_classes: ClassVar = True
    stratified: ClassVar = True
    head: ClassVar = Head(
        "AutoModelForSequenceClassification",
        "RobertaForSequenceClassification",
        problem_type="single_label_classification",
    )
    card: ClassVar = Card(
        "It has seen labels, not proofs: it ranks code for a person to read and finds neither all flaws nor only"
        " flaws.",
        about_builtin="the labels are Bandit's opinions, not verified flaws",
    )
    serving: ClassVar = Serving(
        file=Path(__file__).parent / "shipped" / "mltrack_pyfunc.py",
        inputs=({"type": "string", "required": True},),
        outputs=(
            {"type": "string", "name": "label", "required": True},
            {"type": "double", "name": "score", "required": True},
            {"type": "map", "values": {"type": "double", "required": True}, "name": "scores", "required": True},
        ),
        params=None,
        example="eval(user_input)",
        pipeline="TextClassificationPipeline",
        pipeline_task="text-classification",
    )

    classes: tuple[str, ...] = ()
    """The fixed classes; empty: those of the records."""
    unsafe: str | None = None
    """The single label, in the built-in source, of all levels but safe."""
    pretrained_epochs: int = 3

    def parse(self, raw: RawRecord) -> Record:
        """`code` and its `label`."""
        return raw.record(raw.text("code"), label=raw.label("label", self.classes))

    def columns(self, record: Record) -> dict[str, Any]:
        """`code` and its `label`."""
        return {"code": record.text, "label": record.label}

    def builtin_records(self, progress: Progress | None = None) -> list[Record]:
        """Functions of the standard library, labelled with Bandit's findings."""
        return rated_functions(progress, unsafe=self.unsafe)

    def builtin_facts(self) -> dict[str, str]:
        """The version of Bandit, which decides the labels."""
        return {"bandit": version("bandit")}

    def label_mapping(self, records: Sequence[Record]) -> dict[str, int]:
        """Class index per class, in index order."""
        if self.classes:
            return {name: index for index, name in enumerate(self.classes)}
        return labels.make_label_mapping(records)

    def class_counts(self, records: Sequence[Record], label_mapping: Mapping[str, int]) -> dict[str, int]:
        """Examples per class, in index order."""
        return labels.count_labels(records, label_mapping)

    def read_labels(
        self, records: Iterator[Record], *, known: Sequence[str], most: int | None, source: str, column: str
    ) -> Iterator[Record]:
        """The records, with one spelling per label and no more classes than allowed."""
        records = labels.one_spelling(records, known)
        return records if most is None else labels.few_labels(records, most, source, column)

    def check_classes(
        self, records: Sequence[Record], label_mapping: Mapping[str, int], num_labels: int | None, source: str
    ) -> None:
        """Refuse records of a single class, or of another number of classes than the user expects."""
        labels.check_classes(records, label_mapping, num_labels, source)

    def known(self, records: Sequence[Record], label_mapping: Mapping[str, int]) -> np.ndarray:
        """Which records have one of the classes, bool [N]."""
        return np.array([label in label_mapping for label in labels_of(records)], dtype=bool)

    def encoding(self, tokenizer: Any, max_length: int, truncation: str) -> Encoding:
        """The code between the tokenizer's special tokens."""
        from mltrack.data.encoding import TextEncoding

        return TextEncoding(tokenizer, max_length, truncation)

    def targets(self, records: Sequence[Record], rows: Rows, label_mapping: Mapping[str, int]) -> ClassOfRecord:
        """One class index per record."""
        return ClassOfRecord(records, label_mapping)

    def defaults(self, model_name: str) -> dict[str, Any]:
        """A folder or a registered model that was once trained from scratch counts as pretrained."""
        if model_name.startswith("scratch:"):
            return dict(_SCRATCH)
        return {"epochs": self.pretrained_epochs, **_PRETRAINED}

    def sums(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(summed cross entropy in nats, number of examples)."""
        from mltrack.tasks.class_loss import class_loss

        return class_loss(model, batch)

    def objective(self, config: TrainingConfig, dataset: Any) -> Classification | WeightedClasses:
        """The plain objective, or one that gives rare classes more weight."""
        if config.class_weights == "none":
            super().objective(config, dataset)
            return self
        from mltrack.tasks.class_loss import WeightedClasses, balanced

        in_order = sorted(dataset.label_mapping, key=dataset.label_mapping.__getitem__)
        return WeightedClasses(balanced({label: dataset.class_counts[label] for label in in_order}))

    def evaluator(
        self, label_names: Sequence[str] | None = None, *, keeps_predictions: bool = False
    ) -> ClassificationEvaluator:
        """Loss, accuracy, F1, precision and recall."""
        from mltrack.tasks.class_loss import ClassificationEvaluator

        return ClassificationEvaluator(label_names)

    def baselines(self, train_dataset: Any, eval_dataset: Any, vocab_size: int) -> dict[str, float]:
        """The majority class, and TF-IDF with logistic regression."""
        from mltrack.evaluation.baselines import classification_baselines

        return classification_baselines(train_dataset.records, eval_dataset.records, train_dataset.label_mapping)

    def report(self, trained: Trained) -> list[Part]:
        """Precision and recall of each class, and the confusion matrix."""
        from mltrack.evaluation.figures import confusion_matrix_figure
        from mltrack.evaluation.reports import classification_report

        @cache
        def report() -> dict[str, Any]:
            evaluator = trained.evaluator()
            return classification_report(evaluator.labels, evaluator.predictions, list(trained.dataset.label_mapping))

        def report_file() -> list[tuple[Path, str]]:
            path = trained.folder / "classification_report.json"
            path.write_text(json.dumps(report(), indent=1), encoding="utf-8")
            return [(path, "evaluation")]

        def matrix_file() -> list[tuple[Path, str]]:
            matrix = report()["confusion_matrix"]
            path = confusion_matrix_figure(
                matrix.get("matrix"), matrix["labels"], trained.folder / "confusion_matrix.png"
            )
            return [(path, "figures")] if path is not None else []

        return [("classification report", report_file), ("confusion matrix", matrix_file)]


class ClassOfRecord:
    """The class index of each record.

    Raises:
        DatasetError: a label outside the mapping.
    """

    def __init__(self, records: Sequence[Record], label_mapping: Mapping[str, int]):
        found = [label_mapping.get(str(label), -1) for label in labels_of(records)]
        self._classes = np.array(found, dtype=np.int64)
        outside = np.flatnonzero(self._classes < 0)
        if len(outside):
            raise label_outside(records[int(outside[0])], label_mapping)
        self.counts = np.ones(len(records), dtype=np.int32)

    def of(self, index: int, input_ids: np.ndarray) -> int:
        """The class index of an example."""
        return int(self._classes[index])


TEXT = Classification(TaskType.TEXT_CLASSIFICATION.value, unsafe="unsafe")
SECURITY = Classification(TaskType.SECURITY_CLASSIFICATION.value, classes=SECURITY_LEVELS, pretrained_epochs=5)
