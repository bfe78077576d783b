"""Per task: the objective as a sum and a count, the metrics, the defaults.

Invariant: nothing here averages; who calls divides sums by counts, once. Importing this package loads no torch.

Synopsis:
    task = task_for("code_generation")
    loss_sum, count = task.sums(model, batch)
    evaluator = task.evaluator()
    with torch.inference_mode():
        evaluator.update(model, batch)
    evaluator.compute()                                 # {"loss": ..., "perplexity": ..., "token_accuracy": ...}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mltrack.config import TaskType

if TYPE_CHECKING:
    from mltrack.tasks.contract import Task

__all__ = ["task_for"]


def task_for(task: TaskType | str) -> Task:
    """The task of that name.

    Raises:
        ValueError: no such task (`config` refuses such a word before it gets here).
    """
    task = TaskType(task)
    if task.is_classification:
        from mltrack.tasks.classification import Classification

        return Classification(task)
    from mltrack.tasks.generation import Generation

    return Generation()
