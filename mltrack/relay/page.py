"""What a person reads of a run in MLflow, kept current by the relay: the description of the run and of its experiment.

Invariant: no training depends on it. Whatever goes wrong is logged, and tried again when there is something new to say.
"""

from __future__ import annotations

import logging
from typing import Any

from mltrack.errors import MltrackError
from mltrack.journal import RunDirectory, read_json
from mltrack.relay.delivery_state import Progress
from mltrack.relay.experiment_page import describe_experiment
from mltrack.relay.note import NOTE_TAG, description, is_replaceable, marked
from mltrack.store import Store, runs

log = logging.getLogger("mltrack.relay")


class Page:
    """The descriptions of one run directory.

    Args:
        directory: of the run; its `summary.json` says what there is to tell, and without one nothing is.
    """

    def __init__(self, directory: RunDirectory):
        self._directory = directory
        self._told: tuple[Any, ...] | None = None
        self._experiment_is_described = False

    def update(self, store: Store, run_id: str, experiment_id: str | None, status: str, progress: Progress) -> None:
        """Write what has changed since the last call.

        Args:
            status: RUNNING, or how the run ended.
            progress: knows the registered version.
        """
        try:
            news = (self._directory.summary_file.stat().st_mtime_ns, status, progress.registered)
        except OSError:
            return
        if news == self._told:
            return
        self._told = news
        summary = read_json(self._directory.summary_file)
        try:
            if summary is None:
                return
            if is_replaceable(runs.get_run(store, run_id).tags.get(NOTE_TAG, "")):
                text = description(summary, run_id, status, progress.registered)
                runs.set_tags(store, run_id, {NOTE_TAG: marked(text)})
            if experiment_id is not None and summary["evaluations"] and not self._experiment_is_described:
                describe_experiment(store, experiment_id, summary)
                self._experiment_is_described = True
        except (MltrackError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            log.warning("the description of the run: %s: %s", type(error).__name__, error)
