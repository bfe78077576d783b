"""`mltrack train`: words to a request, signals to a stop, the response to a summary and an exit code."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from types import FrameType

from mltrack.addresses import redact
from mltrack.config import OPTIONS, TrainModelRequest
from mltrack.errors import ConfigurationError, described, printable

SAME_REQUEST_S = 5.0
"""`mlflow run` that gets Ctrl-C sends its program a SIGTERM, which has got the SIGINT of the terminal itself: one request, two signals."""


class StopFlag:
    """Remembers the first SIGINT or SIGTERM; a second one ends the process at once, unless it is the SIGTERM that comes with a SIGINT."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._arrived = 0.0

    def install(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def __call__(self) -> int | None:
        """The signal that arrived, or None."""
        return self.signal_number

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal_number is not None:
            if (self.signal_number, number) == (signal.SIGINT, signal.SIGTERM) and now - self._arrived < SAME_REQUEST_S:
                return
            os._exit(128 + number)
        self.signal_number, self._arrived = number, now
        os.write(2, b"\nstopping after this batch, with a checkpoint; once more ends at once\n")


def train(words: Mapping[str, str]) -> int:
    """Run a training from the words of the command line; returns the exit code."""
    request = _request(words)
    stop = StopFlag()
    stop.install()
    _quiet(request.debug)
    from mltrack.hardware import prepare_process

    prepare_process(request.speedups)
    from mltrack.cli.progress import TrainingProgress
    from mltrack.cli.summary import print_summary
    from mltrack.train_model import TrainModelUseCase

    progress = TrainingProgress()
    use_case = TrainModelUseCase(
        listeners=[progress], notice=progress.notice, progress=progress.preparing, on_delivery=progress.delivering, stop_requested=stop
    )
    try:
        response = use_case.execute(request)
    finally:
        progress.close()
    if request.output == "json":
        print(json.dumps(response.to_dict()), flush=True)
    for line in response.errors:
        print(printable(f"mltrack: {line}"), file=sys.stderr)
    try:
        print_summary(request, response, file=sys.stderr if request.output == "json" else sys.stdout)
    except Exception as error:  # the training is over: what cannot be shown of it does not change how it ended
        print(f"mltrack: the summary is not complete: {described(error)}", file=sys.stderr)
    return response.exit_code


def _request(words: Mapping[str, str]) -> TrainModelRequest:
    problems = []
    for name, word in words.items():
        try:
            OPTIONS[name].parse(word)
        except ConfigurationError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError("; ".join(problems))
    return TrainModelRequest.from_words(words)


def _quiet(debug: bool) -> None:
    """Our own lines and errors; the libraries' chatter only with `--debug true`."""
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR, format="%(name)s: %(message)s", stream=sys.stderr)
    if not debug:
        warnings.filterwarnings("ignore", module=r"(?!mltrack)")
        warnings.formatwarning = lambda message, *_args, **_kwargs: redact(f"mltrack: {message}\n")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
