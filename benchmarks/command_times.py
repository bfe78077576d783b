"""How quickly the command line answers: `mltrack --help` beside the bare import of the libraries that it is made of,
and `import mltrack`.

Invariant: every start is a process of its own, in alternation; beside the wall clock stands the CPU time, which a busy
machine disturbs less.

    python benchmarks/command_times.py --rounds 30
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from report import circumstances, met, show, write

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "mltrack --help": "import sys; from mltrack.cli import main; sys.argv = ['mltrack', '--help']; main()",
    "mltrack train --help": (
        "import sys; from mltrack.cli import main; sys.argv = ['mltrack', 'train', '--help']; main()"
    ),
    "import typer, rich": "import typer, rich",
    "import mltrack": "import mltrack",
    "nothing": "pass",
}
GOAL = 1.5


def seconds_of(script: str) -> tuple[float, float]:
    """(wall, CPU) of a new interpreter that runs it."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
    )
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, script
    return wall, used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="beside the first, which fills the caches")
    options = parser.parse_args()
    results = circumstances()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for number in range(options.rounds + 1):
        for name, script in COMMANDS.items() if number % 2 else reversed(COMMANDS.items()):
            taken = seconds_of(script)
            if number:
                seen[name].append(taken)
    middle = {
        name: tuple(statistics.median(one[which] for one in taken) for which in (0, 1)) for name, taken in seen.items()
    }
    bare, libraries = middle["nothing"], middle["import typer, rich"]
    ratio = middle["mltrack --help"][0] / libraries[0]
    rows = []
    for name, (wall, cpu) in middle.items():
        goal = {
            "mltrack --help": f"<= {GOAL:g}x: {met(ratio, GOAL, at_most=True)}",
            "import mltrack": "milliseconds",
        }.get(name, "")
        cells = (
            f"{1000 * wall:.0f} ms",
            f"{1000 * cpu:.0f} ms",
            f"{wall / libraries[0]:.2f}x",
            f"{cpu / libraries[1]:.2f}x",
            f"{1000 * (wall - bare[0]):.1f} ms",
        )
        rows.append((name, *cells, goal))
    columns = ("", "wall", "CPU", "wall of typer, rich", "CPU of typer, rich", "above nothing", "goal")
    show(f"a new process, median of {options.rounds}, {results['date']}, {results['machine']}", columns, rows)
    write("command_times", {**results, "seconds": seen, "ratio": ratio})


if __name__ == "__main__":
    main()
