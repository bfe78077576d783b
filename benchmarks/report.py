"""What a training benchmark leaves: one table on the screen and one JSON file.

Invariant: figures stand with their date, command, machine and versions.

    results = {**circumstances(), "rows": rows}
    show("levers", ["lever", "ratio"], cells)
    write("levers", results)
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


def circumstances() -> dict[str, Any]:
    """Taken before the measuring: its load is not this benchmark's own."""
    from importlib.metadata import version

    from mltrack.hardware import cpu_multiplies_bf16, cpuinfo

    flags = cpuinfo("flags").split()
    widest = next(
        (name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags), platform.machine()
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": (
            f"{cpuinfo('model name') or platform.machine()}, {os.cpu_count()} cores, {widest}, load"
            f" {os.getloadavg()[0]:.1f} before"
        ),
        "bf16_instruction": cpu_multiplies_bf16(),
        "versions": (
            {name: version(name) for name in ("torch", "transformers", "mlflow")}
            | {"python": platform.python_version()}
        ),
    }


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 170
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def write(name: str, results: dict[str, Any], *, part: str | None = None) -> Path:
    """Write `results/NAME.json`; with a part, the others keep what an earlier run wrote."""
    path = FOLDER / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    if part is not None:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        results = {**earlier, part: results}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path


def of_pairs(others: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Median and range of other / ours, pair by pair."""
    ratios = [other / mine for other, mine in zip(others, ours, strict=True)]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def shown_ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['ratio']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def met(value: float, goal: float, *, at_most: bool = False) -> str:
    """Whether a goal is reached."""
    return "yes" if (value <= goal if at_most else value >= goal) else "no"
