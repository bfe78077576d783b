"""Kills a real training at random instants, resumes it each time, and counts what was lost.

Invariant: every figure is read from disk and from MLflow's store and compared with a run of the same job that was never
killed.

    python benchmarks/kill_storm.py --kills 200            # a quarter of an hour on two idle cores; Ctrl-C ends it with
    what it has python benchmarks/kill_storm.py --kills 20 --task code_generation --precision bf16
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from killed_training import Storm, Tally
from small_job import small_job
from warm_process import WarmProcess

RESULTS = Path(__file__).resolve().parent / "results" / "kill_storm.json"
PRECISIONS = ("off", "bf16", "fp16")


def main() -> None:
    """Storm, print the table, write the figures; exit code 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how often SIGKILL is sent")
    parser.add_argument(
        "--task",
        default="text_classification",
        choices=("text_classification", "code_generation"),
        help="what is trained",
    )
    parser.add_argument("--precision", default="off", choices=PRECISIONS, help="as use_mixed_precision")
    parser.add_argument("--seed", type=int, default=0, help="decides the instants")
    parser.add_argument(
        "--offline",
        action="store_true",
        help="no MLflow and no relays: four times as fast; points are read from the journals",
    )
    parser.add_argument("--keep", type=Path, help="do the work in this folder and leave it there")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="mltrack-storm-", ignore_cleanup_errors=True) as temporary,
        WarmProcess() as warm,
    ):
        folder = options.keep or Path(temporary)
        job = small_job(folder, options.task, use_mixed_precision=options.precision)
        storm = Storm(job, folder, warm, options.seed, offline=options.offline)
        tally = storm.run(options.kills, on_progress=_progress)
    sys.stderr.write("\n")
    seconds = time.monotonic() - started
    rows = _rows(tally)
    _print_table(rows, seconds)
    _write(options.output, tally, options, seconds)
    sys.exit(0 if all(met for _, _, met in rows) else 1)


def _progress(tally: Tally) -> None:
    if tally.num_kills % 10 == 0:
        sys.stderr.write(f"\r{tally.num_kills} kills, {tally.runs} runs")
        sys.stderr.flush()


def _rows(tally: Tally) -> list[tuple[str, str, bool]]:
    """(what, figure, is it as promised)."""
    phases = ", ".join(f"{phase} {count}" for phase, count in sorted(tally.kills.items()))
    return [
        ("kills", f"{tally.num_kills} ({phases}); the relay with them: {tally.relay_kills}", True),
        ("resumes", f"{tally.resumes}, and {tally.from_nothing} starts again before the first checkpoint", True),
        ("runs that were finished", str(tally.runs), True),
        ("points lost", f"{tally.points_lost} of {tally.points:,}", tally.points_lost == 0),
        ("points doubled", str(tally.points_doubled), tally.points_doubled == 0),
        ("points that differ", str(tally.points_different), tally.points_different == 0),
        ("torn checkpoints", str(tally.torn), tally.torn == 0),
        ("newest checkpoint not loadable", str(tally.unloadable), tally.unloadable == 0),
        ("temporary names left", str(len(tally.leftovers)), not tally.leftovers),
        ("weights identical", f"{tally.identical} of {tally.runs} runs", tally.identical == tally.runs),
        ("same checkpoints kept", f"{tally.same_best} of {tally.runs} runs", tally.same_best == tally.runs),
        ("wrong statuses and tags", "\n".join(tally.problems) or "0", not tally.problems),
    ]


def _print_table(rows: list[tuple[str, str, bool]], seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"kill storm, {datetime.date.today()}, {os.cpu_count()} cores, {seconds:.0f} s")
    for column in ("", "seen", "as promised"):
        table.add_column(column)
    for what, figure, met in rows:
        table.add_row(what, figure, "yes" if met else "no")
    console = Console()
    if not console.is_terminal:
        console.width = 150
    console.print(table)


def _write(path: Path, tally: Tally, options: argparse.Namespace, seconds: float) -> None:
    from importlib.metadata import version

    made: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/kill_storm.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}",
        "versions": {name: version(name) for name in ("torch", "transformers", "mlflow")}
        | {"python": platform.python_version()},
        "task": options.task,
        "precision": options.precision,
        "offline": options.offline,
        "seconds": round(seconds),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({**made, **asdict(tally), "num_kills": tally.num_kills}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
