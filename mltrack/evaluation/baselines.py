"""Baselines that a model must beat: the majority class and TF-IDF with logistic regression, or token frequencies.

Invariant: learned on the training split, measured on the evaluation split, with the same metrics and counting as the
model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mltrack.evaluation.metrics import classification_metrics
from mltrack.records.record import Record

_TOKENS = r"\w+|[^\w\s]"
_LONGEST_CHARACTERS = 20_000
_MOST_RECORDS = 10_000
_FEATURES, _WEIGHTS = 20_000, 1_000_000
"""The logistic regression has a weight per feature and class, and its solver keeps some twenty copies of them."""


def classification_baselines(
    train_records: Sequence[Record], eval_records: Sequence[Record], label_mapping: Mapping[str, int]
) -> dict[str, float]:
    """majority_accuracy, majority_macro_f1, tfidf_accuracy, tfidf_macro_f1 on `eval_records`.

    TF-IDF of single code tokens and their pairs (the 20,000 most frequent, fewer with more than 50 classes) into a
    logistic regression; time and memory are bounded: at most 10,000 training records, evenly spread, and the first
    20,000 characters of each."""
    names = [name for name, _ in sorted(label_mapping.items(), key=lambda item: item[1])]
    train = [label_mapping[str(record.label)] for record in train_records]
    truth = [label_mapping[str(record.label)] for record in eval_records]
    counts = Counter(train)
    majority = min(counts, key=lambda label: (-counts[label], label))
    results: dict[str, float] = {}
    for baseline, predictions in (
        ("majority", [majority] * len(truth)),
        ("tfidf", _tfidf(train_records, train, eval_records) if len(counts) > 1 else [majority] * len(truth)),
    ):
        metrics = classification_metrics(truth, predictions, names)
        results |= {f"{baseline}_{metric}": metrics[metric] for metric in ("accuracy", "macro_f1")}
    return results


def _tfidf(train_records: Sequence[Record], train: Sequence[int], eval_records: Sequence[Record]) -> list[int]:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    chosen = np.unique(np.linspace(0, len(train) - 1, min(len(train), _MOST_RECORDS)).astype(int))
    if len({train[i] for i in chosen}) < len(set(train)):
        chosen = np.union1d(chosen, [train.index(label) for label in set(train)])
    vectorizer = TfidfVectorizer(
        token_pattern=_TOKENS,
        lowercase=False,
        ngram_range=(1, 2),
        max_features=features_of(len(set(train))),
        sublinear_tf=True,
        dtype=np.float32,
    )
    features = vectorizer.fit_transform(train_records[i].text[:_LONGEST_CHARACTERS] for i in chosen)
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a hundred iterations are the bound on time
        model.fit(features, [train[i] for i in chosen])
    if not eval_records:
        return []
    predictions: list[int] = model.predict(
        vectorizer.transform(record.text[:_LONGEST_CHARACTERS] for record in eval_records)
    ).tolist()
    return predictions


def features_of(num_classes: int) -> int:
    """How many tokens and pairs the baseline uses."""
    return max(100, min(_FEATURES, _WEIGHTS // max(1, num_classes)))


def unigram_loss(train_dataset: Any, eval_dataset: Any, vocab_size: int) -> dict[str, float]:
    """{"unigram_loss": nats per target token of `eval_dataset`}, from the token frequencies of `train_dataset`'s
    targets plus one each.

    Targets are those of `eval_loss`: labels that are not -100 and have a token before them. Both are CodeDatasets of
    code_generation."""
    counts = np.ones(vocab_size, dtype=np.float64)
    for targets in _targets(train_dataset):
        counts += np.bincount(targets, minlength=vocab_size)
    nats = -np.log(counts / counts.sum())
    sums, total = [], 0
    for targets in _targets(eval_dataset):
        sums.append(float(nats[targets].sum()))
        total += len(targets)
    return {"unigram_loss": math.fsum(sums) / total if total else math.nan}


def _targets(dataset: Any) -> Iterator[np.ndarray]:
    """Token ids of each example's targets, 256 examples at a time."""
    pending: list[np.ndarray] = []
    for i in range(len(dataset)):
        labels = np.asarray(dataset[i]["labels"], dtype=np.int64)[1:]
        pending.append(labels[labels != -100])
        if len(pending) == 256:
            yield np.concatenate(pending)
            pending = []
    if pending:
        yield np.concatenate(pending)
