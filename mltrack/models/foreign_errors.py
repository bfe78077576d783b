"""Errors and output of transformers, torch and safetensors, reduced to one line.

Invariant: their errors become a `ConfigurationError` or `CheckpointError` of one line; only a lack of memory is raised
as it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mltrack.errors import CheckpointError, ConfigurationError, MltrackError, text_of
from mltrack.shortage import is_out_of_memory


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, reports and progress bars of transformers: mltrack's messages say what matters."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def one_line(where: str) -> Iterator[None]:
    """Turn errors of transformers and torch into an error of mltrack, of one line."""
    import pickle

    from safetensors import SafetensorError

    try:
        with quiet():
            yield
    except MltrackError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{where}: its weights are not plain tensors, and reading them could run code; use safetensors, or a .bin"
            " that holds tensors only"
        ) from None
    except (SafetensorError, EOFError) as error:
        raise CheckpointError(f"{where}: its weights are damaged ({first_line(error)}); use an intact copy") from None
    except Exception as error:
        # transformers raises almost everything: OSError, ValueError, KeyError, AttributeError, RuntimeError, its own
        if is_out_of_memory(error):
            raise
        raise ConfigurationError(f"{where} cannot be loaded: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """At most 200 characters of another library's message, on one line."""
    text = " ".join(text_of(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
