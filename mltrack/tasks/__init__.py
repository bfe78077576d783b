"""A task is one object; see `mltrack.tasks.contract`.

    task = task_named("code_generation")

Importing this package loads no torch.
"""

from mltrack.tasks.names import TaskType, all_tasks, task_named, task_names

__all__ = ["TaskType", "all_tasks", "task_named", "task_names"]
