"""The files that a batch passes through, from the data set to the gradient.

python benchmarks/batch_path.py

A training of `scratch:tiny`. Counted is every function of mltrack that is called between the start of a step and its
gradient, in the training's own thread and in the thread that prepares the batches ahead.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import mltrack
from mltrack import AdvancedTrainer, DatasetLoader
from mltrack.models import resolve_model

PACKAGE = Path(mltrack.__file__).parent
COUNTED_STEPS = range(4, 8)
"""Several, so that the batches prepared ahead are among what is counted."""


class Calls:
    """Calls of mltrack's functions while it is switched on, by file and function."""

    def __init__(self) -> None:
        self.counted: Counter[tuple[str, str]] = Counter()
        self.on = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if self.on and event == "call" and (path := Path(frame.f_code.co_filename)).is_relative_to(PACKAGE):
            self.counted[str(path.relative_to(PACKAGE)), frame.f_code.co_qualname] += 1

    def around_steps(self, trainer: AdvancedTrainer) -> None:
        """Switch on when a counted step asks for its batch, off when it has its gradient."""
        next_group, accumulate = trainer._next_group, trainer.gradient.accumulate

        def begin() -> Any:
            self.on = trainer.state.step + 1 in COUNTED_STEPS
            return next_group()

        def end(*given: Any) -> Any:
            gradient = accumulate(*given)
            self.on = False
            return gradient

        trainer._next_group, trainer.gradient.accumulate = begin, end  # type: ignore[method-assign]


def main() -> None:
    records = [{"description": f"add {n}", "code": f"def add(x):\n    return x + {n}\n"} for n in range(64)]
    calls = Calls()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "train.jsonl")
        file.write_text("\n".join(map(json.dumps, records)))
        source = resolve_model("scratch:tiny", "code_generation")
        tokenizer = source.train_tokenizer(text for record in records for text in record.values())
        dataset = DatasetLoader(file, tokenizer=tokenizer, task="code_generation", max_length=64).load()
        model = source.build(label_mapping=None, max_length=64, seed=0)
        trainer = AdvancedTrainer(model, dataset, output_dir=folder, batch_size=4, max_steps=10)
        calls.around_steps(trainer)
        threading.setprofile(calls)
        sys.setprofile(calls)
        trainer.train()
        sys.setprofile(None)
    for file_name in sorted({file for file, _ in calls.counted}):
        functions = {name: n for (file, name), n in calls.counted.items() if file == file_name}
        print(f"{file_name:28} {', '.join(sorted(functions))}")
    count = sum(calls.counted.values())
    print(f"{len({file for file, _ in calls.counted})} files, {count / len(COUNTED_STEPS):.0f} calls a step")


if __name__ == "__main__":
    main()
