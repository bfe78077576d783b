"""The defaults that differ by task, and by whether the model starts from nothing.

Invariant: one table; the command line, the projects and the README read it here. Importing it loads no torch.
"""

from __future__ import annotations

from typing import Any

from mltrack.config import TaskType

# Scratch models are small and learn from a few thousand records: the rate of a small transformer (5e-4 to 1e-3),
# several passes, 256 tokens (78 % of the stdlib pairs fit). Pretrained: 2e-5 is the rate of BERT's and CodeBERT's own
# fine-tuning; a decoder takes 5e-5.
_SCRATCH = {
    TaskType.TEXT_CLASSIFICATION: {"epochs": 4, "batch_size": 16, "learning_rate": 5e-4, "max_length": 256},
    TaskType.SECURITY_CLASSIFICATION: {"epochs": 4, "batch_size": 16, "learning_rate": 5e-4, "max_length": 256},
    TaskType.CODE_GENERATION: {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "max_length": 256},
}
_PRETRAINED = {
    TaskType.TEXT_CLASSIFICATION: {"epochs": 3, "batch_size": 16, "learning_rate": 2e-5, "max_length": 512},
    TaskType.SECURITY_CLASSIFICATION: {"epochs": 5, "batch_size": 16, "learning_rate": 2e-5, "max_length": 512},
    TaskType.CODE_GENERATION: {"epochs": 3, "batch_size": 4, "learning_rate": 5e-5, "max_length": 512},
}


def defaults_for(task: TaskType | str, model_name: str) -> dict[str, Any]:
    """epochs, batch_size, learning_rate and max_length for a task and a model name.

    A folder or a registered model that was once trained from scratch counts as pretrained: it starts from something.
    """
    table = _SCRATCH if model_name.startswith("scratch:") else _PRETRAINED
    return dict(table[TaskType(task)])
