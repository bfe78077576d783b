"""The tags and the model card of a version.

Invariant: both contain only what the run recorded, and metrics beside the baselines of the same evaluation set.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from mltrack.config import TrainModelRequest
from mltrack.data.encoding import tokenizer_digest
from mltrack.errors import ConfigurationError
from mltrack.evaluation.beside_baselines import by_metric, verdict
from mltrack.records.builtin.stdlib_source import STDLIB
from mltrack.records.readers import absolute
from mltrack.registry import gate

if TYPE_CHECKING:  # they load torch, which `mltrack models` does without
    from mltrack.checkpoints import CheckpointMetadata
    from mltrack.data import CodeDataset
    from mltrack.registry.loading import Parent

MAX_NAME_LENGTH = 200
MAX_CLASSES_SHOWN, MAX_CLASSES_CHARACTERS = 50, 2000


def version_tags(
    request: TrainModelRequest,
    train_dataset: CodeDataset,
    eval_dataset: CodeDataset,
    checkpoint: CheckpointMetadata,
    *,
    mode: str,
    parent: Parent | None = None,
) -> dict[str, str]:
    """Tags of a version: task, base model and parent, data digests, step, each metric of its checkpoint, and what the
    gate needs.
    """
    value = checkpoint.metrics.get(request.metric_name, checkpoint.metric_value)
    tags = {
        "mltrack.task": request.task,
        "mltrack.model_name": request.model_name,
        "mltrack.data_digest": train_dataset.digest,
        "mltrack.step": str(checkpoint.step),
        **{f"mltrack.{name}": f"{value:.6g}" for name, value in checkpoint.metrics.items()},
        gate.EVAL_DIGEST: eval_dataset.digest,
        gate.METRIC: request.metric_name,
        gate.MODE: mode,
        gate.VALUE: repr(float(value)) if value is not None else "nan",
        gate.POLICY: request.promote,
        gate.MARGIN: repr(float(request.promote_margin)),
        **(parent.tags if parent is not None else {}),
    }
    if request.validation_path:
        tags[gate.EVAL_PATH] = absolute(request.validation_path, os.getcwd())
    if eval_dataset.task.counts_tokens:
        tags[gate.TOKENS] = f"{tokenizer_digest(eval_dataset.tokenizer)[:16]}/{eval_dataset.max_length}"
    return tags


def model_card(
    request: TrainModelRequest,
    name: str,
    train_dataset: CodeDataset,
    eval_dataset: CodeDataset,
    checkpoint: CheckpointMetadata,
    baselines: Mapping[str, float],
    *,
    parent: Parent | None = None,
    base: Mapping[str, str] | None = None,
) -> str:
    """The description of a version, in Markdown: task, data, classes, configuration, metrics beside the baselines, how
    to load it, what it cannot do.

    "{version}" in it is a placeholder for the number that the registry assigns. `base` is `ModelSource.origin`.
    """
    card, classes = train_dataset.task.card, list(train_dataset.label_mapping)
    named_classes = f"\n\nClasses: {listed_classes(classes)}." if classes else ""
    about = f" Note: {card.about_builtin}." if card.about_builtin and request.dataset_path == STDLIB else ""
    origin = f" That one was made by run `{parent.run_id}`." if parent is not None and parent.run_id else ""
    exactly = "".join(f" ({word.removeprefix('model_')} `{value}`)" for word, value in (base or {}).items())
    uri = f"models:/{name}/{{version}}"
    judged = verdict(checkpoint.metrics, baselines, request.metric_name)
    return (
        f"# {name}\n\n"
        f"Task `{request.task}`, trained from `{parent.uri if parent is not None else request.model_name}`{exactly} on"
        f" {len(train_dataset):,} records of "
        f"`{request.dataset_path}` (digest `{train_dataset.digest[:12]}`).{origin}{about}{named_classes}\n\n"
        f"Evaluated on {len(eval_dataset):,} records (digest `{eval_dataset.digest[:12]}`); the best of the run by"
        f" `{request.metric_name}`{f'; {judged}' if judged else ''}.\n\n"
        f"{_figures(checkpoint.metrics, baselines)}\n\n"
        f"Learning rate {request.learning_rate}, {request.batch_size} x {request.gradient_accumulation_steps} examples"
        f" a step, at most {request.epochs} epochs"
        f"{f' and {request.max_steps} steps' if request.max_steps else ''}, {request.max_length} tokens, seed"
        f" {request.seed}; "
        f"the weights are those of step {checkpoint.step}.\n\n"
        f'```python\nimport mlflow\nmodel = mlflow.pyfunc.load_model("{uri}")\n'
        f'model.predict(["..."]{card.predict_params})\n'
        f'pipeline = mlflow.transformers.load_model("{uri}")\n```\n\n'
        f"{card.cannot}\n"
    )


def check_name(name: str | None) -> None:
    """Refuse a name that the registry would refuse at the end of the training, or that could not be loaded by.

    Raises:
        ConfigurationError: it is too long, or has a character with a meaning in a models:/ address, a control
            character, or both kinds of quotes.
    """
    if name is None:
        return
    wrong = (
        not name.strip()
        or name != name.strip()
        or len(name) > MAX_NAME_LENGTH
        or not name.isprintable()
        or {"'", '"'} <= set(name)
    )
    if wrong or set(name) & set("/:\\@?%#") or name in (".", ".."):
        shown = repr(name) if len(name) <= 60 else repr(name[:57] + "...")
        raise ConfigurationError(
            f"registered_model_name must be a name without '/', ':', '@', '?', '%', '#' and '\\\\', of at most"
            f" {MAX_NAME_LENGTH} printable characters, not {shown}"
        )


def listed_classes(classes: Sequence[str]) -> str:
    """The first classes, and the number of the others."""
    lengths = list(accumulate(len(name) + 2 for name in classes[:MAX_CLASSES_SHOWN]))
    shown = max(1, bisect_right(lengths, MAX_CLASSES_CHARACTERS))
    return ", ".join(classes[:shown]) + (f" and {len(classes) - shown} more" if len(classes) > shown else "")


def _figures(metrics: Mapping[str, float], baselines: Mapping[str, float]) -> str:
    """A table with a row per metric, a column for the model and one for each baseline."""
    beside = by_metric(baselines)
    columns = list(dict.fromkeys(who for held in beside.values() for who in held))
    names = [key for key in metrics if not key.startswith("eval_f1_")]
    names += [key for key in beside if key not in names]
    head = ["figure", "this model", *(f"baseline_{who}" for who in columns)]
    rows = [head, ["---"] * len(head)]
    for key in dict.fromkeys(names):
        rows.append([key, _number(metrics.get(key)), *(_number(beside.get(key, {}).get(who)) for who in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
