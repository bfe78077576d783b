"""Options that a task of an installed package adds to those of mltrack."""

from __future__ import annotations

from mltrack.config.former_names import FORMER_NAMES
from mltrack.config.option import Option, declared
from mltrack.config.options import OPTIONS
from mltrack.errors import ConfigurationError
from mltrack.tasks.names import TaskType, task_named

BESIDE_OPTIONS = ("mltrack_version", "parent", "model_commit", "model_digest", "class_names")
"""Other names in a run's config.json."""


def options_of(task: str) -> dict[str, Option]:
    """`OPTIONS` and those of an installed package's task.

    Raises:
        ConfigurationError: there is no such task, or one of its options has a name that mltrack uses.
    """
    own = own_options(task)
    if taken := sorted(own.keys() & {*OPTIONS, *FORMER_NAMES, *BESIDE_OPTIONS}):
        raise ConfigurationError(f"task: {task} declares {taken[0]}, which is a name of mltrack's own; rename it there")
    return OPTIONS | own


def own_options(task: str) -> dict[str, Option]:
    """The options that a task declares; the three of mltrack declare none."""
    kind = None if task in tuple(TaskType) else task_named(task).options
    return {} if kind is None else {one.name: one for one in declared(kind, f"task {task}")}
