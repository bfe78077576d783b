"""What it costs to find one's way in a folder of many runs: `mltrack runs`, the look for undelivered runs at a start, a
run by its id.

python -m benchmarks.run_listing --runs 10000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from mltrack.journal import JournalWriter, RunDirectory, RunInfo, find_run_directory, records
from mltrack.runs.provenance import undelivered

POINTS = 1000
LONG_AGO = time.time() - 86400


def make_store(folder: Path, count: int) -> str:
    """The URI of the embedded database there, with as many runs that have ended."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(uri).search_experiments()
    rows = [(f"{number:032x}", "FINISHED", "active", number) for number in range(count)]
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.executemany(
            "INSERT INTO runs (run_uuid, status, lifecycle_stage, start_time, experiment_id) VALUES (?, ?, ?, ?, 0)",
            rows,
        )
        database.commit()
    return uri


def make_runs(root: Path, count: int, tracking_uri: str) -> list[str]:
    """Ended and delivered runs, each with run.json, delivery.json and a journal of 1,000 records (one file, linked);
    their ids.
    """
    journal = root.parent / "journal"
    writer = JournalWriter(journal)
    for step in range(1, POINTS + 1):
        writer.append(
            records.metrics(
                step,
                {"train_loss": 1 / step, "learning_rate": 1e-3, "grad_norm": 1.0},
                {"tokens_per_second": 1e4},
                epoch=0,
            )
        )
    writer.append(records.end("FINISHED", 0))
    writer.close()
    size, names = journal.stat().st_size, []
    for number in range(count):
        run_id = uuid.uuid4().hex
        directory = RunDirectory(
            root / (uuid.uuid4().hex if number % 2 else run_id)
        )  # every other one is named by a local id
        directory.path.mkdir(parents=True)
        os.link(journal, directory.journal)
        info = RunInfo(
            local_id=directory.path.name,
            run_id=run_id,
            task="code_generation",
            tracking_uri=tracking_uri,
            created_ms=number,
        )
        directory.run_file.write_text(json.dumps(vars(info)))
        content = {
            "tracking_uri": info.tracking_uri,
            "run_id": run_id,
            "offset": size,
            "sent": POINTS,
            "complete": True,
            "status": "FINISHED",
        }
        directory.delivery_file.write_text(json.dumps(content))
        os.utime(directory.path, (LONG_AGO, LONG_AGO))
        names.append(run_id)
    return names


def cost(what: Callable[[], object]) -> str:
    """Seconds of the clock, and of the processor with child processes."""
    started, cpu = time.perf_counter(), _cpu_s()
    what()
    return f"{time.perf_counter() - started:.2f} s ({_cpu_s() - cpu:.2f} s of CPU)"


def _cpu_s() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "mltrack-runs"
        ids = make_runs(root, given.runs, make_store(Path(folder), given.runs))
        command = [sys.executable, "-m", "mltrack", "runs", "--output-dir", str(root), "--output"]
        for again in ("nothing is known yet", "again"):
            print(again)
            for output in ("json", "text"):
                listing = partial(subprocess.run, [*command, output], check=True, capture_output=True, cwd=folder)
                print(f"  mltrack runs --output {output}    ", cost(listing))
            print("  what is undelivered           ", cost(lambda: undelivered(root)))
            print("  a run by its directory's name ", cost(lambda: find_run_directory(root, ids[-2])))
            print("  a run by its other id         ", cost(lambda: find_run_directory(root, ids[-1])))
            print("  a run that is not there       ", cost(lambda: find_run_directory(root, "0" * 32)))


if __name__ == "__main__":
    main()
