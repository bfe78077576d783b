"""A training on the caller's own data sets instead of the records that a request names."""

from __future__ import annotations

from mltrack.config import TrainModelRequest
from mltrack.data import CodeDataset
from mltrack.data.encoding import tokenizer_digest
from mltrack.data.own_dataset import completed
from mltrack.errors import ConfigurationError
from mltrack.models import ModelSource
from mltrack.runs.frontend import MakeDatasets


def made_datasets(
    make: MakeDatasets, request: TrainModelRequest, source: ModelSource
) -> tuple[CodeDataset, CodeDataset]:
    """Both data sets; a scratch model gets the tokenizer of the training set.

    Raises:
        ConfigurationError: there are not two, a part of `TrainingDataset` is missing, or they are for another task or
            tokenizer than the request's.
    """
    made = make(source.tokenizer, request)
    if not isinstance(made, tuple) or len(made) != 2:
        raise ConfigurationError(f"datasets must return (training set, evaluation set), not {type(made).__name__}")
    train, evaluation = completed(made[0]), completed(made[1])
    for dataset in (train, evaluation):
        if dataset.task != request.task:
            raise ConfigurationError(
                f"data set {dataset.source} is for {dataset.task}, but the request says task={request.task}; make both"
                " the same"
            )
        if tokenizer_digest(dataset.tokenizer) != tokenizer_digest(source.tokenizer or train.tokenizer):
            raise ConfigurationError(
                f"data set {dataset.source} has another tokenizer than the model; use the one that `datasets` is given"
            )
    if train.label_mapping != evaluation.label_mapping:
        raise ConfigurationError(
            f"the data sets have different label mappings, {train.label_mapping} and {evaluation.label_mapping}; make"
            " both the same"
        )
    if source.tokenizer is None:
        source.tokenizer = train.tokenizer
    source.check_max_length(train.max_length)
    return train, evaluation
