"""Records and an encoder whose token ids are the same in every process; run as a program, it builds their cache.

    python cached_tokens.py FOLDER NAME

It makes FOLDER/NAME-begins when it begins and FOLDER/NAME-builds when it builds, stops after the first part until
FOLDER/go is there, and prints what it did as one JSON object."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mltrack.data.encoding import Encoder
from mltrack.data.token_cache import FEWEST_RECORDS, token_rows
from mltrack.models.tokenizers import train_tokenizer
from mltrack.records.record import Record
from mltrack.tasks import TaskType, task_named


def records(count: int = FEWEST_RECORDS + 500) -> list[Record]:
    """Pairs, all different; as many as get a file, and more than one part."""
    return [
        Record(f"def f{n}(x):\n    return x + {n}", None, f"Add {n} to x", "a.jsonl", n) for n in range(1, count + 1)
    ]


def encoder(
    max_length: int = 32, truncation: str = "head", vocab_size: int = 300, task: TaskType = TaskType.CODE_GENERATION
) -> Encoder:
    """Of a tokenizer that is trained on some of the records."""
    tokenizer = train_tokenizer(
        [record.text for record in records(200)], vocab_size, "encoder" if task_named(task).has_classes else "decoder"
    )
    return Encoder(tokenizer, task, max_length, truncation)


def main(folder: Path, name: str) -> None:
    """Build, or take what is there."""
    calls = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        (folder / f"{name}-builds").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)

    made_by = encoder()
    (folder / f"{name}-begins").touch()
    rows = token_rows(records(), made_by, progress=progress)
    readers = [module for module in ("datasets", "pyarrow", "pandas") if module in sys.modules]
    print(
        json.dumps(
            {"built": bool(calls), "sum": int(rows.ids.sum()), "mapped": rows.path is not None, "readers": readers}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
