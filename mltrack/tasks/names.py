"""The tasks by name: the three of mltrack, and those of installed packages.

Invariant: a task's module is imported when the task is first needed, and the entry points of installed packages are
read only for a name that is none of the three. No other module decides anything by a task's name.

    [project.entry-points."mltrack.tasks"]
    token_classification = "my_package:TASK"
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from mltrack.errors import ConfigurationError, described, did_you_mean, one_of

if TYPE_CHECKING:
    from mltrack.tasks.contract import Task

GROUP = "mltrack.tasks"
"""The entry point group of other packages' tasks."""


class TaskType(StrEnum):
    """The three tasks of mltrack."""

    TEXT_CLASSIFICATION = "text_classification"
    CODE_GENERATION = "code_generation"
    SECURITY_CLASSIFICATION = "security_classification"


_HOME = {
    TaskType.TEXT_CLASSIFICATION: ("classification", "TEXT"),
    TaskType.CODE_GENERATION: ("generation", "GENERATION"),
    TaskType.SECURITY_CLASSIFICATION: ("classification", "SECURITY"),
}


def task_named(task: str | Task) -> Task:
    """The task of that name; a task is returned unchanged.

    Raises:
        ConfigurationError: there is none (the message lists those that exist), or its package fails.
    """
    if not isinstance(task, str):
        return task
    if task in _HOME:
        module, name = _HOME[TaskType(task)]
        found: Task = getattr(import_module(f"mltrack.tasks.{module}"), name)
        return found
    if task not in _installed():
        names = task_names()  # in the words of the option `task`, which refuses the same names
        raise ConfigurationError(f"task must be {one_of(names)}, not {task!r}{did_you_mean(task, names)}")
    return _loaded(task)


def task_names() -> list[str]:
    """The names of the three and of installed packages' tasks."""
    return [*TaskType, *_installed()]


def all_tasks() -> list[Task]:
    """Every task, the three first; one whose package fails is left out."""
    found = []
    for name in task_names():
        try:
            found.append(task_named(name))
        except ConfigurationError:
            continue
    return found


def task_fields() -> list[str]:
    """The fields of all tasks' records."""
    return list(dict.fromkeys(field for task in all_tasks() for field in task.fields))


@cache
def _installed() -> dict[str, metadata.EntryPoint]:
    return {one.name: one for one in metadata.entry_points(group=GROUP) if one.name not in _HOME}


def package_of(name: str) -> str:
    """Package and version that a task comes from; empty for mltrack's own."""
    entry = _installed().get(name)
    return f"{entry.dist.name} {entry.dist.version}" if entry is not None and entry.dist is not None else ""


@cache
def _loaded(name: str) -> Task:
    entry = _installed()[name]
    try:
        task: Task = entry.load()
    except Exception as error:
        raise ConfigurationError(
            f"task: {name} cannot be loaded from {entry.value}: {described(error)}; repair or uninstall its package"
        ) from error
    if isinstance(task, type) or getattr(task, "name", None) != name:
        raise ConfigurationError(
            f"task: {name} is {entry.value}, which is not a task of that name; repair or uninstall its package"
        )
    return task.configured({})
