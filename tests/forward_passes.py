"""Signals at an exact place of a training: in the n-th forward pass of one kind. The process writes a letter for each
pass, and a mark.

Kinds: T a training micro-batch, E an evaluation batch, G a token of generated samples; ! the signal.

    process, _ = storm.start(run_id, signal_in("T", 5, [signal.SIGTERM]))
    before, mark, after = seen(storm.folder).partition("!")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_HOOK = """
import os, signal
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.generation import GenerationMixin
from mltrack.training.trainer import AdvancedTrainer

_log = os.open("forwards", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
_seen, _generating = {{}}, []
_generate = GenerationMixin.generate

def _watched(self, *given, **named):
    _generating.append(1)
    try:
        return _generate(self, *given, **named)
    finally:
        _generating.pop()

GenerationMixin.generate = _watched

def _count(module, given):
    if not type(module).__name__.endswith(("ForCausalLM", "ForSequenceClassification")):
        return
    kind = "T" if module.training else "G" if _generating else "E"
    os.write(_log, kind.encode())
    _seen[kind] = _seen.get(kind, 0) + 1
    if kind == "{kind}" and _seen[kind] == {count}:
        os.write(_log, b"!")
        for number in {signals}:
            os.kill(os.getpid(), number)

_train = AdvancedTrainer.train

def _watched_train(self):
    register_module_forward_pre_hook(_count)
    return _train(self)

AdvancedTrainer.train = _watched_train
"""
"""It begins to count with the loop: before that a model may be probed."""


def signal_in(kind: str, count: int, signals: Sequence[int]) -> str:
    """The prelude of a process that gets these signals, one after the other, in its `count`-th forward pass of that
    kind.
    """
    return _HOOK.format(kind=kind, count=count, signals=[int(number) for number in signals])


def seen(folder: Path) -> str:
    """The letters that the last process in this folder has written."""
    return (folder / "forwards").read_text()
